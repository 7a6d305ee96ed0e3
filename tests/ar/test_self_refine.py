"""SAR and input noise: what is read, what is asked, and where gradients flow."""

from functools import partial

import pytest
import torch

from minimal.ar.scale import NextScale
from minimal.ar.self_refine import InputNoise, SelfRefinement, cross_entropy, predict, replaced
from minimal.recipes import self_refine as recipe
from minimal.train import adamw, fit
from tests.tiny import counting_chain, markov_bench, seeded, tiny_gpt, wild


def tiny_scales(**changes):
    """A NextScale of 1 + 4 + 16 tokens, random, in eval mode, in float64."""
    sizes = dict(codebook_size=6, code_dim=3, scales=(1, 2, 4), num_classes=3, dim=16, layers=2, heads=2, hidden=16)
    model = wild(NextScale(**(sizes | changes)), 7).double()
    model.requires_grad_(True).quantizer.requires_grad_(False)
    return model


def some(model, n=4, seed=0):
    tokens = torch.randint(model.vocab_size, (n, model.length), generator=seeded(seed))
    return tokens, torch.arange(n) % model.num_classes


def gradients(model, loss):
    names, weights = zip(*[(name, p) for name, p in model.named_parameters() if p.requires_grad])
    return dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True)))


MODELS = {"scales": tiny_scales, "raster": lambda: tiny_gpt().requires_grad_(True)}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


# SAR


def test_a_perfect_model_reads_the_truth_twice():
    model = counting_chain(5, 6)
    model.levels = torch.arange(6)
    tokens = (torch.arange(6) % 5).expand(3, -1)
    loss, logs = SelfRefinement(model, 0.5)((tokens,))
    rows = model.logits(tokens)[:, 1:]
    assert logs["student_forced"].item() == pytest.approx(cross_entropy(rows, tokens[:, 1:]).item(), abs=1e-12)
    assert loss.item() == pytest.approx((logs["teacher_forced"] + 0.5 * logs["student_forced"]).item(), abs=1e-12)


def test_where_predictions_are_the_truth_both_targets_give_teacher_forcing_without_the_first_level(model, monkeypatch):
    tokens, cond = some(model)
    monkeypatch.setattr("minimal.ar.self_refine.predict", lambda logits, temperature: tokens)
    later = model.levels > 0
    expected = cross_entropy(model.logits(tokens, cond)[:, later], tokens[:, later]).item()
    for target in ("prediction", "truth"):
        _, logs = SelfRefinement(model, 0.3, target)((tokens, cond))
        assert logs["student_forced"].item() == pytest.approx(expected, abs=1e-12)


def test_the_second_pass_is_what_a_level_by_level_rollout_of_the_predictions_would_read(model):
    tokens, cond = some(model)
    predicted = predict(model.logits(tokens, cond))
    assert (predicted != tokens).any()
    again, cache = model.logits(predicted, cond), model.new_cache(len(tokens))
    ends = [*(1 + (model.levels[1:] != model.levels[:-1]).nonzero().flatten()).tolist(), model.length]
    rows = [model.logits(predicted[:, :end], cond, cache=cache) for end in ends]
    assert torch.allclose(torch.cat(rows, dim=1), again, rtol=0, atol=1e-10)
    _, logs = SelfRefinement(model, 0.3)((tokens, cond))
    later = model.levels > 0
    expected = -again.log_softmax(-1).gather(-1, predicted[..., None]).squeeze(-1)[:, later].mean()
    assert logs["student_forced"].item() == pytest.approx(expected.item(), abs=1e-12)


def test_student_forcing_asks_for_the_truth(model):
    tokens, cond = some(model)
    again = model.logits(predict(model.logits(tokens, cond)), cond)
    _, logs = SelfRefinement(model, 0.3, "truth")((tokens, cond))
    later = model.levels > 0
    expected = -again.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)[:, later].mean()
    assert logs["student_forced"].item() == pytest.approx(expected.item(), abs=1e-12)


def test_without_weight_gradients_are_those_of_the_plain_loss(model):
    batch = some(model)
    plain = gradients(model, model.loss(*batch)[0])
    ours = gradients(model, SelfRefinement(model, 0.0)(batch)[0])
    assert all(torch.allclose(plain[name], ours[name], rtol=0, atol=1e-12) for name in plain)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_gradient_flows_through_the_predictions(model, temperature):
    """The gradient equals that of a loss whose predictions are constants from elsewhere."""
    tokens, cond = some(model)
    torch.manual_seed(3)
    ours = gradients(model, SelfRefinement(model, 0.7, temperature=temperature)((tokens, cond))[0])
    torch.manual_seed(3)
    with torch.no_grad():
        predicted = predict(model.logits(tokens, cond), temperature)
    later = model.levels > 0
    student = cross_entropy(model.logits(predicted, cond)[:, later], predicted[:, later])
    theirs = gradients(model, cross_entropy(model.logits(tokens, cond), tokens) + 0.7 * student)
    assert all(torch.allclose(theirs[name], ours[name], rtol=0, atol=1e-12) for name in ours)
    assert not predict(model.logits(tokens, cond), temperature).is_floating_point()


def test_labels_are_dropped_once_for_both_passes():
    model = tiny_gpt(label_dropout=0.5, length=4).train()
    seen, logits = [], model.logits
    model.logits = lambda tokens, cond: seen.append(cond) or logits(tokens, cond)
    torch.manual_seed(0)
    SelfRefinement(model)(some(model, 400))
    assert torch.equal(*seen)
    dropped = (seen[0] == model.num_classes).double().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1)


def test_without_labels_a_batch_is_tokens_alone(model):
    tokens, _ = some(model)
    loss, _ = SelfRefinement(model)((tokens,))
    none, _ = SelfRefinement(model)((tokens, None))
    assert loss.item() == none.item()


# Predictions and noise


def test_a_draw_follows_the_distribution_of_its_row():
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(20_000, 2, 3)
    for temperature, expected in ((1.0, [0.1, 0.2, 0.7]), (0.5, [0.01 / 0.54, 0.04 / 0.54, 0.49 / 0.54])):
        drawn = predict(logits, temperature, seeded(0))
        shares = drawn.flatten().bincount(minlength=3) / drawn.numel()
        assert torch.allclose(shares, torch.tensor(expected), atol=0.012)
        both = (drawn[:, 0] == 2).float() @ (drawn[:, 1] == 2).float() / len(drawn)  # rows are independent
        assert both.item() == pytest.approx(expected[2] ** 2, abs=0.015)
    assert (predict(logits) == 2).all()


def test_a_share_of_the_tokens_is_replaced_and_by_any_token():
    tokens = torch.zeros(2000, 10, dtype=torch.long)
    out = replaced(tokens, 0.4, 5, seeded(0))
    assert (out != tokens).double().mean().item() == pytest.approx(0.4 * 4 / 5, abs=0.015)
    assert set(out.unique().tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(out, replaced(tokens, 0.4, 5, seeded(0)))
    assert torch.equal(replaced(tokens, 0.0, 5), tokens)


def test_noise_reaches_what_is_read_and_not_what_is_asked(model):
    tokens, cond = some(model)
    other, _ = some(model, seed=1)
    loss, _ = InputNoise(model, lambda _: other)((tokens, cond))
    expected = -model.logits(other, cond).log_softmax(-1).gather(-1, tokens[..., None]).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    clean, _ = InputNoise(model, partial(replaced, share=0.0, vocab_size=model.vocab_size))((tokens, cond))
    assert clean.item() == pytest.approx(model.loss(tokens, cond)[0].item(), abs=1e-12)


@pytest.mark.parametrize("step", ["sar", "noise"])
def test_a_step_trains(step):
    model = tiny_gpt(dtype=torch.float32, num_classes=0, label_dropout=0.0).requires_grad_(True)
    tokens = (torch.arange(12) + torch.arange(5)[:, None]) % 5
    noise = partial(replaced, share=0.1, vocab_size=5)
    step_fn = SelfRefinement(model, 0.1) if step == "sar" else InputNoise(model, noise)
    history = fit(model, (tokens,), adamw(model, 1e-2), steps=60, batch_size=20, step_fn=step_fn, progress=False)
    assert history.losses[-1] < 0.6 * history.losses[0]
    assert set(history.logs[0]) == ({"teacher_forced", "student_forced"} if step == "sar" else {"nats_per_token"})


# The recipe


def test_the_arms_of_the_recipe_are_what_they_are_called():
    model = tiny_scales(codebook_size=recipe.NEAR + 8)
    tokens, cond = some(model, 50)
    assert recipe.step_of("plain", 0.1, model) is None
    found = {arm: recipe.step_of(arm, 0.1, model) for arm in ("student", "sar")}
    assert {arm: (step.target, step.temperature) for arm, step in found.items()} == {
        "student": ("truth", 0.0),
        "sar": ("prediction", 0.0),
    }
    assert {step.weight for step in found.values()} == {0.1}
    wrong = recipe.step_of("noise", 0.1, model).corrupt(tokens)
    changed = (wrong != tokens).double().mean().item()  # a token may stay what it is
    assert changed == pytest.approx(0.1 * (1 - 1 / recipe.NEAR), abs=0.03)


def test_in_the_true_context_the_last_scale_is_its_share_of_the_whole():
    model = tiny_scales().eval()
    tokens, cond = some(model, 8)
    found = recipe.exposure(model, tokens, cond)
    nll = -model.logits(tokens, cond).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    assert found["nats_per_token"] == pytest.approx(nll.mean().item(), abs=1e-9)
    assert found["last_scale_true"] == pytest.approx(nll[:, 5:].mean().item(), abs=1e-9)
    p = model.logits(predict(model.logits(tokens, cond)), cond)[:, 5:].softmax(-1)
    assert found["entropy_predicted"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-9)
    assert len({*found.values()}) == 7  # three contexts, two numbers each, and the whole


# Bad input


def test_bad_options_are_refused():
    model = markov_bench(0)
    for options, message in (
        (dict(weight=-1.0), "weight of student forcing is -1.0"),
        (dict(weight=float("nan")), "weight of student forcing is nan"),
        (dict(target="teacher"), "target is 'teacher'; it is one of prediction, truth"),
        (dict(temperature=-0.5), "temperature is -0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            SelfRefinement(model, **options)
    with pytest.raises(ValueError, match="share is the part of the tokens to replace, 0 to 1; got 1.5"):
        replaced(torch.zeros(1, 2, dtype=torch.long), 1.5, 4)


def test_bad_batches_are_refused(model):
    tokens, cond = some(model)
    for step in (SelfRefinement(model), InputNoise(model, lambda tokens: tokens)):
        with pytest.raises(ValueError, match="tokens must be long"):
            step((tokens.float(), cond))
        with pytest.raises(ValueError, match="labels must be long"):
            step((tokens, cond[:1]))
    with pytest.raises(ValueError, match="vocabulary"):
        InputNoise(model, lambda tokens: tokens + 100)((tokens, cond))
