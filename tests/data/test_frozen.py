"""Frozen randomness: equal to the textbook's, independent of the batch, and dealt out without overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.data.frozen import bits, coarse, evenly, fingerprint, stratified, to_levels, uniform

MASK = 2**64 - 1


def splitmix(x: int) -> int:
    """The finaliser in plain whole numbers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


@given(st.integers(0, MASK), st.integers(0, 2**62), st.integers(0, 20))
def test_the_words_are_splitmix64_in_plain_integers(seed, index, column):
    golden = 0x9E3779B97F4A7C15
    start = splitmix((seed + golden) & MASK)
    expected = splitmix((splitmix((index + start) & MASK) + golden * (column + 1)) & MASK)
    assert int(bits(seed, [index], column + 1)[0, column]) == expected


def test_the_published_sequence_of_splitmix64_comes_out():
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # first output of the reference code for seed 0


@given(st.integers(0, 2**32), st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(1, 5))
def test_a_number_depends_on_seed_index_and_column_alone(seed, index, columns):
    together = uniform(seed, index, columns + 2)[:, :columns]
    alone = np.concatenate([uniform(seed, [i], columns) for i in index])
    assert (together == alone).all()


def test_the_numbers_are_uniform_and_uncorrelated():
    u = uniform(3, np.arange(200_000), 3)
    counts = np.histogram(u[:, 0], bins=100, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 150  # chi-square with 99 degrees of freedom, p > 0.0007
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.01
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.01


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 99))
def test_splits_are_disjoint_cover_everything_and_keep_the_shares(labels, seed):
    parts = stratified(labels, seed, every=10, validation=4, test=9)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        counts = np.bincount(np.array(labels)[parts[split]], minlength=5)
        expected = share * np.bincount(labels, minlength=5)
        assert (np.abs(counts - expected) <= 2).all()


def test_the_deal_is_frozen():
    parts = stratified(np.arange(1000) % 7, seed=5, every=12, validation=5)
    assert (
        fingerprint(parts["train"], parts["validation"])
        == "9a8fb1bb157f1d73b75e2ce8faf6103e3b8773fd99fe6a53b1b2087d30f02cd5"
    )


@given(st.integers(1, 1000), st.data())
def test_evenly_gives_distinct_rows_in_order(n, data):
    count = data.draw(st.integers(1, n))
    rows = evenly(n, count)
    assert len(rows) == count and (np.diff(rows) > 0).all() and 0 <= rows[0] and rows[-1] < n


@pytest.mark.parametrize("count", [0, -1, 11, 2.5, "3"])
def test_a_count_that_cannot_be_is_refused(count):
    with pytest.raises(ValueError, match="1..10"):
        evenly(10, count)


def test_a_fingerprint_sees_values_shapes_and_order_but_not_the_width_of_integers():
    a, b = torch.arange(6), torch.arange(6).flip(0)
    assert fingerprint(a) == fingerprint(a.to(torch.uint8)) == fingerprint(a.numpy())
    assert len({fingerprint(a), fingerprint(b), fingerprint(a.view(2, 3)), fingerprint(a, b), fingerprint(b, a)}) == 5
    with pytest.raises(ValueError, match="round first"):
        fingerprint(a.float())


@given(st.integers(2, 256))
def test_grey_levels_survive_the_way_to_floats_and_back(levels):
    level = torch.arange(levels)
    assert torch.equal(to_levels(level.float() / ((levels - 1) / 2) - 1, levels), level)


def test_coarse_averages_blocks():
    images = torch.full((1, 1, 32, 32), -1.0)
    images[0, 0, :16, 16:] = 1
    images[0, 0, 16:, :8] = 1
    assert coarse(images).tolist() == [[[[0, 8], [4, 0]]]]
