import errno
import json
import os
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimal import checkpoints
from minimal.nn.module import arguments


class Toy(nn.Module):
    """Stands in for a model of the package: weights, an integer buffer, a counter too large for float16."""

    def __init__(self, width, shape=(1, 2), rate=0.5):
        super().__init__()
        self.config = arguments(locals())
        self.linear = nn.Linear(width, 3)
        self.shape, self.dropout = shape, nn.Dropout(rate)
        self.register_buffer("levels", torch.arange(width) + 100_000)
        self.register_buffer("count", torch.tensor([1.0, 1e6]))


@pytest.fixture(autouse=True)
def toy_module(monkeypatch):
    """Makes Toy a class of the package, as if it were written in minimal/toy.py."""
    monkeypatch.setattr(Toy, "__module__", "minimal.toy")
    module = types.ModuleType("minimal.toy")
    module.Toy, module.Linear, module.os = Toy, nn.Linear, os
    monkeypatch.setitem(sys.modules, "minimal.toy", module)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "folder", lambda: tmp_path)
    return tmp_path


def test_arguments_are_those_of_the_constructor():
    assert Toy(4, rate=0.1).config == {"width": 4, "shape": (1, 2), "rate": 0.1}


def test_full_precision_returns_the_same_module(tmp_path):
    toy = Toy(4, shape=(3, 8, 8))
    checkpoints.save(toy, tmp_path / "toy.safetensors", half=False)
    loaded = checkpoints.load(tmp_path / "toy.safetensors")
    assert loaded.config == toy.config and loaded.shape == torch.Size((3, 8, 8)) and not loaded.training
    for name, value in toy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and loaded.state_dict()[name].dtype == value.dtype


def test_half_precision_rounds_weights_to_float16_and_nothing_else(tmp_path):
    toy = Toy(4)
    checkpoints.save(toy, tmp_path / "toy.safetensors")
    stored = checkpoints.read(tmp_path / "toy.safetensors")[1]
    assert stored["linear.weight"].dtype == torch.float16 and stored["count"].dtype == torch.float32
    loaded = checkpoints.load(tmp_path / "toy.safetensors")
    assert loaded.linear.weight.dtype == torch.float32
    assert torch.equal(loaded.linear.weight, toy.linear.weight.half().float())
    assert torch.equal(loaded.levels, toy.levels) and torch.equal(loaded.count, toy.count)


def test_equal_modules_give_equal_files(tmp_path):
    toy = Toy(4)
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for file in files:
        checkpoints.save(toy, file, recipe="toy", metrics={"bits": 1.75, "a": 1, "b": 2})
    assert len({file.read_bytes() for file in files}) == 1


def test_shared_weights_survive(tmp_path):
    toy = Toy(3)
    toy.tied = toy.linear
    checkpoints.write(tmp_path / "tied.safetensors", toy.state_dict(), {})
    stored = checkpoints.read(tmp_path / "tied.safetensors")[1]
    assert torch.equal(stored["tied.weight"], stored["linear.weight"])


def test_header_tells_recipe_and_metrics(shelf):
    checkpoints.save(Toy(4), shelf / "toy.safetensors", recipe="digits", metrics={"bits_per_dim": 1.75})
    header = checkpoints.header("toy")
    assert (header["class"], header["recipe"]) == ("minimal.toy.Toy", "digits")
    assert header["metrics"] == {"bits_per_dim": 1.75}


def test_loading_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    checkpoints.save(Toy(4), tmp_path / "toy.safetensors")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    checkpoints.load(tmp_path / "toy.safetensors")
    assert torch.equal(torch.rand(2), expected)


def test_unknown_name_lists_what_exists_and_the_recipe(shelf):
    for name in ("b", "a"):
        checkpoints.save(Toy(2), shelf / f"{name}.safetensors")
    assert checkpoints.names() == ["a", "b"]
    with pytest.raises(ValueError, match=r"'c'.*there are: a, b.*minimal train c"):
        checkpoints.load("c")


def test_names_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "minimal" / "checkpoints.py"))
    assert checkpoints.folder() == tmp_path / "minimal" / "_checkpoints"
    (tmp_path / "pyproject.toml").touch()
    assert checkpoints.folder() == tmp_path / "data" / "checkpoints"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "toy.safetensors"
    checkpoints.write(path, Toy(4).state_dict(), {"class": "minimal.toy.Toy", "config": {"width": 4}, "version": "0"})
    return path, path.read_bytes()


def test_sealed_file_loads(sealed):
    checkpoints.load(sealed[0])


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_anywhere_is_reported(sealed, place, flip):
    path, data = sealed
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= flip
    copy = path.with_name("damaged.safetensors")
    copy.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(copy)


def test_a_flipped_bit_in_every_byte_of_the_header_is_reported(sealed):
    path, data = sealed
    copy = path.with_name("damaged.safetensors")
    for offset in range(8 + int.from_bytes(data[:8], "little")):
        copy.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.header(copy)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"", lambda data: b"PK\3\4 not ours"]
)
def test_cut_longer_empty_and_foreign_files_are_reported(sealed, change):
    path, data = sealed
    copy = path.with_name("damaged.safetensors")
    copy.write_bytes(change(data))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(copy)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torch.nn.Linear",
        "torch.nn.modules.linear.Linear",
        "minimal.../../x",
        "minimal...os.System",
        "minimal",
        "minimal.Toy",
        "minimal_evil.toy.Toy",
        "evil.minimal.toy.Toy",
        "minimal.toy.Linear",
        "minimal.toy.os",
        "minimal.toy.Missing",
        "minimal.missing.Toy",
        "minimal.__main__.Toy",
        "minimal.toy.Toy\n",
        "minimal.checkpoints.Path",
        "minimal.train.History",
        "",
        None,
        3,
        ["minimal.toy.Toy"],
    ],
)
def test_a_class_from_outside_the_package_is_refused(tmp_path, name):
    path = tmp_path / "foreign.safetensors"
    checkpoints.write(path, {"weight": torch.zeros(1)}, {"class": name, "config": {}, "version": "0"})
    with pytest.raises(ValueError, match="refused"):
        checkpoints.load(path)


def test_a_foreign_class_is_refused_before_its_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "foreign_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoints.write(tmp_path / "f.safetensors", {}, {"class": "foreign_module.Model", "config": {}, "version": "0"})
    with pytest.raises(ValueError, match="refused"):
        checkpoints.load(tmp_path / "f.safetensors")
    assert "foreign_module" not in sys.modules


def test_a_module_that_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="refused"):
        checkpoints.save(nn.Linear(2, 2), tmp_path / "linear.safetensors")
    toy = Toy(2)
    del toy.config
    with pytest.raises(ValueError, match="config"):
        checkpoints.save(toy, tmp_path / "toy.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{"width": 5}, {"size": 4}])
def test_a_checkpoint_of_another_version_of_the_class_asks_for_new_training(tmp_path, config):
    header = {"class": "minimal.toy.Toy", "config": config, "version": "0.0.1"}
    checkpoints.write(tmp_path / "old.safetensors", Toy(4).state_dict(), header)
    with pytest.raises(ValueError, match="0.0.1 and does not fit minimal.toy.Toy.*train it again"):
        checkpoints.load(tmp_path / "old.safetensors")


def test_a_save_that_fails_leaves_the_previous_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "toy.safetensors"
    checkpoints.save(Toy(4), path, recipe="first")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(Toy(4), path, recipe="second")
    assert checkpoints.header(path)["recipe"] == "first" and list(tmp_path.iterdir()) == [path]


def test_the_file_reaches_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    checkpoints.save(Toy(4), tmp_path / "toy.safetensors")
    assert order == (["fsync", "rename", "fsync"] if os.name == "posix" else ["fsync", "rename"])


def test_the_header_is_readable_with_nothing_but_json(tmp_path):
    checkpoints.save(Toy(4), tmp_path / "toy.safetensors", recipe="digits")
    data = (tmp_path / "toy.safetensors").read_bytes()
    outer = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(outer["__metadata__"]["minimal"])["recipe"] == "digits"
