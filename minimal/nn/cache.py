"""Key-value caches: what a causal transformer computed for earlier positions never changes, so keep it.

A cache is a value that the caller makes, passes to the model and drops; modules hide none. It is allocated once, for
the longest sequence. A forward over n new positions does, in every layer, `k, v = cache.append(layer, k, v)`, attends
to what comes back, and at the end calls `cache.advance(n)` once. Shapes: keys and values (B, G, T, d) with G
key-value heads.

    KVCache          one length for all rows, an int; returns the filled slice, so no work is wasted. The default.
    StaticKVCache    a length per row, in a tensor; always returns the whole buffer, the mask hides the rest. Shapes and
                     addresses never change and nothing is read back to the host: for ragged batches and CUDA graphs.
    PagedKVCache     the same, in blocks from a common pool that rows take as they grow: nn/paged_cache.py.
    SlidingKVCache   the first S keys (attention sinks, 2309.17453) and the last W - S: memory stays W for ever.

All have `append`, `advance`, `truncate` (speculative roll-back), `reorder` (beam search, dropping finished rows),
`length`, `positions(n)` of the next n queries and `key_positions(n)` of the slots that `append` will return; the model
makes its mask from these two. The first two can also `keep` one branch of a tree of guesses.
"""

import copy

import torch
from torch import Tensor


class KVCache:
    """Static buffers, one length. `dense`: every slot that it returns holds a key, all before the last query.

    `prefix` further slots stand in front, at positions below 0: the words of a caption but the last.
    """

    dense = True

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        prefix: int = 0,
        device=None,
        dtype=None,
    ):
        if min(layers, batch, kv_heads, capacity, head_dim) < 1:
            raise ValueError(f"a cache needs sizes of at least 1, got {(layers, batch, kv_heads, capacity, head_dim)}")
        shape = (layers, batch, kv_heads, prefix + capacity, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity, self.prefix = capacity, prefix
        self.length = -prefix

    def positions(self, n: int) -> Tensor:
        """Positions (n,) of the next n queries."""
        return torch.arange(self.length, self.length + n, device=self.k.device)

    def key_positions(self, n: int) -> Tensor:
        """Positions (T,) of the keys that `append` returns when n are added."""
        return torch.arange(-self.prefix, self.length + n, device=self.k.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store n new keys and values (B, G, n, d) of one layer; return all up to and including them."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions and {end} are needed; allocate a longer one")
        new, filled = slice(self.length + self.prefix, end + self.prefix), end + self.prefix
        self.k[layer, :, :, new] = k
        self.v[layer, :, :, new] = v
        return self.k[layer, :, :, :filled], self.v[layer, :, :, :filled]

    def advance(self, n: int) -> None:
        """Count n positions as filled, once every layer has appended them."""
        self.length += n

    def truncate(self, length: int | Tensor) -> None:
        """Forget every position from `length` on. Nothing is erased: stale slots lie beyond what `append` returns."""
        length = int(length)
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of length {self.length} to {length}")
        self.length = length

    def keep(self, nodes: Tensor) -> None:
        """Of the keys that a tree pass appended, keep one branch per row, `nodes` (B, r), as if only it had been fed.

        Nodes number the inputs of that pass from 0. Keys carry their positions, so they may move to another slot. Where
        rows keep less than r, `truncate` afterwards.
        """
        rows, r = self.k.shape[1], nodes.shape[1]
        first = self.prefix + self.positions(1).view(-1, 1)
        old = first + nodes.repeat(rows // len(nodes), 1)  # a guided model's null half keeps the same branch
        new = first + torch.arange(r, device=nodes.device)
        for buffer in (self.k, self.v):
            shape = (*buffer.shape[:3], r, buffer.shape[4])
            old_slots, new_slots = (slot.expand(rows, r)[None, :, None, :, None].expand(shape) for slot in (old, new))
            buffer.scatter_(3, new_slots, buffer.gather(3, old_slots))
        self.advance(r)

    def reorder(self, index: Tensor) -> None:
        """Make row i what row `index[i]` was; rows may repeat (beams) or vanish (finished requests).

        The buffers are new ones. A guided model's cache has its null half below: pass `cat((index, index + B))`.
        """
        self.k, self.v = self.k.index_select(1, index), self.v.index_select(1, index)


class StaticKVCache(KVCache):
    """A length per row, `length` (B,) long on the device; fixed shapes and addresses; no host synchronisation.

    Capacity cannot be checked without reading lengths back, so the caller allocates enough.
    """

    dense = False

    def __init__(
        self, layers: int, batch: int, kv_heads: int, capacity: int, head_dim: int, *, device=None, dtype=None
    ):
        super().__init__(layers, batch, kv_heads, capacity, head_dim, device=device, dtype=dtype)
        self.length = torch.zeros(batch, dtype=torch.long, device=device)
        self.slots = torch.arange(capacity, device=device)

    def positions(self, n: int) -> Tensor:
        """Positions (B, n) of the next n queries of each row."""
        return self.length[:, None] + self.slots[:n]

    def key_positions(self, n: int) -> Tensor:
        """Slot t holds position t. Slots not written yet stand after every query, so a causal mask hides them.

        Where several positions share a level, feed whole levels: a query sees all slots of its own.
        """
        return self.slots

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        slot = self.positions(k.shape[2])[:, None, :, None].expand_as(k)
        self.k[layer].scatter_(2, slot, k)
        self.v[layer].scatter_(2, slot, v)
        return self.k[layer], self.v[layer]

    def advance(self, n: int) -> None:
        self.length.add_(n)

    def truncate(self, length: Tensor | int) -> None:
        """Set row b's length to `length[b]`, or every row's to an int; the caller keeps it at or below the present one.

        A guided model's cache has its null half below (see guidance.py): B lengths then serve both halves of 2 B rows.
        """
        length = torch.as_tensor(length, device=self.length.device).reshape(-1)
        self.length.copy_(length.repeat(len(self.length) // len(length)))

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        self.length = self.length.index_select(0, index)

    def rows(self, start: int, end: int) -> "StaticKVCache":
        """Rows `start` to `end` as a cache for a smaller batch, on the same memory. Append and advance it, no more."""
        part = copy.copy(self)
        part.k, part.v, part.length = self.k[:, start:end], self.v[:, start:end], self.length[start:end]
        return part

    def fork(self, source: int, row: int) -> None:
        """Make `row` what row `source` is. Copies what is filled and no more, so it reads one length back."""
        n = int(self.length[source])
        self.k[:, row, :, :n] = self.k[:, source, :, :n]
        self.v[:, row, :, :n] = self.v[:, source, :, :n]
        self.length[row] = n

    def release(self, row: int) -> None:
        """Empty one row."""
        self.length[row] = 0


def ragged(n: int) -> type[KVCache]:
    """The cache for `n` rows that advance at their own pace. One row alone needs no lengths per row."""
    return KVCache if n == 1 else StaticKVCache


class SlidingKVCache(KVCache):
    """The first `sinks` keys and a ring of the last `window - sinks`.

    Keys carry their absolute rotary positions. Equals a full forward under `not_after & (window(W - S) | sink(S))` when
    it is filled one position at a time. The ring overwrites, so roll-back is possible only for what `spare` slots kept.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        window: int,
        head_dim: int,
        *,
        sinks: int = 4,
        spare: int = 0,
        device=None,
        dtype=None,
    ):
        if not 0 <= sinks < window:
            raise ValueError(f"{sinks} sinks do not fit a window of {window}; give 0 <= sinks < window")
        super().__init__(layers, batch, kv_heads, window + spare, head_dim, device=device, dtype=dtype)
        self.window, self.sinks, self.spare = window, sinks, spare
        self.longest = 0  # the furthest position ever written: it decides what the ring still holds after a roll-back

    def slot(self, position: Tensor) -> Tensor:
        ring = self.capacity - self.sinks
        return torch.where(position < self.sinks, position, self.sinks + (position - self.sinks) % ring)

    def visible(self, n: int) -> Tensor:
        """Positions, oldest first, that the last of n new queries may see."""
        end = self.length + n
        recent = torch.arange(max(self.sinks, end - (self.window - self.sinks)), max(end, self.sinks))
        return torch.cat((torch.arange(min(self.sinks, end)), recent[recent < end])).to(self.k.device)

    def key_positions(self, n: int) -> Tensor:
        return self.visible(n)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.shape[2] != 1:
            raise ValueError(
                f"a sliding cache takes one position at a time, got {k.shape[2]}; feed the prompt step by step"
            )
        slot = self.slot(self.positions(1))
        self.k[layer].index_copy_(2, slot, k)
        self.v[layer].index_copy_(2, slot, v)
        slots = self.slot(self.visible(1))
        return self.k[layer].index_select(2, slots), self.v[layer].index_select(2, slots)

    def advance(self, n: int) -> None:
        self.length += n
        self.longest = max(self.longest, self.length)

    def truncate(self, length: int) -> None:
        kept_from = max(self.sinks, self.longest - (self.capacity - self.sinks))
        needed_from = max(self.sinks, length + 1 - (self.window - self.sinks))
        if length <= self.sinks:  # nothing of the ring is needed: it starts afresh
            self.longest = length
        elif needed_from < kept_from:
            raise ValueError(
                f"the ring has overwritten what a roll-back from {self.longest} to {length} needs; "
                f"allocate the cache with spare >= {self.spare + kept_from - needed_from}"
            )
        super().truncate(length)
