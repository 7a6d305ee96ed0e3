"""Many processes train as one: the same losses, the same weights, one file to continue from, one voice."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

import minimal
from minimal import checkpoints, processes, recipes
from minimal.ar.raster import RasterGPT
from minimal.data import load
from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.tokenizers.vq import VectorQuantizer, VQTokenizer
from minimal.train import EMA, fit

KINDS = ("tokens", "flow", "flow map", "codebook")
TOLERANCE = 1e-5  # on a loss; the order of summation is all that differs


def train(kind, event="none", save_to=None):
    """Ten steps of a model with dropout and an average, of one with noise, or of one with a codebook."""
    torch.manual_seed(0)
    digits = load("digits", "train")
    data, options = (digits.images, digits.labels), {}
    if kind == "tokens":
        model = RasterGPT(17, 64, 10, grid_width=8, dim=16, layers=2, heads=2, dropout=0.3)
        data = (((digits.images.flatten(1) + 1) * 8).round().long(), digits.labels)
        options = dict(ema=EMA(model, 0.9), validate=lambda step: model.loss(data[0][:9])[0], validate_every=4)
    elif kind in ("flow", "flow map"):
        model = (FlowMatching if kind == "flow" else MeanFlow)((1, 8, 8), 10, width=48, depth=2, dropout=0.2)
    else:
        model = VQTokenizer(codebook_size=20, dim=4, widths=(8, 8), decay=0.8)
        data = (digits.images,)
    if event == "bad row":  # the last example of every batch, which is the second process's
        images, labels = data
        bad = torch.cat([images[:11], torch.full_like(images[:1], float("nan"))])
        data = lambda batch_size, generator: (bad, labels[:12])  # noqa: E731

    def step_fn(batch, step):
        if step == 7 and event in ("kill all", f"kill {processes.rank()}"):
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


def worker(kinds, event, folder):
    """What each process of torchrun does."""
    torch.set_num_threads(1)
    save_to = None if event == "none" else f"{folder}/state.safetensors"
    with processes.joined():
        if event == "lost" and processes.rank() == 1:
            save_to = None  # as if it were on a disk that this process does not see
        for kind in kinds.split(","):
            name = f"{folder}/{kind}{processes.rank()}"
            try:
                model, history, value = train(kind, event, save_to)
            except (FloatingPointError, ValueError) as error:
                Path(f"{name}.error").write_text(str(error))
                return
            weights = hashlib.sha256(b"".join(x.numpy().tobytes() for x in model.state_dict().values())).hexdigest()
            record = [history.losses, history.logs, [*history.validation.values(), value], weights]
            Path(f"{name}.json").write_text(json.dumps(record))


def torchrun(*command, processes=2):
    path = os.pathsep.join([str(Path(minimal.__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "0"}
    environment.pop("CI", None)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)


def run_worker(kind, event, folder, processes=2):
    script = folder / "worker.py"
    script.write_text("import sys, test_processes\ntest_processes.worker(*sys.argv[1:])\n")
    return torchrun(str(script), kind, event, str(folder), processes=processes)


def messages(kind, folder):
    return [(folder / f"{kind}{rank}.error").read_text() for rank in range(2)]


def assert_as_one_process(kind, folder, ranks=2):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, history, value = train(kind)
    torch.set_num_threads(threads)
    records = [json.loads((folder / f"{kind}{rank}.json").read_text()) for rank in range(ranks)]
    assert all(record == records[0] for record in records)  # weights too, bit for bit
    losses, logs, validation, _ = records[0]
    torch.testing.assert_close(losses, history.losses, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(validation, [*history.validation.values(), value], rtol=0, atol=TOLERANCE)
    for there, here in zip(logs, history.logs, strict=True):
        for name in set(here) - {"codes_in_batch"}:  # a count, not a mean over examples
            assert there[name] == pytest.approx(here[name], abs=TOLERANCE)


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    """Every kind, one after the other in one pair of processes."""
    folder = tmp_path_factory.mktemp("kinds")
    return folder, run_worker(",".join(KINDS), "none", folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(kind, all_kinds):
    folder, result = all_kinds
    assert result.returncode == 0, result.stderr
    assert_as_one_process(kind, folder)
    assert result.stderr.count("| 0/10") == len(KINDS)  # one bar each, of the first process


@pytest.mark.slow
@pytest.mark.parametrize("victim, then", [("all", 2), ("1", 1)])
def test_a_killed_run_of_two_continues_where_it_was_saved(victim, then, tmp_path):
    """The file of the first process serves all, and another number of processes too."""
    assert run_worker("tokens", f"kill {victim}", tmp_path).returncode != 0
    header, _ = checkpoints.read(tmp_path / "state.safetensors")
    assert len(header["history"]["losses"]) == 6
    result = run_worker("tokens", "resume", tmp_path, processes=then)
    assert result.returncode == 0, result.stderr
    assert_as_one_process("tokens", tmp_path, ranks=then)


@pytest.mark.slow
def test_processes_that_do_not_all_see_the_file_refuse_to_continue(tmp_path):
    train("flow", save_to=tmp_path / "state.safetensors")
    assert run_worker("flow", "lost", tmp_path).returncode == 0
    assert all("not all processes find" in message for message in messages("flow", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("event, message", [("nan", "nan at step 4"), ("bad row", "the batch has NaN")])
def test_what_is_no_number_stops_all(event, message, tmp_path):
    assert run_worker("flow", event, tmp_path).returncode == 0
    first, second = messages("flow", tmp_path)
    assert first == second and message in first


@pytest.mark.slow
def test_the_command_trains_on_two_processes_and_speaks_once(tmp_path):
    one = recipes.run("digits_draft", out=str(tmp_path / "1.safetensors"), steps=6)
    two = tmp_path / "2.safetensors"
    result = torchrun("-m", "minimal", "train", "digits_draft", "--steps", "6", "--out", str(two))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("saved as") == 1 and result.stdout.count("test_bits_per_dim") == 1
    assert result.stderr.count("| 0/6") == 1
    assert sorted(tmp_path.iterdir()) == [one, two]
    torch.testing.assert_close(checkpoints.read(two)[1], checkpoints.read(one)[1], rtol=0, atol=1e-3)  # in float16


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
    assert processes.share((x, None))[1] is None
    with pytest.raises(ValueError, match="5 examples cannot be shared by 2"):
        processes.share(torch.rand(5))
    with pytest.raises(ValueError, match="NaN"):
        processes.share(torch.tensor([float("nan"), 1.0]))


def test_the_first_measures_for_all(monkeypatch):
    @processes.by_first
    def measured(value, times=1):
        return {"value": value * times}

    assert measured(3, times=2) == {"value": 6} and measured.__name__ == "measured"
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert measured(3) == {}


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
    draws = lambda: (torch.randn(3, 4), torch.randperm(9), torch.randn(8, 2), torch.randperm(8))  # noqa: E731
    torch.manual_seed(5)
    expected = draws()
    torch.manual_seed(5)
    with processes.whole_batch_noise(torch.zeros(4)):  # 8 is the size of the whole batch
        assert all(map(torch.equal, draws(), expected))


def test_common_noise_is_common_whatever_its_shape(second_of_two):
    torch.manual_seed(5)
    expected = torch.randn(4, 3)
    torch.manual_seed(5)
    with processes.whole_batch_noise(torch.zeros(4)):
        with processes.common_noise():
            assert torch.equal(torch.randn(4, 3), expected)
        assert not torch.equal(torch.randn(4, 3), torch.randn(8, 3)[4:])


def test_as_many_dead_codes_as_rows_are_revived_alike(second_of_two):
    """The rows that replace them are drawn for the codebook; as noise of examples they would differ by process."""
    tables = []
    for context in (nullcontext(), processes.whole_batch_noise(torch.zeros(4))):
        torch.manual_seed(0)
        table = VectorQuantizer(6, 2, decay=0.0)  # the counts are those of the batch: two codes live, four die
        with context:
            table.update(torch.randn(9, 2), torch.arange(9) % 2)
        tables.append(table.codebook)
    assert torch.equal(*tables)


def test_fused_attention_sees_the_rows_of_this_process_only(second_of_two, monkeypatch):
    q = torch.randn(4, 2, 5, 8, requires_grad=True)
    widened = []
    monkeypatch.setattr(processes._WholeBatchNoise, "widen", lambda self, x: widened.append(x) or x)
    with processes.whole_batch_noise(q):
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert not widened and q.grad.isfinite().all()
