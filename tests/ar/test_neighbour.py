"""Next neighbour: diagonals that see what is nearer to the corner, two heads, a cache one diagonal behind the rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import close, learn_by_heart, seeded, wild

from minimal.ar.neighbour import NextNeighbour
from minimal.nn.cache import SlidingKVCache, StaticKVCache
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided
from minimal.statistics import all_sequences


def tiny_neighbour(seed=0, dtype=torch.float64, **changes):
    sizes = dict(vocab_size=5, grid=(3, 4), num_classes=3, dim=16, layers=1, heads=2, hidden=16)
    return wild(NextNeighbour(**(sizes | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def labels(*values):
    return torch.tensor(values)


# The order


def test_tokens_come_by_distance_from_the_corner_and_from_top_to_bottom():
    model = tiny_neighbour(grid=(3, 3))
    assert model.order.tolist() == [0, 1, 3, 2, 4, 6, 5, 7, 8]
    assert model.levels.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 4]
    wide = tiny_neighbour(grid=(2, 4))
    assert wide.order.tolist() == [0, 1, 4, 2, 5, 3, 6, 7]


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5))
def test_on_every_grid_each_token_has_its_own_place_and_parents_on_the_diagonal_before(rows, columns):
    model = tiny_neighbour(grid=(rows, columns))
    assert sorted(model.order.tolist()) == list(range(rows * columns))
    assert model.levels.max() == rows + columns - 2 and (model.levels.diff() >= 0).all()
    place = [divmod(k, columns) for k in model.order.tolist()]
    assert model.coordinates[1:].tolist() == [list(where) for where in place]
    for k, (row, column) in enumerate(place):
        found = {place[p - 1] for p, s in zip(model.parents[k].tolist(), model.share[k].tolist()) if s and p}
        assert found == {(r, c) for r, c in ((row, column - 1), (row - 1, column)) if r >= 0 and c >= 0}
        shares = sorted(model.share[k].tolist())
        assert shares == ([0.5, 0.5] if k == 0 or len(found) == 2 else [0.0, 1.0])
        for p in model.parents[k][model.share[k] > 0].tolist():
            assert p == 0 if k == 0 else model.levels[p - 1] == model.levels[k] - 1  # never its own diagonal


def test_the_label_stands_outside_in_front_of_the_corner():
    assert tiny_neighbour().coordinates[:4].tolist() == [[-1, -1], [0, 0], [0, 1], [1, 0]]


# The canvas


@pytest.mark.parametrize("grid", [(3, 4), (4, 2), (1, 5), (5, 1)])
def test_a_token_moves_every_row_of_later_diagonals_and_no_other(grid):
    model = tiny_neighbour(grid=grid)
    tokens, cond = random_tokens(model, 2), labels(0, 2)
    logits = model.logits(tokens, cond)
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, cond) != logits).any(-1)
        later = model.levels > model.levels[j]
        assert changed[:, later].all() and not changed[:, ~later].any()


def test_where_two_parents_meet_their_logits_are_averaged():
    model = tiny_neighbour()
    tokens, cond = random_tokens(model, 2), labels(0, 1)
    right, below, share = model.votes(tokens, cond)
    assert right.shape == below.shape == (2, 12, 5) and share.shape == (12, 2)
    logits = model.logits(tokens, cond)
    for k, (row, column) in enumerate(model.coordinates[1:].tolist()):
        if row and column or not row and not column:
            expected = (right[:, k] + below[:, k]) / 2
        else:
            expected = right[:, k] if column else below[:, k]
        torch.testing.assert_close(logits[:, k], expected, rtol=0, atol=0)


def test_each_head_is_read_at_its_own_parent():
    model, heads, streams = tiny_neighbour(), {}, []
    for name in ("right", "below"):
        getattr(model, name).register_forward_hook(lambda _, inputs, __, name=name: heads.update({name: inputs[0]}))
    for block in model.blocks:
        block.register_forward_hook(lambda *call: streams.append(call[-1]))
    model.logits(random_tokens(model, 1))
    number = {tuple(where): k for k, where in enumerate(model.coordinates.tolist())}  # inputs by place
    right, below = model.right_norm(streams[-2]), model.below_norm(streams[-1])
    for k, (row, column) in enumerate(model.coordinates[1:].tolist()):
        if column:
            assert torch.equal(heads["right"][0, k], right[0, number[row, column - 1]])
        if row:
            assert torch.equal(heads["below"][0, k], below[0, number[row - 1, column]])
    assert torch.equal(heads["right"][0, 0], right[0, 0]) and torch.equal(heads["below"][0, 0], below[0, 0])


def test_every_row_depends_on_the_label_and_none_is_the_null_class():
    model = tiny_neighbour()
    tokens = random_tokens(model, 1)
    rows = torch.cat([model.logits(tokens, labels(c)) for c in range(4)])
    assert all((rows[a] != rows[b]).any(-1).all() for a in range(4) for b in range(a))
    assert torch.equal(model.logits(tokens), rows[3:])


# The cache: diagonals are replayed, one or several at a time


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("diagonals", [[1] * 6, [6], [2, 1, 3], [1, 5], [5, 1]])
def test_cached_rows_equal_uncached_rows(diagonals, dtype):
    model = tiny_neighbour(dtype=dtype)
    tokens, cond = random_tokens(model, 3), labels(0, 1, 3)
    full, cache, done = model.logits(tokens, cond), model.new_cache(3), 0
    for many in diagonals:
        first, done = model.bounds[done], done + many
        last = model.bounds[done]
        part = model.logits(tokens[:, :last], cond, cache=cache)
        torch.testing.assert_close(part, full[:, first:last], **close(dtype))
        assert cache.length == last
    cache = model.new_cache(3)
    parts = [model.logits(tokens, cond, cache=cache, n=n) for n in (1, 2, 6, 3)]
    torch.testing.assert_close(torch.cat(parts, 1), full, **close(dtype))


def test_a_diagonal_is_computed_from_the_tokens_of_the_one_before():
    model, fed = tiny_neighbour(), []
    model.embedding.register_forward_hook(lambda _, arguments, __: fed.append(arguments[0].shape[1]))
    sample_cached(model, 2, generator=seeded(0))
    assert fed == [1, 1, 2, 3, 3, 2]  # the label, then diagonals of 1, 2, 3, 3, 2; nobody reads the last token


def test_truncate_then_extend_otherwise_equals_a_fresh_run():
    model = tiny_neighbour()
    tokens, other = random_tokens(model, 2), random_tokens(model, 2, seed=1)
    for keep in model.bounds[:-1]:
        mixed, cache = torch.cat((tokens[:, :keep], other[:, keep:]), 1), model.new_cache(2)
        model.logits(tokens, cache=cache)
        cache.truncate(keep)
        torch.testing.assert_close(
            model.logits(mixed, cache=cache), model.logits(mixed)[:, keep:], **close(torch.float64)
        )


# Sampling


@pytest.mark.parametrize("grid", [(4, 4), (3, 4)])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_cached_and_uncached_samples_are_equal_in_as_many_passes_as_diagonals(grid, scale):
    model = tiny_neighbour(grid=grid)
    model = model if scale is None else Guided(model, scale)
    options = dict(cond=labels(0, 1, 2), temperature=0.9)
    fast = sample_cached(model, 3, generator=seeded(1), **options)
    slow = sample_uncached(model, 3, generator=seeded(1), **options)
    assert torch.equal(fast.tokens, slow.tokens)
    assert fast.trace.forwards["target"] == grid[0] + grid[1] - 1
    assert fast.trace.positions["target"] == 3 * grid[0] * grid[1]


def test_a_sample_does_not_depend_on_the_batch_it_comes_in():
    model, cond = tiny_neighbour(), torch.arange(6) % 3
    whole = sample_cached(model, 6, cond=cond, generator=seeded(2)).tokens
    generator = seeded(2)
    parts = [sample_cached(model, len(c), cond=c, generator=generator).tokens for c in cond.split((1, 3, 2))]
    assert torch.equal(whole, torch.cat(parts))


def test_a_guidance_schedule_meets_the_right_rows():
    model, scale = tiny_neighbour(), torch.linspace(0, 3, 12)
    tokens, cond = random_tokens(model, 2), labels(0, 2)
    guided = Guided(model, scale)
    conditional, null = model.logits(tokens, cond), model.logits(tokens)
    expected = null + scale[:, None] * (conditional - null)
    cache = guided.new_cache(2)
    parts = [guided.logits(tokens[:, :end], cond, cache=cache) for end in model.bounds[1:]]
    torch.testing.assert_close(torch.cat(parts, 1), expected, **close(torch.float32))


# Likelihood


@pytest.mark.parametrize("cond", [None, 1])
def test_the_probabilities_of_all_pictures_sum_to_one(cond):
    model = tiny_neighbour(vocab_size=3, grid=(2, 2))
    everything = all_sequences(3, 4)
    logprob = model.logprob(everything, None if cond is None else torch.full((81,), cond))
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_samples_follow_the_likelihood():
    model, n = tiny_neighbour(vocab_size=2, grid=(2, 2)), 20_000
    everything = all_sequences(2, 4)
    p = model.logprob(everything).exp()
    drawn = sample_cached(model, n, generator=seeded(3)).tokens
    number = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    which = (everything * torch.tensor([8, 4, 2, 1])).sum(1)
    share = torch.bincount(number, minlength=16)[which] / n
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_the_likelihood_does_not_depend_on_how_diagonals_are_batched():
    model = tiny_neighbour()
    tokens, cond = random_tokens(model, 3), labels(0, 1, 2)
    whole = model.logprob(tokens, cond)
    for ends in (model.bounds[1:], model.bounds[2::2], model.bounds[3::3]):
        cache, parts = model.new_cache(3), []
        for end in ends:
            parts.append(model.logits(tokens[:, :end], cond, cache=cache).log_softmax(-1))
        logp = torch.cat(parts, 1).gather(-1, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(logp, whole, rtol=1e-10, atol=1e-10)


def test_the_loss_is_minus_logprob_per_token_and_uniform_at_the_start():
    model, cond = tiny_neighbour(), labels(0, 1, 3)
    tokens = random_tokens(model, 3)
    loss, _ = model.loss(tokens, cond)
    assert loss.item() == pytest.approx(-model.logprob(tokens, cond).mean().item() / 12, rel=1e-6)
    fresh = NextNeighbour(17, (4, 4), num_classes=3, dim=16, layers=1, heads=2)
    assert fresh.loss(torch.randint(17, (2, 16)))[0].item() == pytest.approx(math.log(17), rel=1e-6)


def test_a_tiny_model_learns_four_pictures_by_heart():
    torch.manual_seed(0)
    model = NextNeighbour(4, (2, 3), num_classes=4, dim=16, layers=1, heads=2, label_dropout=0.0)
    assert learn_by_heart(model) < 0.05
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_the_constructor_is_remembered():
    model = tiny_neighbour()
    again = NextNeighbour(**model.config)
    again.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 2)
    assert torch.equal(again.double().eval().logits(tokens), model.logits(tokens))


# Bad input


@pytest.mark.parametrize("length", [2, 4, 7, 13])
def test_half_a_diagonal_is_refused(length):
    model = tiny_neighbour()
    with pytest.raises(
        ValueError, match=rf"{length} tokens are not whole diagonals, which end at \[1, 3, 6, 9, 11, 12"
    ):
        model.logits(torch.zeros(2, length, dtype=torch.long))


@pytest.mark.parametrize("kind", [StaticKVCache, SlidingKVCache])
def test_a_cache_of_another_kind_is_refused(kind):
    model = tiny_neighbour()
    with pytest.raises(ValueError, match=f"need a KVCache, got a {kind.__name__}"):
        model.logits(torch.zeros(2, 1, dtype=torch.long), cache=model.new_cache(2, kind=kind))
