"""A paged cache is a static one with other books: equal bit for bit, no block is lost, no row sees another's tokens."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeded, tiny_gpt, wild

from minimal.ar.raster import RasterGPT
from minimal.nn.cache import StaticKVCache
from minimal.nn.paged_cache import PagedKVCache

BLOCK = 4


def paged(batch=3, capacity=12, blocks=None, kind=PagedKVCache):
    return kind(1, batch, 1, capacity, 1, block=BLOCK, blocks=blocks, dtype=torch.float64)


def write(cache, *tokens):
    """Append the numbers `tokens[r]`, as many for each row; returns what each row then holds, as keys and as values."""
    k = torch.tensor(tokens, dtype=torch.float64)[:, None, :, None]
    keys, values = cache.append(0, k, -k)
    cache.advance(k.shape[2])
    assert torch.equal(keys, -values)
    return [row[0, :n, 0].tolist() for row, n in zip(keys, cache.length.tolist(), strict=True)]


def held(cache):
    """What each row holds, read without writing."""
    pool = cache.read(cache.k[0])
    return [row[0, :n, 0].tolist() for row, n in zip(pool, cache.length.tolist(), strict=True)]


def check_books(cache):
    """Every block is free once or held as often as it is counted; no row holds more than it needs."""
    table = cache.table.tolist()
    for block, count in enumerate(cache.references):
        assert sum(row.count(block) for row in table) == count
        assert cache.free.count(block) == (count == 0)
    for row, length in zip(table, cache.length.tolist(), strict=True):
        needed = -(-length // BLOCK)
        assert all(block >= 0 for block in row[:needed]) and set(row[needed:]) <= {-1}


# The same numbers as a static cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("capacity", [12, 10])
def test_a_model_computes_the_same_bits_as_with_a_static_cache(dtype, capacity):
    model = tiny_gpt(dtype=dtype, length=capacity)
    tokens = torch.randint(5, (3, capacity), generator=seeded(0))
    caches = [model.new_cache(3, capacity, kind) for kind in (StaticKVCache, partial(PagedKVCache, block=BLOCK))]
    for cache in caches:
        cache.k.fill_(9.0)  # what an earlier request left there
    for n, lengths in ((5, [5, 1, 4]), (1, [6, 2, 5]), (3, [0, 5, 7]), (2, [2, 7, 9]), (1, [3, 8, 10])):
        ours, theirs = (model.logits(tokens, cache=cache, n=n) for cache in caches)
        assert torch.equal(ours, theirs)
        for cache in caches:
            cache.truncate(torch.tensor(lengths))


@pytest.mark.slow
def test_eight_rows_of_the_size_that_the_chapter_serves_compute_the_same_bits():
    model = wild(RasterGPT(96, 288, dim=96, layers=8, heads=4), 0, std=0.1)
    tokens = torch.randint(96, (8, 288), generator=seeded(0))
    caches = [model.new_cache(8, 288, kind) for kind in (StaticKVCache, PagedKVCache)]
    lengths = torch.tensor([1, 15, 16, 17, 32, 100, 200, 255])
    for cache in caches:
        model.logits(tokens, cache=cache, n=256)
        cache.truncate(lengths)
    for n in (1, 1, 20, 1):
        static, ours = (model.logits(tokens, cache=cache, n=n) for cache in caches)
        assert torch.equal(static, ours)


@pytest.mark.parametrize("kind", [StaticKVCache, partial(PagedKVCache, block=BLOCK)])
def test_some_rows_are_a_cache_of_their_own_on_the_same_memory(kind):
    model = tiny_gpt()
    tokens = torch.randint(5, (4, 12), generator=seeded(1))
    whole, parts = model.new_cache(4, 12, kind), model.new_cache(4, 12, kind)
    expected = model.logits(tokens, cache=whole, n=5)
    got = [model.logits(tokens[a:b], cache=parts.rows(a, b), n=5) for a, b in ((1, 4), (0, 1))]
    torch.testing.assert_close(torch.cat((got[1], got[0])), expected, rtol=0, atol=1e-12)
    after = model.logits(tokens, cache=parts, n=2)
    torch.testing.assert_close(after, model.logits(tokens, cache=whole, n=2), rtol=0, atol=1e-12)
    assert parts.length.tolist() == [7] * 4


@pytest.mark.parametrize("kind", [StaticKVCache, partial(PagedKVCache, block=BLOCK)])
def test_a_fork_goes_on_like_its_source(kind):
    model = tiny_gpt()
    tokens = torch.randint(5, (2, 12), generator=seeded(2))
    cache = model.new_cache(2, 12, kind)
    model.logits(tokens, cache=cache, n=6)
    cache.fork(0, 1)
    tokens[1, :6] = tokens[0, :6]
    torch.testing.assert_close(
        model.logits(tokens, cache=cache, n=4), model.logits(tokens)[:, 6:10], rtol=0, atol=1e-12
    )
    cache.release(0)
    assert cache.length.tolist() == [0, 10]


# Sharing


def shares_a_prefix(kind):
    """Two rows with six positions in common go on with 7 and 8; what each then holds."""
    cache = paged(2, kind=kind)
    write(cache.rows(0, 1), [1, 2, 3, 4, 5, 6])
    cache.fork(0, 1)
    assert cache.used == 2 and cache.table[0].tolist() == cache.table[1].tolist()
    write(cache, [7], [8])
    return cache, held(cache)


def test_rows_that_share_a_block_do_not_see_each_others_later_tokens():
    cache, rows = shares_a_prefix(PagedKVCache)
    assert rows == [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 8]]
    assert cache.used == 3  # the full block is still common, the partly filled one was copied once
    assert cache.table[0, 0] == cache.table[1, 0] and cache.table[0, 1] != cache.table[1, 1]
    check_books(cache)


def test_without_copy_on_write_they_would():
    class Careless(PagedKVCache):
        def reserve(self, n):
            references, self.references = self.references, [min(count, 1) for count in self.references]
            super().reserve(n)
            self.references = references

    _, rows = shares_a_prefix(Careless)
    assert rows[0] == rows[1]  # both end in the token that was written last


def test_a_full_block_is_shared_without_a_copy():
    cache = paged(3)
    write(cache.rows(0, 1), [1, 2, 3, 4, 5, 6, 7, 8])
    cache.fork(0, 1)
    cache.fork(0, 2)
    write(cache, [9], [10], [11])
    assert cache.used == 5  # two common blocks, and one of its own for each
    assert held(cache) == [[*range(1, 9), last] for last in (9, 10, 11)]
    cache.release(0)
    cache.release(2)
    assert cache.used == 3 and held(cache)[1] == [*range(1, 9), 10]


def test_a_reordered_batch_shares_everything():
    cache = paged(3)
    write(cache, [1, 2, 3], [4, 5, 6], [7, 8, 9])
    before = cache.k.clone()
    cache.reorder(torch.tensor([2, 2, 0]))
    assert torch.equal(cache.k, before) and cache.used == 2
    assert write(cache, [10], [11], [12]) == [[7, 8, 9, 10], [7, 8, 9, 11], [1, 2, 3, 12]]
    check_books(cache)


# Any history


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 2), st.integers(1, 6)),
            st.tuples(st.just("append all"), st.just(0), st.integers(1, 3)),
            st.tuples(st.just("fork"), st.integers(0, 2), st.integers(0, 2)),
            st.tuples(st.just("release"), st.integers(0, 2), st.just(0)),
            st.tuples(st.just("truncate"), st.integers(0, 2), st.integers(0, 12)),
            st.tuples(st.just("reorder"), st.integers(0, 2), st.integers(0, 2)),
        ),
        max_size=30,
    )
)
def test_any_history_leaves_the_cache_as_a_dictionary_of_lists(history):
    cache, rows, number = paged(), {0: [], 1: [], 2: []}, 0
    for action, row, value in history:
        if action.startswith("append"):
            chosen = range(3) if action == "append all" else [row]
            if max(len(rows[r]) for r in chosen) + value > 12:
                continue
            new = torch.arange(number, number + len(chosen) * value).view(len(chosen), value).tolist()
            number += len(chosen) * value
            write(cache.rows(chosen[0], chosen[-1] + 1), *new)
            rows |= {r: rows[r] + tokens for r, tokens in zip(chosen, new, strict=True)}
        elif action == "fork":
            cache.fork(row, value)
            rows[value] = rows[row]
        elif action == "release":
            cache.release(row)
            rows[row] = []
        elif action == "truncate":
            rows[row] = rows[row][:value]
            cache.truncate(torch.tensor([len(rows[r]) for r in range(3)]))
        else:
            index = [row, value, 1]
            cache.reorder(torch.tensor(index))
            rows = {r: rows[i] for r, i in enumerate(index)}
        assert held(cache) == [rows[r] for r in range(3)]
        check_books(cache)


@pytest.mark.parametrize("length", range(1, 13))
def test_a_row_wastes_less_than_a_block(length):
    cache = paged(1)
    write(cache, list(range(length)))
    assert 0 <= cache.used * BLOCK - length <= BLOCK - 1


# Bad input


def test_an_exhausted_pool_says_so_and_goes_on_when_a_row_leaves():
    cache = paged(2, blocks=3)
    write(cache, [1, 2, 3, 4], [5, 6, 7, 8])
    with pytest.raises(ValueError, match="all 3 blocks of 4 positions are taken; release a row, or allocate more"):
        write(cache, [9], [10])
    assert held(cache) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    cache.release(0)
    assert write(cache, [9], [10]) == [[9], [5, 6, 7, 8, 10]]


def test_a_row_that_grows_too_long_is_refused():
    cache = paged(1, capacity=6)
    write(cache, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="a row holds 6 positions and 7 are needed"):
        write(cache, [6, 7])
    assert write(cache, [6]) == [[1, 2, 3, 4, 5, 6]]


def test_a_row_cannot_be_truncated_to_what_it_does_not_hold():
    cache = paged(2)
    write(cache, [1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"lengths \[2, 2\] to \[1, 3\]"):
        cache.truncate(torch.tensor([1, 3]))
    assert held(cache) == [[1, 2], [3, 4]]


def test_it_does_not_keep_branches_of_a_tree():
    with pytest.raises(ValueError, match="take a StaticKVCache"):
        paged(1).keep(torch.tensor([[0, 2]]))


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"block": 0}, {"blocks": 0}, {"capacity": 0}])
def test_sizes_of_zero_are_refused(sizes):
    options = dict(layers=1, batch=2, kv_heads=1, capacity=8, head_dim=4, block=4) | sizes
    with pytest.raises(ValueError, match="at least 1"):
        PagedKVCache(**options)
