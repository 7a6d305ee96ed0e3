"""Attention: the kernel against the definition, grouped queries against repeated heads, masks against gradients."""

import pytest
import torch
from tiny import close, seeded, wild

from minimal.nn.attention import Attention, attention_weights, plain_attention
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.nn.masks import ancestor, before, not_after, prefix, same, sink, window
from minimal.nn.rope import rotary

N = 12
RASTER = torch.arange(N)
SCALES = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3])
DIAGONALS = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5])  # of a 3 x 4 grid, stored as they are generated
TREE = torch.ones(N, N).tril().bool() & (torch.arange(N)[:, None] % 3 == torch.arange(N) % 3)  # three branches

# every predicate, alone where it is causal, else in the company that makes it so; with levels
MASKS = {
    "raster": (not_after, RASTER),
    "scales": (not_after, SCALES),
    "diagonals": (not_after, DIAGONALS),
    "before": (before | sink(1), SCALES),  # the sink gives the first token something to see
    "same": (same, SCALES),
    "window": (not_after & window(5), RASTER),
    "window of scales": (not_after & window(4), SCALES),
    "streaming": (not_after & (window(3) | sink(2)), RASTER),
    "prefix": (not_after | prefix(4), torch.tensor([0] * 4 + [*range(4, N)])),
    "prefix of scales": (not_after & (prefix(4) | same), SCALES),
    "not same": (not_after & ~same | window(1) & ~window(0), SCALES),
    "tree": (ancestor(TREE), RASTER),
}

DTYPES = [torch.float32, torch.float64]


def attention(kv_heads=2, dtype=torch.float64, heads=4):
    return wild(Attention(16, heads, kv_heads), seed=heads + kv_heads, std=0.5).to(dtype)


def vectors(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed)).to(dtype)


def heads(kv_heads, dtype=torch.float64, queries=N):
    """Queries (2, 4, n, 8), keys and values (2, G, N, 8)."""
    return (
        vectors(2, 4, queries, 8, dtype=dtype),
        vectors(2, kv_heads, N, 8, dtype=dtype, seed=1),
        vectors(2, kv_heads, N, 8, dtype=dtype, seed=2),
    )


# The definition


def test_the_output_is_the_mean_of_the_values_under_the_softmax_of_scaled_products():
    q, k, v = heads(2)
    out = plain_attention(q, k, v)
    for b, h, i in [(0, 0, 0), (1, 1, 4), (0, 2, 11), (1, 3, 7)]:
        group = h // 2  # heads 0, 1 share the first key-value head, heads 2, 3 the second
        weights = torch.stack([q[b, h, i] @ k[b, group, j] / 8**0.5 for j in range(N)]).exp()
        expected = sum(w * v[b, group, j] for j, w in enumerate(weights / weights.sum()))
        torch.testing.assert_close(out[b, h, i], expected, **close(torch.float64))


@pytest.mark.parametrize("name", MASKS)
def test_weights_sum_to_one_and_vanish_exactly_where_the_mask_forbids(name):
    mask, levels = MASKS[name]
    allowed = mask.square(levels)
    weights = attention_weights(*heads(2)[:2], allowed)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, N).double())
    assert torch.equal(weights > 0, allowed.expand_as(weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_fused_kernel_computes_the_definition(kv_heads, dtype):
    model, x = attention(kv_heads, dtype), vectors(2, N, 16, dtype=dtype)
    rotation = rotary(RASTER[:, None], model.head_dim)
    for mask, levels in MASKS.values():
        allowed = mask.square(levels)
        plain = plain_attention(*model.project(x, rotation), allowed).transpose(1, 2).flatten(2)
        torch.testing.assert_close(model(x, rotation, allowed), model.out(plain), **close(dtype))


def test_kernel_and_definition_have_the_same_gradient():
    model, allowed = attention().requires_grad_(True), not_after.square(SCALES)
    x, direction = vectors(2, N, 16), vectors(2, N, 16, seed=1)
    plain = model.out(plain_attention(*model.project(x), allowed).transpose(1, 2).flatten(2))
    expected = torch.autograd.grad((plain * direction).sum(), model.parameters())
    found = torch.autograd.grad((model(x, mask=allowed) * direction).sum(), model.parameters())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **close(torch.float64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_the_definition_can_be_differentiated_forwards():
    q, k, v = heads(2)
    direction = vectors(*q.shape, seed=3)
    _, slope = torch.func.jvp(lambda q: plain_attention(q, k, v, not_after.square(RASTER)), (q,), (direction,))
    ahead, behind = (plain_attention(q + e * direction, k, v, not_after.square(RASTER)) for e in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-5, rtol=0, atol=1e-8)


# Grouped queries


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_are_ordinary_attention_with_repeated_key_value_heads(kv_heads):
    grouped, ordinary = attention(kv_heads), attention(kv_heads=4)
    q, k, v = grouped.qkv.weight.unflatten(0, (-1, grouped.head_dim)).split((4, kv_heads, kv_heads))
    repeated = torch.cat((q, k.repeat_interleave(4 // kv_heads, 0), v.repeat_interleave(4 // kv_heads, 0)))
    ordinary.qkv.weight.copy_(repeated.flatten(0, 1))
    ordinary.out.weight.copy_(grouped.out.weight)
    x, allowed = vectors(2, N, 16), not_after.square(RASTER)
    rotation = rotary(RASTER[:, None], 4)
    torch.testing.assert_close(grouped(x, rotation, allowed), ordinary(x, rotation, allowed), **close(torch.float64))


def test_grouped_queries_store_only_their_key_value_heads():
    model = attention(kv_heads=1)
    q, k, v = model.project(vectors(2, N, 16))
    assert q.shape == (2, 4, N, 4) and k.shape == v.shape == (2, 1, N, 4)
    assert model.qkv.weight.shape == (4 * 4 + 2 * 4, 16)


# Who sees whom


@pytest.mark.parametrize("name", MASKS)
def test_gradients_reach_what_the_mask_lets_through_and_nothing_else(name):
    mask, levels = MASKS[name]
    model, x, allowed = attention(), vectors(1, N, 16).requires_grad_(), mask.square(levels)
    out = model(x, rotary(RASTER[:, None], model.head_dim), allowed)
    direction = vectors(16, seed=3)
    for i in range(N):
        reach = torch.autograd.grad(out[0, i] @ direction, x, retain_graph=True)[0][0].abs().sum(-1) > 0
        sees_nobody_else = allowed[i].sum() == 1  # one key has weight 1 whatever the query says
        if sees_nobody_else:
            assert torch.equal(reach, allowed[i])
        else:
            assert torch.equal(reach, allowed[i] | (RASTER == i))  # the query itself is made from x_i


@pytest.mark.parametrize("name", MASKS)
def test_perturbing_a_position_moves_those_who_see_it_and_no_bit_of_the_others(name):
    mask, levels = MASKS[name]
    model, x, allowed = attention(), vectors(1, N, 16), mask.square(levels)
    out = model(x, mask=allowed)[0]
    for j in range(N):
        moved = x.clone()
        moved[0, j] += 1.0
        changed, others = (model(moved, mask=allowed)[0] != out).any(-1), j != RASTER
        assert torch.equal(changed[others], allowed[:, j][others])


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_feeding_level_by_level_through_a_cache_equals_one_masked_pass(name, kv_heads, kind):
    mask, levels = MASKS[name]
    for dtype in DTYPES:
        model, x = attention(kv_heads, dtype), vectors(2, N, 16, dtype=dtype)
        full = model(x, rotary(RASTER[:, None], model.head_dim), mask.square(levels))

        cache = kind(1, 2, kv_heads, N, model.head_dim, dtype=dtype)
        cache.k.fill_(9.0)  # slots not written yet must stay unseen, whatever they hold
        cache.v.fill_(-9.0)
        parts = []
        for part in x.split(levels.unique_consecutive(return_counts=True)[1].tolist(), dim=1):
            n = part.shape[1]
            query, allowed = cache.positions(n), mask(cache.positions(n), cache.key_positions(n), levels)
            rotation = rotary(query[..., None], model.head_dim)
            if query.ndim == 2:
                rotation, allowed = rotation[:, None], allowed[:, None]
            parts.append(model(part, rotation, allowed, cache))
            cache.advance(n)
        torch.testing.assert_close(torch.cat(parts, dim=1), full, **close(dtype))


def test_moving_all_positions_together_changes_nothing():
    model, x, allowed = attention(), vectors(2, N, 16), not_after.square(RASTER)
    here, there = rotary(RASTER[:, None], 4), rotary(RASTER[:, None] + 100, 4)
    torch.testing.assert_close(model(x, here, allowed), model(x, there, allowed), **close(torch.float64))
    assert (model(x, here, allowed) - model(x, None, allowed)).abs().max() > 1e-3


@pytest.mark.parametrize("dim, heads, kv_heads", [(16, 3, None), (16, 4, 3), (16, 2, 4)])
def test_heads_that_do_not_divide_are_refused(dim, heads, kv_heads):
    with pytest.raises(ValueError, match=f"dim {dim} must be a multiple of heads {heads}"):
        Attention(dim, heads, kv_heads)
