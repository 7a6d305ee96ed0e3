"""Masks let through just what they should: small matrices drawn by hand, then laws that hold for all levels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.nn.masks import ancestor, before, not_after, prefix, same, sink, window


def drawn(*rows):
    """A mask from a drawing: x where attention is allowed."""
    return torch.tensor([[mark == "x" for mark in row.split()] for row in rows])


RASTER = torch.arange(5)
SCALES = torch.tensor([0, 1, 1, 2, 2])

# two branches of drafts behind a common prefix: 0 -> 1 -> 2 and 0 -> 1 -> 3 -> 4
TREE = drawn(
    "x . . . .",
    "x x . . .",
    "x x x . .",
    "x x . x .",
    "x x . x x",
)

DRAWINGS = {
    "raster": (not_after, RASTER, ["x . . . .", "x x . . .", "x x x . .", "x x x x .", "x x x x x"]),
    "next scale": (not_after, SCALES, ["x . . . .", "x x x . .", "x x x . .", "x x x x x", "x x x x x"]),
    "strictly coarser": (before, SCALES, [". . . . .", "x . . . .", "x . . . .", "x x x . .", "x x x . ."]),
    "same scale": (same, SCALES, ["x . . . .", ". x x . .", ". x x . .", ". . . x x", ". . . x x"]),
    "window": (window(2), RASTER, ["x x x x x", "x x x x x", ". x x x x", ". . x x x", ". . . x x"]),
    "prefix": (prefix(2), RASTER, ["x x . . ."] * 5),
    "sink": (sink(1), RASTER, ["x . . . ."] * 5),
    "streaming": (
        not_after & (window(2) | sink(1)),
        RASTER,
        ["x . . . .", "x x . . .", "x x x . .", "x . x x .", "x . . x x"],
    ),
    "prefix LM": (not_after | prefix(3), RASTER, ["x x x . .", "x x x . .", "x x x . .", "x x x x .", "x x x x x"]),
    "scales in a window": (
        not_after & window(3),  # levels decide what comes after, positions how far back
        SCALES,
        ["x . . . .", "x x x . .", "x x x . .", ". x x x x", ". . x x x"],
    ),
    "coarser scales and oneself": (
        before | (window(1) & ~window(0)),
        SCALES,
        ["x . . . .", "x x . . .", "x . x . .", "x x x x .", "x x x . x"],
    ),
    "everything later": (~not_after, RASTER, [". x x x x", ". . x x x", ". . . x x", ". . . . x", ". . . . ."]),
    "tree": (ancestor(TREE), RASTER, ["x . . . .", "x x . . .", "x x x . .", "x x . x .", "x x . x x"]),
    "tree in a window": (
        ancestor(TREE) & window(3),
        RASTER,
        ["x . . . .", "x x . . .", "x x x . .", ". x . x .", ". . . x x"],
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_mask_looks_as_drawn(name):
    mask, levels, rows = DRAWINGS[name]
    assert torch.equal(mask.square(levels), drawn(*rows))


levels_and_mask = st.tuples(
    st.lists(st.integers(0, 4), min_size=1, max_size=9).map(torch.tensor),
    st.sampled_from([not_after, before, same, window(2), prefix(3), sink(1)]),
    st.sampled_from([not_after, before, same, window(4), prefix(1)]),
)


@given(levels_and_mask)
def test_masks_combine_as_sets_do(case):
    levels, a, b = case
    A, B = a.square(levels), b.square(levels)
    assert torch.equal((a & b).square(levels), A & B)
    assert torch.equal((a | b).square(levels), A | B)
    assert torch.equal((~a).square(levels), ~A)
    assert torch.equal((~(a & b)).square(levels), (~a | ~b).square(levels))  # De Morgan


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9).map(torch.tensor))
def test_not_after_is_before_or_same(levels):
    assert torch.equal(not_after.square(levels), (before | same).square(levels))
    assert not (before & same).square(levels).any()


@given(levels_and_mask, st.data())
def test_some_queries_and_keys_get_the_corresponding_part_of_the_square(case, data):
    levels, a, b = case
    some = st.lists(st.integers(0, len(levels) - 1), min_size=1, max_size=5).map(torch.tensor)
    query, key = data.draw(some), data.draw(some)
    assert torch.equal((a & b)(query, key, levels), (a & b).square(levels)[query][:, key])


@pytest.mark.parametrize("mask", [not_after, prefix(2), window(2) | sink(1), ancestor(TREE)])
def test_each_row_of_a_batch_may_stand_elsewhere(mask):
    query, key = torch.tensor([[0, 1], [3, 4], [2, 0]]), torch.arange(5)
    together = mask(query, key)
    assert together.shape == (3, 2, 5)
    assert torch.equal(together, torch.stack([mask(row, key) for row in query]))
    keys = torch.stack([key, key.flip(0), key])  # and so may its keys
    assert torch.equal(mask(query, keys), torch.stack([mask(q, k) for q, k in zip(query, keys, strict=True)]))


def test_without_levels_every_position_is_its_own_level():
    position = torch.arange(4)
    assert torch.equal(not_after(position, position), not_after.square(position))
    assert torch.equal(same(position, position), torch.eye(4, dtype=torch.bool))


def test_masks_are_boolean_and_full_size_whatever_they_look_at():
    for mask in (prefix(1), not_after, same, ~prefix(1)):
        allowed = mask(torch.arange(2), torch.arange(3))
        assert allowed.dtype == torch.bool and allowed.shape == (2, 3)


@pytest.mark.parametrize("matrix", [torch.ones(3, 3), torch.ones(3, 2).bool(), torch.ones(3).bool()])
def test_a_tree_must_be_a_square_boolean_matrix(matrix):
    with pytest.raises(ValueError, match="square boolean"):
        ancestor(matrix)
