"""The command line: help at once, exit codes, one-line errors, and each command handed on with what was typed."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import minimal
from minimal import checkpoints, cli, doctor
from minimal.ar.any_subset import AnySubsetGPT
from minimal.ar.masked import MaskedTransformer
from minimal.ar.raster import RasterGPT
from minimal.ar.scale import NextScale
from minimal.data.shapes import WORDS
from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.painting import TOKENIZERS, painter, samplers_of
from minimal.recipes import autoregressive, captions, flex_scale, masked, neighbour, self_refine

COMMANDS = ("tour", "train", "sample", "data", "systems", "bench", "doctor")


def run(*words):
    return cli.main([str(word) for word in words])


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.fixture
def stand_in(monkeypatch):
    """Put a stand-in for a module whose real work takes minutes; what it was called with ends up in a list."""

    def put(module, function, returns=None, fails=None):
        calls = []

        def work(*args, **options):
            calls.append((args, options))
            if fails:
                raise fails
            return returns

        fake = SimpleNamespace(**{function: work})
        monkeypatch.setitem(sys.modules, f"minimal.{module}", fake)
        monkeypatch.setattr(minimal, module, fake, raising=False)
        return calls

    return put


# Help, errors, exit codes


def test_the_module_and_the_command_are_one_and_name_all_commands():
    said = python("-m", "minimal", "--help")
    assert said.returncode == 0 and all(f"\n    {command} " in said.stdout for command in COMMANDS)
    assert python("-m", "minimal", "--version").stdout == f"minimal {minimal.__version__}\n"


def test_help_answers_without_loading_torch():
    check = "import sys, minimal.cli; minimal.cli.parser(); sys.exit('torch' in sys.modules)"
    assert python("-c", check).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    assert "usage: minimal " + command in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    (), ("paint",), ("systems", "--part", "9"), ("systems", "--status", "lost"), ("tour", "--steps", "0"),
    ("sample",), ("sample", "digits_ar", "--n", "-1"), ("data", "digits"), ("tour", "--seed", "one"),
])  # fmt: skip
def test_a_wrong_call_exits_with_2(words):
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2


@pytest.mark.parametrize("words, said", [
    (("train", "no_such_recipe"), "no recipe 'no_such_recipe'"),
    (("sample", "no_such_network"), "no checkpoint 'no_such_network'"),
    (("bench", "no_such_job"), "unknown job 'no_such_job'"),
    (("bench", "decode", "--device", "cuda:99"), "no device 'cuda:99' here"),
    (("tour", "--device", "abacus"), "no device 'abacus' here"),
    (("tour", "--data", "no_such_data"), "no_such_data"),
])  # fmt: skip
def test_a_failure_is_one_line_and_exits_with_1(words, said, capsys, monkeypatch):
    monkeypatch.delenv("MINIMAL_DEBUG", raising=False)
    assert run(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minimal: ") and said in line


def test_a_traceback_is_shown_when_asked_for(monkeypatch):
    monkeypatch.setenv("MINIMAL_DEBUG", "1")
    with pytest.raises(ValueError, match="no_such_network"):
        run("sample", "no_such_network")


@pytest.mark.parametrize("error", [
    FileNotFoundError(2, "No such file", "nowhere/a.png"), PermissionError(13, "Permission denied", "/a.png"),
    OSError(28, "No space left on device"), ValueError("a message\n  of two lines"),
])  # fmt: skip
def test_errors_of_disk_and_data_are_one_line_too(error, stand_in, capsys):
    stand_in("tour", "main", fails=error)
    assert run("tour") == 1
    assert capsys.readouterr().err == f"minimal: {' '.join(str(error).split())}\n"


def test_a_mistake_of_ours_keeps_its_traceback(stand_in):
    stand_in("tour", "main", fails=TypeError("a bug"))
    with pytest.raises(TypeError):
        run("tour")


def test_an_interrupt_is_no_traceback(stand_in, capsys):
    stand_in("tour", "main", fails=KeyboardInterrupt())
    assert run("tour") == 130
    assert capsys.readouterr().err == "minimal: stopped\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of a shell")
def test_a_closed_pipe_is_no_traceback():
    command = f"'{sys.executable}' -m minimal systems | head -1"
    said = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert said.stdout.startswith("id") and said.stderr == ""


# The commands


def test_tour_is_handed_what_was_typed(stand_in):
    calls = stand_in("tour", "main")
    assert run("tour") == run("tour", "--data", "mnist", "--steps", 7, "--seed", 3, "--out", "a.png") == 0
    assert calls == [
        ((), dict(data="digits", steps=None, seed=0, out=None, device="cpu")),
        ((), dict(data="mnist", steps=7, seed=3, out="a.png", device="cpu")),
    ]


def test_bench_is_handed_what_was_typed(stand_in):
    calls = stand_in("bench", "main")
    assert run("bench") == run("bench", "decode") == 0
    assert calls == [(("all", "cpu"), {}), (("decode", "cpu"), {})]


def test_train_runs_a_recipe_and_prints_what_was_measured(stand_in, tiny_gpt, capsys):
    checkpoints.save(checkpoints.load(tiny_gpt), tiny_gpt, metrics={"test_bits_per_dim": 1.75})
    calls = stand_in("recipes", "run", returns=tiny_gpt)
    assert run("train", "digits_ar", "--steps", 9, "--seed", 1, "--out", "here") == 0
    assert calls == [(("digits_ar",), dict(out="here", steps=9, seed=1, device="cpu"))]
    said = capsys.readouterr().out
    assert "test_bits_per_dim" in said and "1.7500" in said and str(tiny_gpt) in said


def test_train_without_a_name_lists_the_recipes(capsys):
    assert run("train") == 0
    assert "digits_ar" in capsys.readouterr().out.split()


def test_data_lists_every_set_and_where_missing_files_go(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIMAL_CACHE", str(tmp_path / "nothing here"))
    monkeypatch.delenv("MINIMAL_DATA", raising=False)
    assert run("data") == 0
    said = capsys.readouterr().out
    first = [line.split()[0] for line in said.splitlines() if line]
    assert {"digits", "shapes", "mnist", "cifar10", "shakespeare"} <= set(first)
    assert "nothing here" in said and "tinyshakespeare.txt" in said


def test_systems_can_be_filtered(capsys):
    def listed(*words):
        assert run("systems", *words) == 0
        return capsys.readouterr().out.splitlines()[1:-2]

    everything, part = listed(), listed("--part", 3)
    assert 0 < len(part) < len(everything) == len(listed("--status", "planned")) + len(listed("--status", "done"))
    assert any(line.startswith("starflow ") for line in part)


def test_doctor_is_a_block_to_paste_that_names_the_essentials(capsys):
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert said.startswith("```\nminimal ") and said.endswith("```\n")
    words = ("python", "cores", "devices", "free disk", "checkpoints", "digits")
    assert all(word in said for word in (minimal.__version__, torch.__version__, *words))
    assert "FAILED" not in said


def test_doctor_reports_a_broken_setting_instead_of_failing(capsys, monkeypatch):
    monkeypatch.setenv("MINIMAL_DATA", "/no/such/folder")
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "FAILED" in said and "/no/such/folder" in said and "devices" in said


def test_doctor_names_a_damaged_checkpoint_and_a_missing_package(tmp_path, monkeypatch):
    (tmp_path / "spoiled.safetensors").write_bytes(b"not what it was")
    monkeypatch.setattr(checkpoints, "folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "requirements", lambda: {"": ["torch", "no-such-package"], "dev": ["no-such-tool"]})
    said = doctor.report()
    assert "spoiled DAMAGED" in said
    assert "MISSING     no-such-package" in said and "no-such-tool (only for pip install 'minimal[dev]')" in said


# Sampling, from networks without training


@pytest.fixture
def tiny_gpt(tmp_path):
    path = tmp_path / "tiny_ar.safetensors"
    checkpoints.save(RasterGPT(17, 16, num_classes=3, grid_width=4, dim=16, layers=1, heads=2), path)
    return path


@pytest.fixture
def tiny_flow(tmp_path):
    path = tmp_path / "tiny_flow.safetensors"
    checkpoints.save(FlowMatching((1, 4, 4), num_classes=3, width=16, depth=1), path)
    return path


@pytest.fixture
def tiny_map(tmp_path):
    path = tmp_path / "tiny_map.safetensors"
    checkpoints.save(MeanFlow((1, 4, 4), num_classes=3, width=16, depth=1), path)
    return path


@pytest.fixture
def tiny_subset(tmp_path):
    path = tmp_path / "tiny_subset.safetensors"
    checkpoints.save(AnySubsetGPT(5, 16, num_classes=3, grid_width=4, dim=16, layers=1, heads=2), path)
    return path


@pytest.fixture
def tiny_pyramid(tmp_path):
    path = tmp_path / "shapes_var.safetensors"  # the name says which tokenizer paints
    checkpoints.save(NextScale(256, 8, (1, 2, 4, 8), num_classes=3, dim=16, layers=1, heads=2), path)
    return path


@pytest.fixture
def tiny_masked(tmp_path):
    path = tmp_path / "shapes_maskgit.safetensors"
    checkpoints.save(MaskedTransformer(625, 64, num_classes=3, grid_width=8, dim=16, layers=1, heads=2), path)
    return path


@pytest.fixture
def tiny_captions(tmp_path):
    path = tmp_path / "scene_gpt.safetensors"
    words = dict(num_classes=len(WORDS), cond_length=16)
    checkpoints.save(RasterGPT(625, 64, grid_width=8, dim=16, layers=1, heads=2, **words), path)
    return path


@pytest.mark.parametrize("network, options, forwards", [
    ("tiny_gpt", (), "16.0 forwards"),
    ("tiny_gpt", ("--sampler", "jacobi", "--guidance-scale", 1.5, "--top-k", 3), "forwards"),
    ("tiny_gpt", ("--sampler", "lookahead", "--top-k", 3), "forwards"),
    ("tiny_gpt", ("--class", 2, "--temperature", 0), "16.0 forwards"),
    ("tiny_subset", ("--guidance-scale", 1.5), "forwards"),
    ("tiny_pyramid", ("--guidance-scale", 2), "4.0 forwards"),
    ("tiny_masked", (), "8.0 forwards"),
    ("tiny_masked", ("--steps", 3, "--class", 1), "3.0 forwards"),
    ("tiny_captions", ("--caption", "a large green star", "--guidance-scale", 2), "64.0 forwards"),
    ("tiny_flow", (), "50.0 forwards"),
    ("tiny_flow", ("--sampler", "heun", "--steps", 2, "--guidance-scale", 2), "4.0 forwards"),
    ("tiny_map", (), "1.0 forwards"),
    ("tiny_map", ("--sampler", "euler", "--steps", 3), "3.0 forwards"),
])  # fmt: skip
def test_sample_draws_a_picture(network, options, forwards, request, tmp_path, capsys):
    picture = tmp_path / "drawn.png"
    assert run("sample", request.getfixturevalue(network), "--n", 4, "--out", picture, *options) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert forwards in capsys.readouterr().out


def test_sample_writes_text_behind_a_prompt(tmp_path, capsys):
    path = tmp_path / "pydoc_tiny.safetensors"  # the name says that its tokens are characters
    checkpoints.save(RasterGPT(96, 32, dim=16, layers=1, heads=2), path)
    assert run("sample", path, "--n", 2, "--prompt", "The lambda") == 0
    said = capsys.readouterr().out
    assert said.count("The lambda") == 2 and "2 texts: 22.0 forwards each" in said
    assert run("sample", path, "--prompt", "x" * 33) == 1
    assert "longer than the context of 32" in capsys.readouterr().err
    assert run("sample", path, "--prompt", "\u00fc") == 1
    assert "not in the vocabulary" in capsys.readouterr().err


def test_the_seed_decides_what_is_drawn(tiny_gpt, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("sample", tiny_gpt, "--n", 2, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("network, options, said", [
    ("tiny_gpt", ("--class", 3), "class 3 is not among the 3 classes"),
    ("tiny_gpt", ("--sampler", "euler"), "predicts tokens; its samplers are cached, uncached, jacobi, lookahead"),
    ("tiny_gpt", ("--top-p", 2), "top_p"),
    ("tiny_gpt", ("--caption", "a star"), "reads no captions"),
    ("tiny_gpt", ("--prompt", "The"), "draws pictures"),
    ("tiny_captions", (), "reads captions"),
    ("tiny_captions", ("--caption", "a purple cow"), "at most 16 words out of"),
    ("tiny_pyramid", ("--sampler", "jacobi"), "its samplers are cached, uncached, not jacobi"),
    ("tiny_masked", ("--sampler", "cached"), "its samplers are masked, not cached"),
    ("tiny_flow", ("--sampler", "map"), "its samplers are euler, midpoint, heun, rk4, not map"),
    ("tiny_map", ("--guidance-scale", 2), "a map cannot be guided"),
])  # fmt: skip
def test_sample_refuses_what_a_network_cannot_do(network, options, said, request, capsys):
    assert run("sample", request.getfixturevalue(network), *options) == 1
    assert said in capsys.readouterr().err


def test_every_generator_of_part_2_is_painted_by_the_tokenizer_whose_tokens_it_writes():
    for name in TOKENIZERS:
        model = checkpoints.load(name)
        sampler = next(iter(samplers_of(model).values()))
        tokens = sampler(model, 2, generator=torch.Generator().manual_seed(0)).tokens
        assert painter(name, model)(tokens).shape == (2, 3, 32, 32)
    assert set(TOKENIZERS) == {name for part in (autoregressive, captions, flex_scale, masked, neighbour, self_refine)
                               for name in part.RECIPES} - {"shapes_flex"}  # fmt: skip
