"""Many processes train as one: the same losses, the same weights, one file to continue from, one voice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import minimal
from minimal import checkpoints, processes
from minimal.ar.raster import RasterGPT
from minimal.data import load
from minimal.flows.flow_matching import FlowMatching
from minimal.tokenizers.vq import VQTokenizer
from minimal.train import EMA, fit

KINDS = ("tokens", "flow", "codebook")


def train(kind, event="none", save_to=None):
    """Ten steps of a model with dropout and an average, of one with noise, or of one with a codebook."""
    torch.manual_seed(0)
    digits = load("digits", "train")
    data, options = (digits.images, digits.labels), {}
    if kind == "tokens":
        model = RasterGPT(17, 64, 10, grid_width=8, dim=16, layers=2, heads=2, dropout=0.3)
        data = (((digits.images.flatten(1) + 1) * 8).round().long(), digits.labels)
        options = dict(ema=EMA(model, 0.9), validate=lambda step: model.loss(data[0][:9])[0], validate_every=4)
    elif kind == "flow":
        model = FlowMatching((1, 8, 8), 10, dropout=0.2)
    else:
        model = VQTokenizer(codebook_size=20, dim=4, widths=(8, 8), decay=0.8)
        data = (digits.images,)

    def step_fn(batch, step):
        if processes.rank() == 1 and step == 7 and event == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        loss, logs = model.loss(*batch)
        return loss * float("nan" if processes.rank() == 1 and step == 4 and event == "nan" else 1), logs

    history = fit(
        model, data, steps=10, step_fn=step_fn, batch_size=12, save_to=save_to, save_every=3, desc="bar", **options
    )
    return model, history, held_out(model, tuple(x[-50:] for x in data))


def held_out(model, batch):
    """What the trained weights are worth. Some weights are not compared: a bias that a norm cancels drifts freely."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model.loss(*batch)[0].item()


def worker(kind, event, folder):
    """What each process of torchrun does."""
    save_to = None if event == "none" else f"{folder}/state.safetensors"
    with processes.joined():
        name = f"{folder}/{kind}{processes.rank()}"
        try:
            _, history, value = train(kind, event, save_to)
        except FloatingPointError as error:
            Path(f"{name}.error").write_text(str(error))
            return
    Path(f"{name}.json").write_text(json.dumps([history.losses, history.logs, [*history.validation.values(), value]]))


def torchrun(*command, processes=2):
    path = os.pathsep.join([str(Path(minimal.__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "0"}
    environment.pop("CI", None)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)


def run_worker(kind, event, folder):
    script = folder / "worker.py"
    script.write_text("import sys, test_processes\ntest_processes.worker(*sys.argv[1:])\n")
    return torchrun(str(script), kind, event, str(folder))


def assert_as_one_process(kind, folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, history, value = train(kind)
    torch.set_num_threads(threads)
    for rank in range(2):
        losses, logs, validation = json.loads((folder / f"{kind}{rank}.json").read_text())
        torch.testing.assert_close(losses, history.losses, rtol=0, atol=2e-5)
        torch.testing.assert_close(validation, [*history.validation.values(), value], rtol=0, atol=2e-5)
        for there, here in zip(logs, history.logs, strict=True):
            for name in set(here) - {"codes_in_batch"}:  # a count, not a mean over examples
                assert there[name] == pytest.approx(here[name], abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(kind, tmp_path):
    result = run_worker(kind, "none", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_as_one_process(kind, tmp_path)
    assert result.stderr.count("| 0/10") == 1  # one bar, of the first process


@pytest.mark.slow
def test_a_killed_run_of_two_continues_where_it_was_saved(tmp_path):
    assert run_worker("tokens", "kill", tmp_path).returncode != 0
    header, _ = checkpoints.read(tmp_path / "state.safetensors")
    assert len(header["history"]["losses"]) == 6
    result = run_worker("tokens", "resume", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_as_one_process("tokens", tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all(tmp_path):
    assert run_worker("flow", "nan", tmp_path).returncode == 0
    messages = [(tmp_path / f"flow{rank}.error").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "nan at step 4" in messages[0]


@pytest.mark.slow
def test_the_command_trains_on_two_processes_and_speaks_once(tmp_path):
    out = {n: tmp_path / f"{n}.safetensors" for n in (1, 2)}
    for n, path in out.items():
        result = torchrun("-m", "minimal", "train", "digits_draft", "--steps", "6", "--out", str(path), processes=n)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("saved as") == 1
    (_, one), (_, two) = (checkpoints.read(path) for path in out.values())
    torch.testing.assert_close(two, one, rtol=0, atol=1e-3)  # stored in half precision
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "2.safetensors"]


# Alone


def test_alone_nothing_is_shared_or_averaged():
    batch = (torch.rand(5, 2), torch.rand(5))
    assert processes.share(batch) is batch and processes.gathered(batch[0]) is batch[0]
    values = [0.1, 0.2]
    assert processes.average(values) is values
    assert (processes.count(), processes.rank()) == (1, 0)
    with processes.joined("cpu") as device:
        assert device == "cpu"


def test_processes_that_cannot_meet_say_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="use torchrun"), processes.joined():
        pass


# Shares and noise, as the second of two processes sees them


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)


def test_a_share_is_the_rows_of_this_process(second_of_two):
    x, y = torch.arange(12).view(6, 2), torch.arange(6)
    rows, labels = processes.share((x, y))
    assert torch.equal(rows, x[3:]) and torch.equal(labels, y[3:])
    with pytest.raises(ValueError, match="5 examples cannot be shared by 2"):
        processes.share(torch.rand(5))


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: torch.randn(n, 3),
        lambda n: torch.rand(n, generator=torch.Generator().manual_seed(3)),
        lambda n: torch.randn_like(torch.empty(n, 2)),
        lambda n: torch.randint(9, (n, 4)),
        lambda n: torch.empty(n, 2).uniform_(),
        lambda n: torch.bernoulli(torch.full((n, 5), 0.3)),
        lambda n: torch.multinomial(torch.ones(n, 7), 2),
        lambda n: nn.functional.dropout(torch.ones(n, 6, 2), 0.4),
    ],
)
def test_noise_is_that_of_the_whole_batch(draw, second_of_two):
    torch.manual_seed(5)
    whole, after = draw(8), torch.rand(())
    torch.manual_seed(5)
    with processes.whole_batch_noise(torch.zeros(4)):
        ours = draw(4)
    assert torch.equal(ours, whole[4:])
    assert torch.equal(torch.rand(()), after)  # both leave the generator in the same place


def test_other_noise_is_left_alone(second_of_two):
    torch.manual_seed(5)
    expected = torch.randn(3, 4), torch.randperm(9)
    torch.manual_seed(5)
    with processes.whole_batch_noise(torch.zeros(4)):
        assert torch.equal(torch.randn(3, 4), expected[0]) and torch.equal(torch.randperm(9), expected[1])
