"""Axial Transformer: an exact raster order from attention along columns and rows, and a cache of rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import close, learn_by_heart, seeded, wild

from minimal.ar import axial
from minimal.ar.axial import AxialTransformer
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided
from minimal.statistics import all_sequences


def tiny_axial(seed=0, dtype=torch.float64, **changes):
    sizes = dict(vocab_size=5, grid=(3, 4), num_classes=3, dim=16, pairs=1, inner=1, heads=2, hidden=16)
    return wild(AxialTransformer(**(sizes | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def labels(*values):
    return torch.tensor(values)


def moved(model, tokens, cond=None):
    """(N, N): does token j move row i of the logits? In every image, or in none."""
    logits, answer = model.logits(tokens, cond), []
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, cond) != logits).any(-1)
        assert torch.equal(changed.any(0), changed.all(0))
        answer.append(changed.any(0))
    return torch.stack(answer, dim=1)


# Who reads whom


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("grid", [(3, 4), (4, 2), (1, 5), (5, 1)])
def test_row_j_reads_every_token_before_j_and_no_other(grid, pairs, inner):
    model = tiny_axial(grid=grid, pairs=pairs, inner=inner)
    expected = torch.ones(model.length, model.length).tril(-1).bool()
    assert torch.equal(moved(model, random_tokens(model, 2), labels(0, 2)), expected)


def test_without_shift_down_a_row_would_read_its_own_future(monkeypatch):
    model = tiny_axial()
    tokens = random_tokens(model, 2)
    monkeypatch.setattr(axial, "shift_down", lambda x: x)
    row = moved(model, tokens)[4:8, 4:8]
    assert row.all()  # through attention along whole rows


def test_the_two_networks_read_what_they_should():
    model = tiny_axial()
    e = torch.randn(1, 3, 4, 16, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    for i, j in ((0, 2), (1, 0), (2, 3)):
        [up] = torch.autograd.grad(model.look_up(e)[0, i, j].sum(), e)
        reads = up[0].abs().amax(-1) > 0
        assert reads[: i + 1].all() and not reads[i + 1 :].any()  # whole rows, down to its own
        mask = torch.ones(4, 4).tril().bool()
        [left] = torch.autograd.grad(model.look_left(e, mask)[0, i, j].sum(), e)
        reads = left[0].abs().amax(-1) > 0
        assert reads[i, : j + 1].all() and reads.sum() == j + 1  # its own row, up to itself


def test_shifts_bring_zeros_and_move_by_one():
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    assert axial.shift_down(x).flatten().tolist() == [0, 0, 0, 1, 2, 3]
    assert axial.shift_right(x).flatten().tolist() == [0, 1, 2, 0, 4, 5]
    assert axial.shift_right(x, keep=True).flatten().tolist() == [0, 1, 2, 3, 0, 4, 5, 6]


def test_a_canvas_may_end_anywhere():
    model = tiny_axial()
    tokens, cond = random_tokens(model, 2), labels(1, 3)
    full = model.logits(tokens, cond)
    for end in range(1, 13):
        torch.testing.assert_close(model.logits(tokens[:, :end], cond), full[:, :end], **close(torch.float64))


def test_every_row_depends_on_the_label_and_none_is_the_null_class():
    model = tiny_axial()
    tokens = random_tokens(model, 1)
    rows = torch.cat([model.logits(tokens, labels(c)) for c in range(4)])
    assert all((rows[a] != rows[b]).any(-1).all() for a in range(4) for b in range(a))
    assert torch.equal(model.logits(tokens), rows[3:])


# What it costs


@pytest.mark.parametrize("grid", [(3, 4), (6, 5)])
def test_a_pair_of_blocks_attends_to_hw_times_h_plus_w_pairs(monkeypatch, grid):
    pairs, kernel = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, *rest, **options: pairs.append(len(q) * q.shape[2] * k.shape[2]) or kernel(q, k, *rest, **options),
    )
    model = tiny_axial(grid=grid)
    height, width = grid
    model.look_up(torch.zeros(1, height, width, 16, dtype=torch.float64))
    assert sum(pairs) == height * width * (height + width)


def test_a_sample_takes_an_outer_pass_a_row_and_an_inner_pass_a_token():
    model, calls = tiny_axial(grid=(4, 4), pairs=2, inner=2), {"outer": 0, "inner": 0}
    for name in calls:
        block = getattr(model, name)[0]
        block.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    sample_cached(model, 3, cond=labels(0, 1, 2), generator=seeded(0))
    assert calls == {"outer": 3, "inner": 16}  # above the first row there is nothing to look at


# The row cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6], [12], [4, 4, 4], [3, 2, 7]])
def test_cached_rows_equal_uncached_rows(chunks, dtype):
    model = tiny_axial(dtype=dtype, pairs=2, inner=2)
    tokens, cond = random_tokens(model, 3), labels(0, 1, 3)
    full = model.logits(tokens, cond)
    by_count, by_canvas, done = model.new_cache(3), model.new_cache(3), 0
    for n in chunks:
        part = model.logits(tokens, cond, cache=by_count, n=n)
        same = model.logits(tokens[:, : done + n], cond, cache=by_canvas)
        torch.testing.assert_close(part, full[:, done : done + n], **close(dtype))
        assert torch.equal(part, same)
        done += n
        assert by_count.length == by_canvas.length == done


def test_a_cache_may_be_used_again_after_it_was_emptied():
    model = tiny_axial()
    tokens, other, cache = random_tokens(model, 2), random_tokens(model, 2, seed=1), model.new_cache(2)
    model.logits(tokens, cache=cache)
    cache.truncate(0)
    torch.testing.assert_close(model.logits(other, cache=cache), model.logits(other), **close(torch.float64))


@settings(max_examples=20)
@given(st.integers(1, 12), st.data())
def test_truncate_then_extend_otherwise_equals_a_fresh_run(done, data):
    model = tiny_axial()
    starts = [c for c in (0, 4, 8, 12) if c <= done]
    keep = data.draw(st.sampled_from(starts + list(range((done - 1) // 4 * 4, done + 1))))
    tokens, other, cache = random_tokens(model, 2), random_tokens(model, 2, seed=1), model.new_cache(2)
    model.logits(tokens[:, :done], cache=cache)
    cache.truncate(keep)
    mixed = torch.cat((tokens[:, :keep], other[:, keep:]), 1)
    if keep < 12:
        expected = model.logits(mixed)[:, keep:]
        torch.testing.assert_close(model.logits(mixed, cache=cache), expected, **close(torch.float64))


def test_reorder_makes_images_change_places():
    model = tiny_axial()
    tokens, cond, index = random_tokens(model, 3), labels(0, 1, 2), torch.tensor([2, 0, 0])
    cache = model.new_cache(3)
    model.logits(tokens[:, :6], cond, cache=cache)
    cache.reorder(index)
    got = model.logits(tokens[index], cond[index], cache=cache)
    torch.testing.assert_close(got, model.logits(tokens, cond)[index, 6:], **close(torch.float64))


# Sampling


@pytest.mark.parametrize("scale", [None, 2.0])
def test_cached_and_uncached_samples_are_equal(scale):
    model = tiny_axial() if scale is None else Guided(tiny_axial(), scale)
    options = dict(cond=labels(0, 1, 2), temperature=0.9)
    fast = sample_cached(model, 3, generator=seeded(1), **options)
    slow = sample_uncached(model, 3, generator=seeded(1), **options)
    assert torch.equal(fast.tokens, slow.tokens)


def test_a_sample_does_not_depend_on_the_batch_it_comes_in():
    model, cond = tiny_axial(), torch.arange(6) % 3
    whole = sample_cached(model, 6, cond=cond, generator=seeded(2)).tokens
    generator = seeded(2)
    parts = [sample_cached(model, len(c), cond=c, generator=generator).tokens for c in cond.split((1, 3, 2))]
    assert torch.equal(whole, torch.cat(parts))


# Likelihood


@pytest.mark.parametrize("cond", [None, 1])
def test_the_probabilities_of_all_pictures_sum_to_one(cond):
    model = tiny_axial(vocab_size=3, grid=(2, 2))
    logprob = model.logprob(all_sequences(3, 4), None if cond is None else torch.full((81,), cond))
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_likelihood_does_not_depend_on_how_rows_are_batched():
    model = tiny_axial()
    tokens, cond = random_tokens(model, 3), labels(0, 1, 2)
    for chunks in ([1] * 12, [4] * 3, [6, 6]):
        cache = model.new_cache(3)
        logp = torch.cat([model.logits(tokens, cond, cache=cache, n=n).log_softmax(-1) for n in chunks], 1)
        got = logp.gather(-1, tokens[..., None]).sum((1, 2))
        torch.testing.assert_close(got, model.logprob(tokens, cond), rtol=1e-10, atol=1e-10)


def test_the_first_prediction_is_uniform():
    model = AxialTransformer(17, (4, 4), num_classes=3, dim=16, pairs=1, heads=2)
    assert model.loss(torch.randint(17, (2, 16)))[0].item() == pytest.approx(math.log(17), rel=1e-6)


def test_a_tiny_model_learns_four_pictures_by_heart():
    torch.manual_seed(0)
    model = AxialTransformer(4, (2, 3), num_classes=4, dim=16, pairs=1, heads=2, label_dropout=0.0)
    assert learn_by_heart(model, steps=80) < 0.05
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_the_constructor_is_remembered():
    model = tiny_axial()
    again = AxialTransformer(**model.config)
    again.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 2)
    assert torch.equal(again.double().eval().logits(tokens), model.logits(tokens))


# Bad input


def test_other_caches_are_refused():
    model, tokens = tiny_axial(), torch.zeros(2, 12, dtype=torch.long)
    with pytest.raises(ValueError, match="the cache that new_cache makes, got a KVCache"):
        model.logits(tokens, cache=KVCache(1, 2, 2, 12, 8))
    with pytest.raises(ValueError, match="made of KVCaches for 12 tokens, got StaticKVCache"):
        model.new_cache(2, kind=StaticKVCache)
    with pytest.raises(ValueError, match="12 tokens, got KVCache, 20"):
        model.new_cache(2, 20)


@pytest.mark.parametrize("length", [-1, 1, 3, 7])
def test_a_row_that_was_left_cannot_be_entered_in_the_middle(length):
    model, cache = tiny_axial(), tiny_axial().new_cache(2)
    model.logits(torch.zeros(2, 6, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="from token 6 one can return"):
        cache.truncate(length)
