"""Adaptive layer norm: blocks that start as the identity, and a condition that reaches every layer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import wild
from torch import nn

from minimal.nn.adaln import Modulation, Offset, ResidualBlock, ResidualMLP, TimeEmbedding, modulate


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_a_block_starts_as_the_identity_and_the_network_as_zero():
    x, c = vectors(5, 6), vectors(5, 3)
    assert torch.equal(ResidualBlock(6, 3).double()(x, c), x)
    assert torch.equal(ResidualMLP(6, 2, width=8, depth=3, cond_width=3).double()(x, c), torch.zeros_like(x[:, :2]))


def test_a_block_is_the_formula_of_the_docstring():
    block, x, c = wild(ResidualBlock(6, 3), seed=0).double(), vectors(5, 6), vectors(5, 3)
    shift, scale, gate = (nn.functional.silu(c) @ block.modulation.linear.weight.T).split(6, dim=-1)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x, c), x + gate * block.mlp(normed * (1 + scale) + shift))


def test_zero_shift_and_scale_change_nothing():
    x = vectors(5, 6)
    assert torch.equal(modulate(x, torch.zeros_like(x), torch.zeros_like(x)), x)


@given(chunks=st.integers(1, 6), batch=st.integers(1, 4))
def test_a_modulation_gives_as_many_zeros_as_asked(chunks, batch):
    parts = Modulation(3, 5, chunks)(torch.randn(batch, 3))
    assert len(parts) == chunks and all(part.shape == (batch, 5) and not part.any() for part in parts)


def test_an_offset_starts_as_what_all_blocks_share_and_moves_away_from_it():
    offset, shared = Offset(5, chunks=4).double(), vectors(2, 1, 20)
    assert all(map(torch.equal, offset(shared), shared.split(5, dim=-1)))
    offset.offset.data = vectors(20)
    for part, before, moved in zip(offset(shared), shared.split(5, dim=-1), offset.offset.split(5), strict=True):
        torch.testing.assert_close(part, before + moved)
    assert sum(p.numel() for p in Offset(5).parameters()) == 30  # six chunks, however wide the condition


def test_one_condition_serves_a_whole_sequence():
    model = wild(ResidualMLP(4, 4, width=8, depth=2, cond_width=3), seed=0).double()
    x, c = vectors(2, 7, 4), vectors(2, 1, 3)
    torch.testing.assert_close(model(x, c), model(x, c.expand(2, 7, 3)))
    torch.testing.assert_close(model(x, c)[:, 4], model(x[:, 4], c[:, 0]))  # positions do not see each other


def test_the_condition_reaches_the_output_through_every_modulation():
    model = wild(ResidualMLP(4, 4, width=8, depth=2, cond_width=3), seed=0).double()
    x, c = vectors(2, 4), vectors(2, 3)
    for modulation in [block.modulation for block in model.blocks] + [model.modulation]:
        before = model(x, c)
        modulation.linear.weight.mul_(2)
        assert not torch.allclose(model(x, c), before)


def test_an_embedded_time_turns_no_faster_than_its_highest_frequency():
    embedding, t = TimeEmbedding(8, max_frequency=30.0).double(), torch.rand(100, dtype=torch.float64)
    embedding.mlp = nn.Identity()
    _, rate = torch.func.jvp(embedding, (t,), (torch.ones_like(t),))
    assert rate.abs().max() <= 30 + 1e-4
    assert embedding.frequencies[0] == 1 and embedding.frequencies[-1].item() == pytest.approx(30, rel=1e-5)


def test_an_embedding_tells_all_times_apart():
    embedding = TimeEmbedding(8)
    embedding.mlp = nn.Identity()
    points = embedding(torch.linspace(0, 1, 200))
    assert (torch.cdist(points, points) + torch.eye(200)).min() > 0.01
    assert points.shape == (200, 32) and math.isclose(points.square().sum(-1).mean(), 16, rel_tol=1e-5)
