"""Caches change the cost, never the answer: append, forget, reorder, and the rest is as if computed afresh."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Stack, close, seeded

from minimal.nn.cache import KVCache, SlidingKVCache, StaticKVCache
from minimal.nn.masks import not_after, prefix, sink, window

CAPACITY = 12
SLIDING = partial(SlidingKVCache, sinks=2, spare=3)
KINDS = {"dense": KVCache, "static": StaticKVCache, "sliding": SLIDING}


def stack():
    return Stack().double()


def vectors(batch, length, seed=0):
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=seeded(seed))


def feed(model, cache, x):
    """Continue `cache` with x (B, n, 16), one position at a time: every kind can do that."""
    return torch.cat([model(step, cache=cache) for step in x.split(1, dim=1)], dim=1)


def used(cache):
    """A cache whose every slot holds garbage, as after an earlier request."""
    cache.k.fill_(9.0)
    cache.v.fill_(-9.0)
    return cache


def same_numbers(a, b):
    torch.testing.assert_close(a, b, **close(torch.float64))


@pytest.fixture(params=KINDS)
def new_cache(request):
    return lambda model, batch, size=CAPACITY: used(model.new_cache(batch, size, KINDS[request.param]))


def test_position_by_position_equals_all_at_once(new_cache):
    model, x = stack(), vectors(2, 10)
    same_numbers(feed(model, new_cache(model, 2), x), model(x))


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("chunk", [1, 3, 4, 10])
def test_blocks_of_any_length_equal_all_at_once(kind, chunk):
    model, x = stack(), vectors(2, 10)
    cache = used(model.new_cache(2, CAPACITY, kind))
    same_numbers(torch.cat([model(part, cache=cache) for part in x.split(chunk, dim=1)], dim=1), model(x))


def test_append_truncate_append_other_equals_never_having_appended(new_cache):
    model, x, regretted = stack(), vectors(2, 10), vectors(2, 3, seed=1)
    cache = new_cache(model, 2)
    feed(model, cache, x[:, :6])
    feed(model, cache, regretted)
    cache.truncate(6)
    same_numbers(feed(model, cache, x[:, 6:]), model(x)[:, 6:])


def test_truncate_to_nothing_equals_a_new_cache(new_cache):
    model, x = stack(), vectors(2, 10)
    cache = new_cache(model, 2)
    feed(model, cache, vectors(2, 9, seed=1))
    cache.truncate(0)
    same_numbers(feed(model, cache, x), model(x))


@pytest.mark.parametrize("index", [[2, 0, 1], [1, 1, 0, 1], [2]], ids=["permute", "repeat", "vanish"])
def test_reorder_equals_running_the_reordered_batch(new_cache, index):
    model, x, index = stack(), vectors(3, 6), torch.tensor(index)
    after = vectors(len(index), 4, seed=1)
    cache = new_cache(model, 3)
    feed(model, cache, x)
    cache.reorder(index)
    fresh = model(torch.cat((x[index], after), dim=1))
    same_numbers(feed(model, cache, after), fresh[:, 6:])


def test_rows_that_share_a_prefix_do_not_see_each_other_afterwards(new_cache):
    model, x = stack(), vectors(1, 5)
    cache = new_cache(model, 1)
    feed(model, cache, x)
    cache.reorder(torch.tensor([0, 0]))
    after = vectors(2, 4, seed=1)
    both = feed(model, cache, after)
    same_numbers(both[1], model(torch.cat((x, after[1:]), dim=1))[0, 5:])


def test_dense_cache_returns_what_it_was_given_and_no_more():
    cache = used(KVCache(2, 1, 1, 5, 3))
    k, v = torch.randn(1, 1, 4, 3), torch.randn(1, 1, 4, 3)
    cache.append(0, k[:, :, :3], v[:, :, :3])
    cache.append(1, v[:, :, :3], k[:, :, :3])
    cache.advance(3)
    first, second = cache.append(0, k[:, :, 3:], v[:, :, 3:]), cache.append(1, v[:, :, 3:], k[:, :, 3:])
    assert all(map(torch.equal, first + second, (k, v, v, k)))
    assert cache.length == 3 and cache.positions(1).tolist() == [3] and cache.key_positions(1).tolist() == [0, 1, 2, 3]


# Room in front, for the words of a caption


@pytest.mark.parametrize("chunks", [[1] * 10, [3, 7], [4, 6], [10]], ids=str)
def test_a_prefix_is_further_positions_below_zero(chunks):
    model, x, front = stack(), vectors(2, 10), 3
    cache = used(model.new_cache(2, 7, prefix=front))
    assert cache.length == -3 and cache.capacity == 7 and cache.k.shape[3] == 10
    out = torch.cat([model(part, cache=cache) for part in x.split(chunks, dim=1)], dim=1)
    same_numbers(out, model(x))  # scores know differences of positions only
    assert cache.length == 7
    assert cache.key_positions(0).tolist() == list(range(-3, 7)) and cache.positions(2).tolist() == [7, 8]


@pytest.mark.parametrize("length", [0, 2, 6])
def test_a_roll_back_keeps_the_prefix(length):
    model, x = stack(), vectors(2, 10)
    cache = used(model.new_cache(2, 7, prefix=3))
    model(x[:, : 3 + length], cache=cache)
    model(vectors(2, 7 - length, seed=1), cache=cache)
    cache.truncate(length)
    same_numbers(model(x[:, 3 + length :], cache=cache), model(x)[:, 3 + length :])


def test_a_prefix_is_reordered_with_its_row():
    model, x, index = stack(), vectors(3, 6), torch.tensor([2, 0, 0])
    cache = used(model.new_cache(3, 7, prefix=3))
    model(x[:, :4], cache=cache)
    cache.reorder(index)
    same_numbers(model(x[index, 4:], cache=cache), model(x[index])[:, 4:])


def test_a_prefix_is_not_forgotten_and_does_not_lengthen_the_rest():
    model = stack()
    cache = model.new_cache(1, 4, prefix=3)
    with pytest.raises(ValueError, match="of length -3 to 0"):
        cache.truncate(0)
    model(vectors(1, 7), cache=cache)
    with pytest.raises(ValueError, match="of length 4 to -1"):
        cache.truncate(-1)
    with pytest.raises(ValueError, match="holds 4 positions and 5 are needed"):
        model(vectors(1, 1), cache=cache)


# A length per row


def test_every_row_at_its_own_length_equals_each_row_alone():
    model, x = stack(), vectors(4, 11)
    lengths, n = torch.tensor([2, 5, 0, 8]), 3
    cache = used(model.new_cache(4, CAPACITY, StaticKVCache))
    model(x[:, :8], cache=cache)
    cache.truncate(lengths)
    rows = torch.stack([row[length : length + n] for row, length in zip(x, lengths, strict=True)])
    out = model(rows, cache=cache)
    for row, length, got in zip(x, lengths, out, strict=True):
        same_numbers(got, model(row[None, : length + n])[0, -n:])
    assert torch.equal(cache.length, lengths + n)


def test_lengths_travel_with_their_rows():
    model, x = stack(), vectors(3, 8)
    cache = used(model.new_cache(3, CAPACITY, StaticKVCache))
    model(x[:, :6], cache=cache)
    cache.truncate(torch.tensor([6, 1, 3]))
    cache.reorder(torch.tensor([2, 2, 0]))
    out = model(x[:, 6:7], cache=cache)
    for b, (row, length) in enumerate([(2, 3), (2, 3), (0, 6)]):
        same_numbers(out[b, 0], model(torch.cat((x[row, :length], x[b, 6:7]))[None])[0, -1])


def test_lengths_of_half_the_rows_serve_both_halves():
    cache = StaticKVCache(1, 6, 1, 4, 2)
    cache.truncate(torch.tensor([1, 0, 3]))
    assert cache.length.tolist() == [1, 0, 3, 1, 0, 3]
    cache.truncate(2)
    assert cache.length.tolist() == [2] * 6


def test_a_static_cache_always_returns_the_same_memory():
    cache = StaticKVCache(2, 3, 1, 8, 4)
    pointers = cache.k.data_ptr(), cache.v.data_ptr(), cache.length.data_ptr()
    for n in (1, 3, 2):
        k, v = cache.append(1, torch.randn(3, 1, n, 4), torch.randn(3, 1, n, 4))
        cache.advance(n)
        assert k.shape == v.shape == (3, 1, 8, 4) and k.data_ptr() == cache.k[1].data_ptr()
        cache.truncate(cache.length - 1)
    assert (cache.k.data_ptr(), cache.v.data_ptr(), cache.length.data_ptr()) == pointers


@settings(max_examples=25)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("extend"), st.integers(1, 4)),
            st.tuples(st.just("truncate"), st.lists(st.floats(0, 1), min_size=3, max_size=3)),
            st.tuples(st.just("reorder"), st.lists(st.integers(0, 2), min_size=3, max_size=3)),
        ),
        max_size=8,
    )
)
def test_any_history_leaves_the_cache_as_if_each_row_had_been_computed_afresh(history):
    model, rows = stack(), [torch.empty(0, 16, dtype=torch.float64) for _ in range(3)]
    cache = used(model.new_cache(3, 4 * len(history) + 4, StaticKVCache))
    for seed, (action, value) in enumerate([*history, ("extend", 2)]):
        if action == "truncate":
            rows = [row[: round(part * len(row))] for row, part in zip(rows, value, strict=True)]
            cache.truncate(torch.tensor([len(row) for row in rows]))
        elif action == "reorder":
            rows = [rows[i] for i in value]
            cache.reorder(torch.tensor(value))
        else:
            new = vectors(3, value, seed)
            out, rows = model(new, cache=cache), [torch.cat(pair) for pair in zip(rows, new, strict=True)]
            for row, got in zip(rows, out, strict=True):
                same_numbers(got, model(row[None])[0, -value:])


# Sliding window with sinks


@pytest.mark.parametrize("size, sinks", [(6, 2), (5, 4), (4, 0), (2, 1), (12, 3)])
def test_a_sliding_cache_equals_a_full_forward_that_sees_sinks_and_window(size, sinks):
    model, x = stack(), vectors(2, 20)
    cache = used(model.new_cache(2, size, SlidingKVCache, sinks=sinks))
    full = model(x, not_after & (window(size - sinks) | sink(sinks)))
    same_numbers(feed(model, cache, x), full)
    assert cache.k.shape[3] == size  # however long the sequence
    assert (model(x) - full).abs().max() > 1e-3  # it does hide something


@pytest.mark.parametrize("rows", [[1, 0], [1, 1, 0]])
def test_a_full_ring_can_be_reordered(rows):
    model, x, mask = stack(), vectors(2, 15), not_after & (window(4) | sink(2))
    after = vectors(len(rows), 5, seed=1)
    cache = used(model.new_cache(2, 6, SLIDING))
    feed(model, cache, x)
    cache.reorder(torch.tensor(rows))
    same_numbers(feed(model, cache, after), model(torch.cat((x[rows], after), dim=1), mask)[:, 15:])


@pytest.mark.parametrize("back", [0, 1, 2, 3, 4])
def test_a_ring_rolls_back_as_far_as_its_spare_slots_remember(back):
    model, x, mask = stack(), vectors(2, 20), not_after & (window(4) | sink(2))
    cache = used(model.new_cache(2, 6, SLIDING))  # 3 spare slots, and the one that the next position would overwrite
    feed(model, cache, torch.cat((x[:, : 15 - back], vectors(2, back, seed=1)), dim=1))
    cache.truncate(15 - back)
    same_numbers(feed(model, cache, x[:, 15 - back :]), model(x, mask)[:, 15 - back :])


def test_a_ring_remembers_that_it_was_rolled_back():
    model, x = stack(), vectors(2, 20)
    cache = model.new_cache(2, 6, SLIDING)
    feed(model, cache, x[:, :15])
    cache.truncate(12)
    feed(model, cache, x[:, 12:13])
    with pytest.raises(ValueError, match="overwritten"):
        cache.truncate(10)  # would see position 7, whose slot went to 14
    cache.truncate(11)


@pytest.mark.parametrize("length", [3, 8, 10])
def test_a_roll_back_beyond_that_is_refused_and_the_error_says_how_many_slots_it_takes(length):
    model, x = stack(), vectors(1, 15)
    cache = model.new_cache(1, 6, SLIDING)
    feed(model, cache, x)
    with pytest.raises(ValueError, match=r"spare >= \d+") as error:
        cache.truncate(length)
    spare = int(str(error.value).split()[-1])
    for enough in (spare, spare - 1):
        cache = model.new_cache(1, 6, partial(SlidingKVCache, sinks=2, spare=enough))
        feed(model, cache, x)
        if enough == spare:
            cache.truncate(length)
        else:
            with pytest.raises(ValueError, match="overwritten"):
                cache.truncate(length)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_back_to_the_sinks_a_full_ring_starts_afresh(length):
    model, x, mask = stack(), vectors(2, 20), not_after & (window(4) | sink(2))
    cache = used(model.new_cache(2, 6, SLIDING))
    feed(model, cache, torch.cat((x[:, :length], vectors(2, 14, seed=1)), dim=1))
    cache.truncate(length)  # needs nothing that the ring has overwritten
    feed(model, cache, x[:, length:6])
    cache.truncate(5)
    same_numbers(feed(model, cache, x[:, 5:]), model(x, mask)[:, 5:])


# Bad input


def test_too_long_a_sequence_is_refused():
    model = stack()
    cache = model.new_cache(1, 4)
    model(vectors(1, 3), cache=cache)
    with pytest.raises(ValueError, match="holds 4 positions and 5 are needed"):
        model(vectors(1, 2), cache=cache)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_dense_cache_cannot_be_truncated_to_what_it_does_not_hold(length):
    model = stack()
    cache = model.new_cache(1, 6)
    model(vectors(1, 3), cache=cache)
    with pytest.raises(ValueError, match=f"of length 3 to {length}"):
        cache.truncate(length)


def test_a_sliding_cache_takes_one_position_at_a_time():
    model = stack()
    with pytest.raises(ValueError, match="one position at a time, got 2"):
        model(vectors(1, 2), prefix(9), cache=model.new_cache(1, 6, SLIDING))


@pytest.mark.parametrize("sinks", [-1, 6, 7])
def test_sinks_must_leave_room_for_a_window(sinks):
    with pytest.raises(ValueError, match="do not fit a window of 6"):
        SlidingKVCache(1, 1, 1, 6, 2, sinks=sinks)


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache, SlidingKVCache])
def test_an_empty_cache_is_refused(kind):
    with pytest.raises(ValueError, match="at least 1"):
        kind(1, 0, 1, 6, 2)
