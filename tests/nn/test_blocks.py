"""The transformer block: its formula, its causality, its cache, and weights that start at the right size."""

import pytest
import torch
import torch.nn.functional as F
from tiny import Stack, close, seeded, wild
from torch import nn

from minimal.nn.blocks import Block, SwiGLU, init_weights
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.nn.masks import not_after, sink, window

N = 9
RASTER = torch.arange(N)
SCALES = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
MASKS = {
    "raster": (not_after, RASTER),
    "scales": (not_after, SCALES),
    "streaming": (not_after & (window(3) | sink(1)), RASTER),
}


def vectors(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed)).to(dtype)


def test_swiglu_is_a_gated_product():
    model, x = wild(SwiGLU(6, 5), seed=0).double(), vectors(2, 3, 6)
    gate, up = model.gate_up.weight[:5], model.gate_up.weight[5:]
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ model.out.weight.T
    torch.testing.assert_close(model(x), expected, **close(torch.float64))


def test_a_block_adds_attention_then_feed_forward_each_on_normalised_input():
    block, x = wild(Block(16, 4), seed=0).double(), vectors(2, N, 16)

    def norm(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    h = x + block.attention(norm(x))
    torch.testing.assert_close(block(x), h + block.feed_forward(norm(h)), **close(torch.float64))


def test_a_block_whose_output_weights_are_zero_is_the_identity():
    block, x = Block(16, 4).requires_grad_(False), vectors(2, N, 16, dtype=torch.float32)
    block.attention.out.weight.zero_()
    block.feed_forward.out.weight.zero_()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("dim", [96, 384, 768])
def test_the_gated_feed_forward_has_about_as_many_weights_as_a_plain_one_four_times_as_wide(dim):
    block = Block(dim, 4)
    assert sum(p.numel() for p in block.feed_forward.parameters()) == pytest.approx(8 * dim**2, rel=0.06)
    assert block.feed_forward.out.in_features % 32 == 0


def test_even_the_narrowest_block_has_a_feed_forward():
    assert Block(4, 2).feed_forward.out.in_features > 0


def test_dropout_acts_in_training_only_and_on_both_branches():
    x = vectors(2, N, 16, dtype=torch.float32)
    block = Block(16, 4, dropout=1.0)
    assert torch.equal(block.train()(x), x)  # all that is added is dropped
    assert not torch.equal(block.eval()(x), x)


# With a condition


def conditioned(seed=0):
    return wild(Block(16, 4, cond_dim=6), seed).double()


def test_a_conditioned_block_starts_as_the_identity_also_after_the_weights_were_drawn():
    block = Block(16, 4, cond_dim=6).double()
    x, cond = vectors(2, N, 16), vectors(2, 1, 6, seed=1)
    assert torch.equal(block(x, cond=cond), x)
    init_weights(block, layers=2)
    assert torch.equal(block(x, cond=cond), x)
    assert block.attention.qkv.weight.abs().max() > 0
    assert block.norm1.weight is None and block.norm2.weight is None  # the condition does their work


def by_hand(block, x, modulations):
    """The block's output for shift, scale and gate of both branches, each (B, 1, dim)."""

    def norm(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(6, dim=-1)
    h = x + gate1 * block.attention(norm(x) * (1 + scale1) + shift1)
    return h + gate2 * block.feed_forward(norm(h) * (1 + scale2) + shift2)


def test_a_condition_shifts_scales_and_gates_both_branches():
    block, x, cond = conditioned(), vectors(2, N, 16), vectors(2, 1, 6, seed=1)
    linear = block.modulation.linear
    expected = by_hand(block, x, F.linear(F.silu(cond), linear.weight, linear.bias))
    torch.testing.assert_close(block(x, cond=cond), expected, **close(torch.float64))


def test_a_block_that_shares_its_modulations_with_others_only_adds_an_offset():
    block, x, shared = wild(Block(16, 4, shared=True), seed=0).double(), vectors(2, N, 16), vectors(2, 1, 96, seed=1)
    assert block.norm1.weight is None and block.norm2.weight is None
    torch.testing.assert_close(block(x, cond=shared), by_hand(block, x, shared), **close(torch.float64))
    offset = block.modulation.offset.data = vectors(96, seed=2)
    torch.testing.assert_close(block(x, cond=shared), by_hand(block, x, shared + offset), **close(torch.float64))
    assert torch.equal(block(x, cond=-offset.view(1, 1, 96)), x)  # all gates shut


def test_a_condition_per_position_acts_on_that_position_and_those_who_see_it():
    block, x, cond = conditioned(), vectors(1, N, 16), vectors(1, N, 6, seed=1)
    allowed = not_after.square(RASTER)
    out = block(x, mask=allowed, cond=cond)
    for j in range(N):
        other = cond.clone()
        other[0, j] += 1.0
        changed = (block(x, mask=allowed, cond=other) != out).any(-1)[0]
        assert torch.equal(changed, allowed[:, j])
    same = vectors(1, 1, 6, seed=2)
    repeated = block(x, mask=allowed, cond=same.expand(1, N, 6))
    torch.testing.assert_close(block(x, mask=allowed, cond=same), repeated, **close(torch.float64))


# Who sees whom, through two layers


@pytest.mark.parametrize("name", MASKS)
def test_perturbing_a_position_never_moves_those_who_cannot_see_it(name):
    mask, levels = MASKS[name]
    model, x, sees = Stack().double(), vectors(1, N, 16), mask.square(levels)
    sees_in_two = (sees.double() @ sees.double()) > 0  # one layer carries it to somebody, the next one on
    for j in range(N):
        moved = x.clone()
        moved[0, j] += 1.0
        changed = (model(x, mask, levels) != model(moved, mask, levels)).any(-1)[0]
        assert torch.equal(changed, sees_in_two[:, j])


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("name", MASKS)
def test_feeding_level_by_level_through_a_cache_equals_one_masked_pass(name, kv_heads, kind):
    mask, levels = MASKS[name]
    sizes = levels.unique_consecutive(return_counts=True)[1].tolist()
    for dtype in (torch.float32, torch.float64):
        model, x = Stack(kv_heads).to(dtype), vectors(2, N, 16, dtype=dtype)
        cache = model.new_cache(2, N, kind)
        parts = [model(part, mask, levels, cache) for part in x.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(x, mask, levels), **close(dtype))


# Initial weights


def test_what_is_added_to_the_residual_stream_starts_smaller_with_depth():
    layers = 8
    model = nn.ModuleList(Block(128, 4) for _ in range(layers))
    init_weights(model, layers)
    for block in model:
        for inner in (block.attention.qkv, block.feed_forward.gate_up):
            assert inner.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for out in (block.attention.out, block.feed_forward.out):
            assert out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
        assert torch.equal(block.norm1.weight, torch.ones(128))
