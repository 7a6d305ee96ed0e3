"""A paged key-value cache (vLLM, 2309.06180; id `paged-attention`): rows take memory as they grow, block by block.

A static cache reserves T_max positions for every row, though most rows end long before. Here all rows draw on one pool
of physical blocks with b positions each. A *block table* says which block holds which part of which row:

    position t of row r   lies in block   table[r, t // b]   at offset   t % b

A row asks for a block when it steps over a border and gives its blocks back when it ends, so at most b - 1 positions of
a row lie idle; T_max - T do in a static cache. Blocks are counted: rows with the same beginning share its blocks
(`fork`), and whoever would write into a shared, partly filled block copies it first (*copy-on-write*).

Shapes: pools k and v (layers, G, blocks, b, d); table (B, ceil(T_max / b)), -1 where there is no block; length (B,).
The bookkeeping is the lesson. Reading is a gather that copies all keys at every step; a server needs an attention
kernel that follows the table instead.
"""

import copy

import torch
from torch import Tensor

from minimal.nn.cache import StaticKVCache


class PagedKVCache(StaticKVCache):
    """`capacity` positions at most in each of `batch` rows, on `blocks` blocks of `block` positions for all of them.

    By default there are enough blocks for every row to be full. Lengths and the table are read on the host.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        block: int = 16,
        blocks: int | None = None,
        device=None,
        dtype=None,
    ):
        if blocks is None and block > 0:
            blocks = batch * -(-capacity // block)
        sizes = (layers, batch, kv_heads, capacity, head_dim, block, blocks)
        if min(sizes[:-1]) < 1 or blocks < 1:
            raise ValueError(f"a paged cache needs sizes of at least 1, got {sizes}")
        self.k = torch.zeros(layers, kv_heads, blocks, block, head_dim, device=device, dtype=dtype)
        self.v = torch.zeros_like(self.k)
        self.capacity, self.block = capacity, block
        self.length = torch.zeros(batch, dtype=torch.long, device=device)
        self.slots = torch.arange(capacity, device=device)
        self.table = torch.full((batch, -(-capacity // block)), -1, device=device)
        self.references = [0] * blocks  # how many rows hold each block
        self.free = list(reversed(range(blocks)))  # a stack

    @property
    def used(self) -> int:
        """How many blocks are held by some row."""
        return len(self.references) - len(self.free)

    # Writing and reading

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer == 0:  # one table serves all layers
            self.reserve(k.shape[2])
        position = self.positions(k.shape[2])  # (B, n)
        slot = self.table.gather(1, position // self.block) * self.block + position % self.block
        for pool, new in ((self.k[layer], k), (self.v[layer], v)):
            pool.flatten(1, 2).index_copy_(1, slot.flatten(), new.transpose(0, 1).flatten(1, 2))
        return self.read(self.k[layer]), self.read(self.v[layer])

    def read(self, pool: Tensor) -> Tensor:
        """Gather (B, G, T_max, d) from the pool (G, blocks, b, d). What stands behind a row's length is anybody's."""
        found = pool.index_select(1, self.table.clamp(min=0).flatten())  # (G, B * ceil(T_max / b), b, d)
        return found.view(len(pool), len(self.table), -1, pool.shape[-1])[:, :, : self.capacity].transpose(0, 1)

    def reserve(self, n: int) -> None:
        """See to it that every row has blocks of its own for its next n positions."""
        longest = int(self.length.max()) + n
        if longest > self.capacity:
            raise ValueError(f"a row holds {self.capacity} positions and {longest} are needed; allocate longer ones")
        for row, length in enumerate(self.length.tolist()):
            for place in range(length // self.block, -(-(length + n) // self.block)):
                old = int(self.table[row, place])
                if old < 0 or self.references[old] > 1:
                    self.table[row, place] = new = self.take()
                    if old >= 0:  # copy-on-write
                        self.k[:, :, new], self.v[:, :, new] = self.k[:, :, old], self.v[:, :, old]
                        self.references[old] -= 1

    # Taking and giving back

    def take(self) -> int:
        if not self.free:
            raise ValueError(
                f"all {len(self.references)} blocks of {self.block} positions are taken; "
                "release a row, or allocate more blocks"
            )
        block = self.free.pop()
        self.references[block] = 1
        return block

    def drop(self, row: int, first: int = 0) -> None:
        """Give back the blocks of `row` from place `first` on; those that nobody else holds become free."""
        for block in self.table[row, first:].tolist():
            if block >= 0:
                self.references[block] -= 1
                if not self.references[block]:
                    self.free.append(block)
        self.table[row, first:] = -1

    def release(self, row: int) -> None:
        """Empty one row."""
        self.drop(row)
        self.length[row] = 0

    def fork(self, source: int, row: int) -> None:
        """Make `row` what row `source` is, without copying a key: both hold the same blocks."""
        if source != row:
            self.release(row)
            self.table[row], self.length[row] = self.table[source], self.length[source]
            for block in self.table[source].tolist():
                if block >= 0:
                    self.references[block] += 1

    def truncate(self, length: Tensor | int) -> None:
        before = self.length.clone()
        super().truncate(length)
        if (self.length > before).any():
            asked = self.length.tolist()
            self.length.copy_(before)
            raise ValueError(f"cannot truncate rows of lengths {before.tolist()} to {asked}")
        for row, kept in enumerate(self.length.tolist()):
            self.drop(row, -(-kept // self.block))

    def keep(self, nodes: Tensor) -> None:
        raise ValueError("a paged cache does not move keys, so it cannot keep a branch of a tree; take a StaticKVCache")

    def reorder(self, index: Tensor) -> None:
        """Make row i what row `index[i]` was: tables are copied, keys stay where they are."""
        self.table, self.length = self.table.index_select(0, index), self.length.index_select(0, index)
        held = self.table[self.table >= 0]
        self.references[:] = held.bincount(minlength=len(self.references)).tolist()
        self.free[:] = [block for block, holders in enumerate(self.references) if not holders]

    def rows(self, start: int, end: int) -> "PagedKVCache":
        part = copy.copy(self)  # the pool, the counts and the free list are common property
        part.table, part.length = self.table[start:end], self.length[start:end]
        return part
