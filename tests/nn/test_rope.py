"""Rotary embedding: scores know differences of coordinates and nothing else; lengths of vectors do not change."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.nn.rope import frequencies, raster_coordinates, rotary, rotate


def turned(x, *coordinates, base=10000.0):
    """One vector (d,) at one place."""
    return rotate(x[None, None, None], rotary(torch.tensor([coordinates]), len(x), base)).flatten()


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_pair_of_channels_turns_by_position_times_frequency():
    x, position, base = normal(6), 5, 100.0
    for i, (a, b) in enumerate(turned(x, position, base=base).view(3, 2).tolist()):
        angle = position * base ** (-2 * i / 6)
        real, imaginary = x[2 * i].item(), x[2 * i + 1].item()
        assert a == pytest.approx(real * math.cos(angle) - imaginary * math.sin(angle), abs=1e-12)
        assert b == pytest.approx(real * math.sin(angle) + imaginary * math.cos(angle), abs=1e-12)


offset = st.integers(-1000, 1000)


@given(offset, offset, offset)
def test_the_score_depends_on_the_difference_of_positions_alone(m, n, shift):
    q, k = normal(8, seed=1), normal(8, seed=2)
    score = turned(q, m) @ turned(k, n)
    torch.testing.assert_close(turned(q, m + shift) @ turned(k, n + shift), score, rtol=0, atol=1e-10)


@given(offset, offset, offset, offset, offset, offset)
def test_on_a_grid_the_score_depends_on_the_two_differences_alone(row, column, row2, column2, down, right):
    q, k = normal(8, seed=1), normal(8, seed=2)
    score = turned(q, row, column) @ turned(k, row2, column2)
    moved = turned(q, row + down, column + right) @ turned(k, row2 + down, column2 + right)
    torch.testing.assert_close(moved, score, rtol=0, atol=1e-10)


def test_the_score_does_depend_on_each_difference():
    q, k = normal(8, seed=1), normal(8, seed=2)
    places = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2)]
    scores = torch.stack([turned(q, *place) @ turned(k, 0, 0) for place in places])
    assert torch.pdist(scores[:, None]).min() > 1e-3


def test_two_axes_split_the_channels_in_half():
    coordinates = torch.randint(0, 50, (7, 2))
    row, column = rotary(coordinates[:, :1], 6), rotary(coordinates[:, 1:], 6)
    assert torch.equal(rotary(coordinates, 12), torch.cat((row, column), dim=-1))


def test_three_axes_split_the_channels_in_thirds():
    coordinates = torch.randint(0, 50, (7, 3))
    thirds = [rotary(coordinates[:, a : a + 1], 4) for a in range(3)]
    assert torch.equal(rotary(coordinates, 12), torch.cat(thirds, dim=-1))


@given(offset, offset)
def test_turning_keeps_the_length_of_every_vector(row, column):
    x = normal(12)
    torch.testing.assert_close(turned(x, row, column).norm(), x.norm(), rtol=1e-12, atol=0)


def test_the_origin_does_not_turn_and_turns_add_up():
    x = normal(8)
    torch.testing.assert_close(turned(x, 0), x, rtol=0, atol=0)
    torch.testing.assert_close(turned(turned(x, 3), 4), turned(x, 7), rtol=0, atol=1e-12)


def test_each_row_of_a_batch_may_stand_elsewhere():
    x, position = normal(2, 3, 4, 8), torch.randint(0, 20, (2, 4, 1))
    together = rotate(x, rotary(position, 8)[:, None])
    alone = [rotate(x[b : b + 1], rotary(position[b], 8)) for b in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_low_precision_keeps_its_dtype_and_large_positions_keep_their_angle(dtype, atol):
    x, rotation = normal(1, 2, 3, 8), rotary(torch.tensor([[0], [999], [4093]]), 8)
    low = rotate(x.to(dtype), rotation)
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), rotate(x, rotation), rtol=0, atol=atol)


def test_raster_coordinates_count_rows_and_columns():
    assert raster_coordinates(5, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]
    assert raster_coordinates(3, None).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("axes, head_dim", [(1, 5), (2, 6), (3, 8)])
def test_a_head_that_does_not_split_into_pairs_per_axis_is_refused(axes, head_dim):
    with pytest.raises(ValueError, match=f"divisible by {2 * axes}, got {head_dim}"):
        rotary(torch.zeros(4, axes, dtype=torch.long), head_dim)


def test_a_table_first_made_while_sampling_serves_training_too():
    frequencies.cache_clear()
    with torch.inference_mode():
        rotary(torch.arange(3)[:, None], 4)
    x = normal(1, 1, 3, 4).requires_grad_()
    rotate(x, rotary(torch.arange(3)[:, None], 4)).sum().backward()
    assert x.grad.isfinite().all()
