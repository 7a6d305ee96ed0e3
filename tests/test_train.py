import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import minimal
from minimal import checkpoints
from minimal.train import EMA, Batches, adamw, faster_in_bfloat16, fit, warmup_cosine


class Classifier(nn.Module):
    """Dropout draws from the global generator, the buffer changes in training: both must survive a kill."""

    def __init__(self, width=6, classes=3):
        super().__init__()
        self.inner, self.outer, self.dropout = nn.Linear(4, width), nn.Linear(width, classes), nn.Dropout(0.2)
        self.register_buffer("mean", torch.zeros(4))

    def loss(self, x, y):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        logits = self.outer(self.dropout(torch.tanh(self.inner(x - self.mean))))
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}


def examples(n=22):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def run(steps=12, before_step=lambda step: None, **options):
    """One run with everything switched on: two modules, two optimizers, averages, validation, dropout.

    The loss grows after half of the run, so that the best weights are not the last ones. Returns all final state.
    """
    torch.manual_seed(7)
    model, critic = Classifier(), nn.Linear(4, 1)
    ema = EMA(model, 0.9)
    x_held, y_held = examples(9)

    def step_fn(batch, step):
        before_step(step)
        loss, logs = model.loss(*batch)
        return (loss if step < steps // 2 else -loss, critic(batch[0] + torch.randn(4)).square().mean()), logs

    history = fit(
        {"model": model, "critic": critic},
        examples(),
        [adamw(model, 0.05), torch.optim.SGD(critic.parameters(), 0.1, momentum=0.9)],
        step_fn=step_fn,
        steps=steps,
        batch_size=5,
        ema=ema,
        progress=False,
        validate=lambda step: model.loss(x_held + torch.randn(4), y_held)[0],
        validate_every=2,
        **options,
    )
    assert 0 < history.best_step < steps
    state = {
        **model.state_dict(),
        **{f"critic.{k}": v for k, v in critic.state_dict().items()},
        **{f"ema.{k}": v for k, v in ema.weights.items()},
        "random": torch.rand(1),
        "losses": torch.tensor(history.losses, dtype=torch.float64),
        "accuracy": torch.tensor([log["accuracy"] for log in history.logs]),
        "validation": torch.tensor(list(history.validation.items()), dtype=torch.float64),
    }
    return {name: value.clone() for name, value in state.items()}


def assert_identical(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# Kill and resume


class Killed(BaseException):
    pass


@pytest.mark.parametrize("save_every", [1, 3])
def test_stopping_once_at_every_step_changes_nothing(tmp_path, save_every):
    stopped = set()

    def stop_once(step):
        if step not in stopped:
            stopped.add(step)
            raise Killed

    options = dict(save_to=tmp_path / "run.safetensors", save_every=save_every)
    for _ in range(12):
        with pytest.raises(Killed):
            run(before_step=stop_once, **options)
    assert_identical(run(before_step=stop_once, **options), run())
    assert_identical(run(before_step=lambda step: pytest.fail("a finished run trained on"), **options), run())


def test_stopping_in_a_save_resumes_from_the_one_before(tmp_path, monkeypatch):
    fsync, calls = os.fsync, itertools.count()

    def fail_sometimes(descriptor):
        if next(calls) % 5 == 4:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_sometimes)
    stops = 0
    while True:
        try:
            state = run(save_to=tmp_path / "run.safetensors", save_every=2)
            break
        except Killed:
            stops += 1
    assert stops >= 2
    assert_identical(state, run())


def train_slowly(folder, say):
    """A training process that says what it is about to do, and sleeps in each save so that it can be killed there."""
    fsync = os.fsync

    def slow_fsync(descriptor):
        say(b"f")
        time.sleep(0.02)
        fsync(descriptor)

    os.fsync = slow_fsync
    state = run(steps=60, before_step=lambda step: say(b"s"), save_every=3, save_to=folder / "run.safetensors")
    checkpoints.write(folder / "final.safetensors", state, {})


def kill_and_resume(folder, kills=12):
    """Starts one training process after the other and kills each, half of them within a save; the last may finish."""
    torch.set_num_threads(1)
    adamw(Classifier())  # imports here, once, what every child would import
    choose = random.Random(0)
    for word in [b"s", b"f"] * (kills // 2) + [None]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                train_slowly(Path(folder), lambda word, writer=writer: os.write(writer, word))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        patience = choose.randint(1, 5)
        while said := os.read(reader, 1):
            patience -= said == word
            if patience == 0:
                os.kill(child, signal.SIGKILL)
        os.close(reader)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == (-signal.SIGKILL if word else 0), f"a child that should die in {word} ended with {code}"
        if (Path(folder) / "run.safetensors").exists():
            checkpoints.read(Path(folder) / "run.safetensors")  # whole, whatever the kill interrupted


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL and fork")
def test_sigkill_at_any_moment_changes_nothing(tmp_path):
    # In a process of its own, since torch cannot compute gradients in the fork of a process that has done so.
    path = os.pathsep.join([str(Path(minimal.__file__).parents[1]), str(Path(__file__).parent)])
    subprocess.run(
        [sys.executable, "-c", f"import test_train; test_train.kill_and_resume({str(tmp_path)!r})"],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert_identical(checkpoints.read(tmp_path / "final.safetensors")[1], run(steps=60))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=13), "steps: 12 there, 13 here"),
        (dict(seed=1), "seed: 0 there, 1 here"),
        (dict(clip=2.0), "clip: 1.0 there, 2.0 here"),
        (dict(keep_best=False), "keep_best: True there, False here"),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path, change, message):
    run(save_to=tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match=f"another run .*{message}"):
        run(save_to=tmp_path / "run.safetensors", **change)


def test_the_state_of_another_model_is_refused(tmp_path):
    options = dict(data=examples(), steps=2, progress=False, save_to=tmp_path / "run.safetensors")
    fit(Classifier(width=6), batch_size=4, **options)
    with pytest.raises(ValueError, match=r"inner.weight: \[6, 4\] there, \[7, 4\] here"):
        fit(Classifier(width=7), batch_size=4, **options)
    with pytest.raises(ValueError, match="batch_size: 4 there, 5 here"):
        fit(Classifier(width=6), batch_size=5, **options)


def test_a_damaged_state_is_reported(tmp_path):
    path = tmp_path / "run.safetensors"
    run(save_to=path)
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    with pytest.raises(ValueError, match="damaged"):
        run(save_to=path)


# Parts


@given(steps=st.integers(1, 300), warmup=st.floats(0, 1), floor=st.floats(0, 1))
def test_the_rate_climbs_to_one_and_falls_to_the_floor(steps, warmup, floor):
    rates = [warmup_cosine(step, steps, warmup, floor) for step in range(steps)]
    warm = round(warmup * steps)
    assert rates[:warm] == [(k + 1) / warm for k in range(warm)]
    assert all(a >= b for a, b in itertools.pairwise(rates[max(warm - 1, 0) :]))
    if warm < steps:
        assert rates[-1] == pytest.approx(floor) and 0 <= min(rates) and max(rates) <= 1


def test_the_rate_at_known_points():
    rates = [warmup_cosine(step, 110, warmup=10 / 110, floor=0.2) for step in (0, 4, 9, 34, 59, 109)]
    assert rates == pytest.approx([0.1, 0.5, 1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2])


def test_the_learning_rate_follows_the_schedule_and_an_optimizer_can_be_used_twice():
    model = Classifier()
    optimizer, rates = torch.optim.SGD(model.parameters(), 0.5), []

    def step_fn(batch, step):
        rates.append(optimizer.param_groups[0]["lr"])  # set by the step before
        return model.loss(*batch)

    for _ in range(2):
        fit(model, examples(), optimizer, step_fn=step_fn, steps=20, progress=False)
        assert rates[1:] == pytest.approx([0.5 * warmup_cosine(step, 20) for step in range(19)])
        rates.clear()


def test_ema_equals_its_closed_form():
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.5)
    history = [model.weight.detach().clone().double()]
    for _ in range(9):
        with torch.no_grad():
            model.weight.normal_()
        history.append(model.weight.detach().clone().double())
        ema.update()
    decays = [min(0.5, (1 + k) / (10 + k)) for k in range(1, 10)]
    shares = [1.0, *[1 - d for d in decays]]  # of each weight when it arrives; all later decays then shrink it
    expected = sum(w * s * math.prod(decays[k:]) for k, (w, s) in enumerate(zip(history, shares, strict=True)))
    torch.testing.assert_close(ema.weights["weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert decays[0] < 0.5 and decays[-1] == 0.5


def test_ema_weights_are_swapped_in_and_out_again_even_after_an_error():
    model = nn.Linear(2, 2)
    ema, copy = EMA(model, 0.9), nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    trained = model.weight.detach().clone()
    with pytest.raises(KeyError):
        with ema.swapped():
            assert torch.equal(model.weight, ema.weights["weight"]) and not torch.equal(model.weight, trained)
            raise KeyError
    assert torch.equal(model.weight, trained)
    ema.copy_to(copy)
    assert torch.equal(copy.weight, ema.weights["weight"])


def test_adamw_decays_matrices_only():
    groups = adamw(Classifier(), weight_decay=0.3).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.3, {2}), (0.0, {1})]


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_example_comes_exactly_once_an_epoch_in_a_new_order(n, batch_size, seed):
    batches = Batches((torch.arange(n), torch.arange(n) * 10), batch_size, seed)
    drawn = [batches.next() for _ in range(math.ceil(3 * n / batch_size))]
    assert all(len(x) == batch_size and torch.equal(10 * x, y) for x, y in drawn)
    epochs = torch.cat([x for x, _ in drawn])[: 3 * n].reshape(3, n)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n).expand(3, n))
    if n >= 12:
        assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("data", [torch.zeros(4, 2), (), (torch.zeros(3), torch.zeros(4)), (torch.zeros(0),), None])
def test_bad_data_is_refused(data):
    with pytest.raises(ValueError, match="data must be a tuple of equally long"):
        fit(Classifier(), data, steps=1)


# The loop


def test_a_tiny_model_overfits_eight_examples():
    torch.manual_seed(0)
    model = Classifier(width=32)
    model.dropout.p = 0.0
    history = fit(model, examples(8), adamw(model, 0.03), steps=200, batch_size=8, progress=False)
    assert history.steps == 200 and history.losses[0] > 0.8 and history.losses[-1] < 0.01
    assert model.loss(*examples(8))[1]["accuracy"] == 1 and not model.training


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    a, b, c = (run(seed=seed) for seed in (3, 3, 4))
    assert_identical(a, b)
    assert not torch.equal(a["inner.weight"], c["inner.weight"])


def test_what_ran_before_does_not_matter():
    torch.manual_seed(0)
    first, second = Classifier(), Classifier()
    second.load_state_dict(first.state_dict())
    second.eval()  # fit trains with dropout all the same
    losses = [fit(model, examples(), steps=10, progress=False).losses for model in (first, second)]
    assert losses[0] == losses[1]


def test_validation_does_not_change_training():
    def losses(**options):
        torch.manual_seed(0)
        return fit(Classifier(), examples(), steps=10, batch_size=5, progress=False, **options).losses

    assert losses() == losses(validate=lambda step: torch.rand(1), validate_every=3)


def test_validation_sees_averaged_weights_in_eval_mode_and_the_same_noise():
    model, seen = Classifier(), []
    ema = EMA(model, 0.99)

    def validate(step):
        assert not model.training and not torch.is_grad_enabled()
        assert all(torch.equal(p, ema.weights[name]) for name, p in model.named_parameters())
        seen.append((step, torch.rand(1)))
        return -step

    history = fit(model, examples(), steps=7, ema=ema, validate=validate, validate_every=3, progress=False)
    assert [step for step, _ in seen] == [3, 6, 7] and len({noise.item() for _, noise in seen}) == 1
    assert history.validation == {3: -3, 6: -6, 7: -7} and history.best_step == 7 and history.best == -7


@pytest.mark.parametrize("keep_best, kept", [(True, 4), (False, 8)])
def test_the_best_weights_on_validation_are_kept(keep_best, kept):
    model, weights = Classifier(), {}

    def validate(step):
        weights[step] = model.inner.weight.clone()
        return abs(step - 4)

    history = fit(model, examples(), steps=8, validate=validate, validate_every=2, keep_best=keep_best, progress=False)
    assert history.best_step == 4 and torch.equal(model.inner.weight, weights[kept])


def test_averaged_weights_are_left_in_the_model():
    model = Classifier()
    ema = EMA(model, 0.9)
    fit(model, examples(), steps=5, ema=ema, progress=False)
    assert all(torch.equal(p, ema.weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("clip", [0.01, math.inf])
def test_the_gradient_is_clipped_to_its_norm(clip):
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    direction = torch.tensor([30.0, 0.0, 40.0])
    fit(
        model,
        (torch.zeros(4, 1),),
        sgd,
        step_fn=lambda batch, step: ((model.weight * direction).sum(), {}),
        steps=1,
        warmup=1.0,
        clip=clip,
        progress=False,
    )
    moved = (before - model.weight).flatten()
    torch.testing.assert_close(moved, direction * min(1.0, clip / 50), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_loss_stops_before_it_reaches_the_weights(bad):
    model = Classifier()
    weights = []

    def step_fn(batch, step):
        weights.append(model.inner.weight.detach().clone())
        loss, logs = model.loss(*batch)
        return (loss * bad if step == 3 else loss), logs

    with pytest.raises(FloatingPointError, match="the loss is -?(nan|inf) at step 3"):
        fit(model, examples(), step_fn=step_fn, steps=9, progress=False)
    assert torch.equal(model.inner.weight, weights[3]) and not torch.equal(weights[2], weights[3])


def test_a_bad_gradient_of_a_finite_loss_stops_too():
    model = Classifier()
    before = model.inner.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient.* at step 0"):
        fit(
            model,
            examples(),
            steps=2,
            progress=False,
            step_fn=lambda batch, step: ((model.inner.weight * 0).square().sum().sqrt(), {}),
        )
    assert torch.equal(model.inner.weight, before)


def test_a_bad_validation_value_stops():
    with pytest.raises(FloatingPointError, match="validation value is nan after 2 steps"):
        fit(Classifier(), examples(), steps=3, validate=lambda step: math.nan, validate_every=2, progress=False)


def test_each_scalar_moves_only_the_parameters_of_its_own_optimizer():
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    start = a.weight.item(), b.weight.item()

    def step_fn(batch, step):  # a goes up on a * b, b goes down on it; b rests in the second step
        product = (a.weight * b.weight).sum()
        return (-product, product if step == 0 else None), {}

    sgds = [torch.optim.SGD(module.parameters(), 0.1) for module in (a, b)]
    history = fit(
        {"a": a, "b": b},
        (torch.zeros(2),),
        sgds,
        step_fn=step_fn,
        steps=2,
        warmup=0,
        floor=1,
        clip=math.inf,
        progress=False,
    )
    first = start[0] + 0.1 * start[1], start[1] - 0.1 * start[0]
    assert (a.weight.item(), b.weight.item()) == pytest.approx((first[0] + 0.1 * first[1], first[1]))
    assert history.losses == pytest.approx([0, -first[0] * first[1]])


def test_one_scalar_moves_the_parameters_of_all_optimizers():
    model = Classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(
        model, examples(), [torch.optim.SGD(model.inner.parameters(), 0.1), adamw(model.outer)], steps=1, progress=False
    )
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_wrong_calls_say_what_is_expected():
    model = Classifier()
    with pytest.raises(ValueError, match="A step goes in step_fn"):
        fit(model.loss, examples(), steps=1)
    with pytest.raises(ValueError, match="2 scalars for 1 optimizers"):
        fit(model, examples(), steps=1, step_fn=lambda batch, step: ((model.loss(*batch)[0],) * 2, {}), progress=False)


def test_data_may_be_drawn_on_the_fly():
    model, sizes = Classifier(), []

    def draw(batch_size, generator):
        x = torch.randn(batch_size, 4, generator=generator)
        sizes.append(x.sum().item())
        return x, (x[:, 0] > 0).long()

    fit(model, draw, steps=3, batch_size=6, progress=False)
    again, sizes = sizes[:], sizes.clear() or sizes
    fit(model, draw, steps=3, batch_size=6, progress=False)
    assert sizes == again and len(set(sizes)) == 3


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights():
    model, dtypes = Classifier(), []
    model.outer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    fit(model, examples(), steps=2, autocast=True, progress=False)
    assert set(dtypes) == {torch.bfloat16} and {p.dtype for p in model.parameters()} == {torch.float32}
    assert faster_in_bfloat16(model, examples(), repeats=1) in (True, False)


@pytest.mark.parametrize("progress, ci, shown", [(True, None, True), (False, None, False), (True, "1", False)])
def test_the_bar_is_on_stderr_and_off_under_ci(monkeypatch, capsys, progress, ci, shown):
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", ci)
    fit(Classifier(), examples(), steps=3, validate=lambda step: 0.25, progress=progress, desc="digits")
    out, err = capsys.readouterr()
    assert out == "" and bool(err) == shown
    if shown:
        assert "digits" in err and "loss=" in err and "validation=0.25" in err and "it/s" in err
