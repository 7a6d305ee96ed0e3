"""A masked model reads all that is visible, learns what is hidden, and is a likelihood once it is weighed right."""

import math
from itertools import permutations

import pytest
import torch
from tiny import seeded, wild

from minimal.ar.masked import MaskedTransformer, cosine, hide, linear
from minimal.nn.masks import not_after
from minimal.statistics import all_sequences


def tiny_masked(seed=0, dtype=torch.float64, **changes):
    sizes = dict(vocab_size=5, length=12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2, hidden=16)
    return wild(MaskedTransformer(**(sizes | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def half_masked(model, batch=2):
    """Tokens (B, N), and a canvas on which those of every other place are hidden."""
    tokens, hidden = random_tokens(model, batch), torch.arange(model.length) % 2 == 1
    return tokens, tokens.masked_fill(hidden, model.mask), hidden


# Who sees what


def test_every_visible_token_moves_every_row():
    model = tiny_masked()
    _, canvas, hidden = half_masked(model)
    before = model.logits(canvas)
    for j in (~hidden).nonzero().flatten().tolist():
        other = canvas.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        assert (model.logits(other) != before).any(-1).all(), f"place {j} does not reach every row"


def test_hiding_a_token_and_revealing_one_move_every_row():
    model = tiny_masked()
    tokens, canvas, _ = half_masked(model)
    before = model.logits(canvas)
    for j in range(model.length):
        other = canvas.clone()
        other[:, j] = torch.where(canvas[:, j] == model.mask, tokens[:, j], model.mask)
        assert (model.logits(other) != before).any(-1).all()


def test_what_lies_under_a_mask_moves_nothing():
    """The loss and the bound read the hidden tokens as targets only: their rows are those of the canvas."""
    model = tiny_masked()
    tokens, canvas, hidden = half_masked(model)
    seen, logits = [], model.logits
    model.logits = lambda canvas, cond=None: seen.append(canvas) or logits(canvas, cond)
    for measure in (model.loss, model.any_order_nats):
        seen.clear()
        measure(tokens, generator=seeded(3))
        under = seen[0] == model.mask
        assert under.any()
        seen.clear()
        measure(torch.where(under, (tokens + 1) % model.vocab_size, tokens), generator=seeded(3))
        assert (seen[0][under] == model.mask).all() and torch.equal(seen[0][~under], tokens[~under])
    del model.logits


def test_the_mask_of_a_model_without_order_is_full():
    assert not_after.square(torch.zeros(12, dtype=torch.long)).all()


def test_every_row_depends_on_the_label_and_none_is_the_null_class():
    model = tiny_masked()
    _, canvas, _ = half_masked(model, 1)
    rows = torch.cat([model.logits(canvas, torch.tensor([c])) for c in range(4)])
    assert all((rows[a] != rows[b]).any(-1).all() for a in range(4) for b in range(a))
    assert torch.equal(model.logits(canvas), rows[3:])


def test_on_an_empty_canvas_places_differ():
    model = tiny_masked()
    rows = model.logits(torch.full((1, 12), model.mask))[0]
    assert (rows[:, None] != rows[None]).any(-1).sum() == 12 * 11


# What is hidden


def test_hide_hides_exactly_so_many_and_every_place_equally_often():
    tokens, counts = torch.zeros(20_000, 6, dtype=torch.long), torch.full((20_000,), 2)
    canvas, hidden = hide(tokens, counts, 5, seeded(0))
    assert (hidden.sum(1) == 2).all() and torch.equal(hidden, canvas == 5)
    assert (hidden.double().mean(0) - 1 / 3).abs().max() < 4 * (2 / 9 / 20_000) ** 0.5


def test_training_hides_as_many_as_the_cosine_says():
    model = tiny_masked(length=8, grid_width=None)
    seen, logits = [], model.logits
    model.logits = lambda canvas, cond=None: seen.append(canvas) or logits(canvas, cond)
    model.loss(random_tokens(model, 6_000), generator=seeded(0))
    counts = (seen[0] == model.mask).sum(1)
    # ceil(cos(pi r / 2) N) >= k  <=>  cos(pi r / 2) > (k - 1) / N  <=>  r < 2 / pi acos((k - 1) / N)
    for k in range(1, 9):
        expected = 2 / math.pi * math.acos((k - 1) / 8)
        assert (counts >= k).double().mean().item() == pytest.approx(expected, abs=0.026)
    del model.logits


def test_schedules_run_from_all_to_nothing():
    r = torch.linspace(0, 1, 11, dtype=torch.float64)
    for schedule in (cosine, linear):
        share = schedule(r)
        assert share[0] == 1 and abs(share[-1]) < 1e-12 and (share.diff() < 0).all()
    assert cosine(r[5:6]) > linear(r[5:6])


# Loss and likelihood


def test_the_loss_is_the_mean_over_hidden_tokens_only():
    model = tiny_masked()
    tokens, cond = random_tokens(model, 4), torch.tensor([0, 1, 2, 3])
    seen, logits = [], model.logits
    model.logits = lambda canvas, cond=None: seen.append(canvas) or logits(canvas, cond)
    loss, logs = model.loss(tokens, cond, generator=seeded(1))
    del model.logits
    logp = model.logits(seen[0], cond).log_softmax(-1)
    hidden = [(b, j) for b in range(4) for j in range(12) if seen[0][b, j] == model.mask]
    expected = -sum(logp[b, j, tokens[b, j]].item() for b, j in hidden) / len(hidden)
    assert loss.item() == pytest.approx(expected, rel=1e-9) and logs["nats_per_hidden_token"] == loss


def test_training_smooths_targets_and_validation_does_not():
    tokens = random_tokens(tiny_masked(), 4)
    for smoothing in (0.0, 0.1):
        model = tiny_masked(label_smoothing=smoothing, label_dropout=0.0)
        plain = model.loss(tokens, generator=seeded(1))[0].item()
        smooth = model.train().loss(tokens, generator=seeded(1))[0].item()
        assert (abs(plain - smooth) < 1e-9) == (smoothing == 0)


@pytest.mark.parametrize("cond", [None, 1])
@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]])
def test_the_probabilities_of_all_sequences_sum_to_one_in_any_order(order, cond):
    model = tiny_masked(vocab_size=3, length=4, grid_width=2)
    everything = all_sequences(3, 4)
    label = None if cond is None else torch.full((81,), cond)
    logprob = model.logprob(everything, label, None if order is None else torch.tensor(order))
    assert logprob.dtype == torch.float64 and logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_weighted_loss_is_the_mean_over_all_orders():
    """All 24 orders by the chain rule, against every set of hidden tokens with the weight 1 / k."""
    model = tiny_masked(vocab_size=3, length=4, grid_width=2)
    tokens = random_tokens(model, 3)
    by_orders = -torch.stack([model.logprob(tokens, order=torch.tensor(o)) for o in permutations(range(4))]).mean(0)
    estimates = model.any_order_nats(tokens.repeat(2000, 1), draws=2, generator=seeded(0)).view(2000, 3)
    error = estimates.std(0) / 2000**0.5
    assert ((estimates.mean(0) - by_orders).abs() < 4 * error).all()
    sums = torch.zeros(3, dtype=torch.float64)
    for code in range(1, 16):
        hidden = torch.tensor([code >> j & 1 for j in range(4)], dtype=torch.bool)
        k = int(hidden.sum())
        read = model.read(tokens.masked_fill(hidden, model.mask), tokens, None)
        sums -= read[:, hidden].sum(1) / k / math.comb(4, k)  # N E_k: N times 1 / N
    torch.testing.assert_close(sums, by_orders, rtol=0, atol=1e-9)


def test_every_row_of_the_bound_is_divided_by_its_own_count():
    model, seen = tiny_masked(), []
    tokens, logits = random_tokens(model, 5), model.logits
    model.logits = lambda canvas, cond=None: seen.append(canvas) or logits(canvas, cond)
    got = model.any_order_nats(tokens, draws=2, generator=seeded(0))
    del model.logits
    for b in range(5):
        expected = 0.0
        for canvas in seen:
            hidden = canvas[b] == model.mask
            logp = model.logits(canvas[b : b + 1]).log_softmax(-1)[0, hidden, tokens[b, hidden]]
            expected -= 12 / int(hidden.sum()) * logp.sum().item() / 2
        assert got[b].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("draws", [1, 3, 12])
def test_draws_of_the_bound_are_spread_over_all_counts(draws):
    model = tiny_masked()
    seen, logits = [], model.logits
    model.logits = lambda canvas, cond=None: seen.append((canvas == model.mask).sum(1)) or logits(canvas, cond)
    model.any_order_nats(random_tokens(model, 200), draws=draws, generator=seeded(0))
    for d, counts in enumerate(seen):
        assert counts.min() >= 1 + 12 * d // draws and counts.max() <= -(-12 * (d + 1) // draws)
    assert draws < 12 or all((counts == d + 1).all() for d, counts in enumerate(seen))


def test_a_batch_and_its_halves_have_the_same_likelihood():
    model, cond = tiny_masked(), torch.tensor([0, 1, 2, 3])
    tokens = random_tokens(model, 4)
    parts = [model.logprob(tokens[i : i + 1], cond[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), model.logprob(tokens, cond), rtol=0, atol=1e-10)


def test_the_first_prediction_is_uniform():
    model = MaskedTransformer(17, 16, num_classes=10, grid_width=4, dim=16, layers=2, heads=2)
    tokens = random_tokens(model, 4)
    assert model.eval().loss(tokens)[0].item() == pytest.approx(math.log(17), rel=1e-6)
    torch.testing.assert_close(model.any_order_nats(tokens), torch.full((4,), 16 * math.log(17)))


@pytest.mark.slow
def test_a_tiny_model_learns_four_pictures_by_heart():
    torch.manual_seed(0)
    model = MaskedTransformer(4, 6, num_classes=4, dim=16, layers=1, heads=2, label_dropout=0.0, label_smoothing=0.0)
    tokens, cond = random_tokens(model, 4), torch.arange(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = model.loss(tokens, cond)
        loss.backward()
        optimizer.step()
    assert model.eval().any_order_nats(tokens, cond, draws=6).max() < 0.5
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_the_constructor_is_remembered():
    model = tiny_masked()
    again = MaskedTransformer(**model.config)
    again.load_state_dict(model.state_dict())
    _, canvas, _ = half_masked(model)
    assert torch.equal(again.double().eval().logits(canvas), model.logits(canvas))


# Bad input

TOKENS = torch.zeros(2, 12, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TOKENS.float(),), r"tokens must be long \(B, N\)"),
        ((TOKENS + 5,), "tokens run from 5 to 5, the vocabulary from 0 to 4"),  # MASK is no data
        ((TOKENS, torch.tensor([0, 4])), "labels run from 0 to 4"),
        ((TOKENS[:, :5],), "reads whole canvases of 12 tokens"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    model = tiny_masked()
    for entrance in (model.loss, model.any_order_nats, model.logprob):
        with pytest.raises(ValueError, match=message):
            entrance(*arguments)


def test_a_cache_and_bad_orders_are_refused():
    model = tiny_masked()
    with pytest.raises(ValueError, match="without a cache"):
        model.logits(TOKENS, cache=object())
    for order in (torch.zeros(12, dtype=torch.long), torch.arange(5)):
        with pytest.raises(ValueError, match="each of the 12 places once"):
            model.logprob(TOKENS, order=order)
