"""Axial Transformer: attention along one axis at a time, and still an exact raster order (1912.12180; id `axial`).

A token may depend on all rows above it and on what stands left of it in its own row. Two networks share that out:

    u = outer(e)                            e (H, W): embeddings of tokens, places and label. Masked attention along
                                            columns (rows <= i), then attention along whole rows; repeated
    h = inner(ShiftDown(u) + ShiftRight(e) + label)       masked attention along rows (columns <= j)
    p(x_ij | x above, x left of it) = softmax(head(h_ij))

Attention along a row sees all of it, its future too. ShiftDown moves what comes out one row further, to where that row
is past. Attention then costs HW (H + W) pairs instead of (HW)², and a sampler runs the outer network once a row, on a
whole row, and only the small inner one for every token.

Shapes: tokens (B, N) long in raster order, N = H W; labels (B,) long; logits (B, N, V).
"""

import torch
from torch import Tensor, nn

from minimal.nn.blocks import Block, init_weights
from minimal.nn.cache import KVCache
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.nn.token_model import TokenModel


class RowCache:
    """What semi-parallel sampling keeps: keys of each column, keys of the row that is being written, and what is above.

    `outer` has a row of the batch for every image and column, `inner` one for every image; `above` (B, W, D) is what
    the outer network says to the present row. `length` counts the rows of logits computed, one per token.
    """

    def __init__(self, outer: KVCache, inner: KVCache, above: Tensor):
        self.outer, self.inner, self.above = outer, inner, above
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on: back to somewhere in the present row, or to the start of an earlier."""
        width = self.above.shape[1]
        row, column = divmod(length, width)
        if not 0 <= length <= self.length or column and row != max(self.length - 1, 0) // width:
            raise ValueError(f"from token {self.length} one can return into the same row or to a row's start")
        if column:
            self.inner.truncate(column)
        else:
            self.outer.truncate(max(row - 1, 0))
        self.length = length

    def reorder(self, index: Tensor) -> None:
        """Make image i what image `index[i]` was."""
        columns = torch.arange(self.above.shape[1], device=index.device)
        self.outer.reorder((index[:, None] * len(columns) + columns).flatten())
        self.inner.reorder(index)
        self.above = self.above[index]


class AxialTransformer(TokenModel):
    """`vocab_size` V tokens on a `grid` (rows, columns); `pairs` of column and row blocks, then `inner` row blocks."""

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        num_classes: int = 0,
        dim: int = 128,
        pairs: int = 2,
        inner: int = 1,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.grid = tuple(grid)
        self.vocab_size, self.length, self.num_classes = vocab_size, grid[0] * grid[1], num_classes
        self.label_dropout = label_dropout
        self.embedding = nn.Embedding(vocab_size, dim)
        self.labels = nn.Embedding(num_classes + 1, dim)  # the last is the null class
        self.rows, self.columns = nn.Embedding(grid[0], dim), nn.Embedding(grid[1], dim)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.ModuleList(Block(dim, heads, None, hidden, dropout) for _ in range(2 * pairs))
        self.inner = nn.ModuleList(Block(dim, heads, None, hidden, dropout) for _ in range(inner))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.register_buffer("levels", torch.arange(self.length), persistent=False)  # one token at a time
        init_weights(self, 2 * pairs + inner)
        nn.init.zeros_(self.head.weight)  # the first prediction is uniform

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: RowCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | x_<j, cond), unnormalised. `tokens` (B, M) is a canvas: row j never reads x_j or later ones.

        Without a cache the result is (B, M, V); with one, the rows it lacks, or the next `n`. `cond` (B,) labels; None
        means the null class.
        """
        label = self.labels(self.told(cond, tokens))[:, None, None]  # (B, 1, 1, D)
        if cache is None:
            return self.whole(tokens, label)
        if not isinstance(cache, RowCache):
            raise ValueError(f"this model needs the cache that new_cache makes, got a {type(cache).__name__}")
        width, parts = self.grid[1], []
        last = tokens.shape[1] if n is None else cache.length + n
        while cache.length < last:  # row by row
            row, first = divmod(cache.length, width)
            stop = min(width, last - row * width)
            parts.append(self.part_of_row(tokens, label, cache, row, first, stop))
            cache.length += stop - first
        return torch.cat(parts, dim=1)

    def whole(self, tokens: Tensor, label: Tensor) -> Tensor:
        """Logits (B, M, V) of all M tokens at once, the last row perhaps in part."""
        length, width = tokens.shape[1], self.grid[1]
        tokens = nn.functional.pad(tokens, (0, -length % width))  # no row of logits reads what comes later
        e = self.embed(tokens.unflatten(1, (-1, width)), 0, label)
        x = shift_down(self.look_up(e)) + shift_right(e) + label
        positions = torch.arange(width, device=x.device)
        return self.look_left(x, not_after(positions, positions)).flatten(1, 2)[:, :length]

    def part_of_row(self, tokens: Tensor, label: Tensor, cache: RowCache, row: int, first: int, stop: int) -> Tensor:
        """Logits (B, stop - first, V) of columns `first` to `stop` - 1 of one row."""
        start = row * self.grid[1]
        if first == 0:
            cache.inner.length = 0
            if row:
                finished = self.embed(tokens[:, None, start - self.grid[1] : start], row - 1, label)
                cache.above = self.look_up(finished, cache.outer)[:, 0]
            else:
                cache.above.zero_()
        e = self.embed(tokens[:, None, start : start + stop - 1], row, label)
        x = cache.above[:, None, first:stop] + shift_right(e, keep=True)[:, :, first:stop] + label
        query, keys = cache.inner.positions(stop - first), cache.inner.key_positions(stop - first)
        return self.look_left(x, not_after(query, keys), cache.inner)[:, 0]

    def embed(self, tokens: Tensor, row: int, label: Tensor) -> Tensor:
        """Tokens (B, h, w) of h rows from `row` on -> (B, h, w, D)."""
        rows, columns = (torch.arange(size, device=tokens.device) for size in tokens.shape[1:])
        places = self.rows(rows + row)[:, None] + self.columns(columns)
        return self.dropout(self.embedding(tokens) + places + label)

    def look_up(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """The outer network, (B, h, W, D): place (i, j) comes to know all of row i and of the rows above it."""
        batch, height, width, _ = x.shape
        rows = torch.arange(height, device=x.device)
        mask = not_after(rows, rows) if cache is None else None  # one row, and all others are above it
        for i, block in enumerate(self.outer):
            if i % 2 == 0:  # along columns
                x = block(x.transpose(1, 2).flatten(0, 1), None, mask, cache, i // 2)
                x = x.unflatten(0, (batch, width)).transpose(1, 2)
            else:  # along rows
                x = block(x.flatten(0, 1)).unflatten(0, (batch, height))
        if cache is not None:
            cache.advance(height)
        return x

    def look_left(self, x: Tensor, mask: Tensor, cache: KVCache | None = None) -> Tensor:
        """The inner network: x (B, h, w, D) -> logits (B, h, w, V)."""
        batch = len(x)
        x = x.flatten(0, 1)
        for layer, block in enumerate(self.inner):
            x = block(x, None, mask, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.head(self.norm(x)).unflatten(0, (batch, -1))

    def new_cache(self, batch: int, capacity: int | None = None, kind: type[KVCache] = KVCache) -> RowCache:
        """An empty row cache for `batch` images."""
        if kind is not KVCache or capacity not in (None, self.length):
            raise ValueError(
                f"a row cache is made of KVCaches for {self.length} tokens, got {kind.__name__}, {capacity}"
            )
        attention, weight = self.outer[0].attention, self.head.weight
        (height, width), options = self.grid, dict(device=weight.device, dtype=weight.dtype)
        outer = KVCache(len(self.outer) // 2, batch * width, attention.kv_heads, height, attention.head_dim, **options)
        inner = KVCache(len(self.inner), batch, attention.kv_heads, width, attention.head_dim, **options)
        return RowCache(outer, inner, torch.zeros(batch, width, weight.shape[1], **options))


def shift_down(x: Tensor) -> Tensor:
    """Row i of (B, h, w, D) becomes row i + 1; zeros come in."""
    return nn.functional.pad(x, (0, 0, 0, 0, 1, -1))


def shift_right(x: Tensor, keep: bool = False) -> Tensor:
    """Column j of (B, h, w, D) becomes column j + 1; zeros come in. The last falls out, unless it is to be kept."""
    return nn.functional.pad(x, (0, 0, 1, 0 if keep else -1))
