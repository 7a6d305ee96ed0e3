"""NAR: next-neighbour prediction, a picture grows out of its corner, diagonal by diagonal (2503.10696; id `nar`).

Tokens at the same distance row + column from the corner are drawn together: 2 n - 1 steps for n x n tokens instead of
n². Whoever is drawn next borders on what was drawn last, so two heads suffice: one predicts the token to the *right*
of each token, one the token *below* it. Where a token has both parents, their logits are averaged.

    p(x_ij | lower levels) = softmax of   (R_(i,j-1) + B_(i-1,j)) / 2     inside
                                          R_(0,j-1)  or  B_(i-1,0)        in the first row or column: one parent
                                          (R + B) / 2 of the label        at the corner

Inputs are the label and all tokens (none is shifted: the heads carry the offset). An input sees what is not farther
from the corner than itself, its own diagonal too: that was drawn before anything is predicted from it. R is read after
all blocks but the last, B after one more.

Shapes: tokens (B, N) long in diagonal order, `order` (N,) says where each lies in the picture; labels (B,) long;
logits (B, N, V).
"""

import torch
from torch import Tensor, nn

from minimal.nn.blocks import Block, init_weights
from minimal.nn.cache import KVCache
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary
from minimal.nn.token_model import TokenModel


class NextNeighbour(TokenModel):
    """`vocab_size` V tokens on a `grid` (rows, columns); `layers` blocks below the right head, and one more."""

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        num_classes: int = 0,
        dim: int = 128,
        layers: int = 3,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        rows, columns = self.grid = tuple(grid)
        self.vocab_size, self.length, self.num_classes = vocab_size, rows * columns, num_classes
        self.label_dropout = label_dropout
        self.embedding = nn.Embedding(vocab_size + num_classes + 1, dim)  # tokens, then labels, then the null class
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, None, hidden, dropout) for _ in range(layers + 1))
        self.right_norm, self.below_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.right, self.below = nn.Linear(dim, vocab_size, bias=False), nn.Linear(dim, vocab_size, bias=False)

        places = raster_coordinates(self.length, columns)
        order = places.sum(1).argsort(stable=True)  # within a diagonal from top to bottom
        coordinates = places[order]
        index, share = parents(coordinates, order.argsort().view(rows, columns))
        for name, value in dict(
            order=order,
            levels=coordinates.sum(1),
            coordinates=torch.cat((torch.full((1, 2), -1), coordinates)),  # the label stands outside, before the corner
            input_levels=torch.cat((torch.zeros(1, dtype=torch.long), coordinates.sum(1) + 1)),
            parents=index,
            share=share,
        ).items():
            self.register_buffer(name, value, persistent=False)
        ends = 1 + (self.levels[1:] != self.levels[:-1]).nonzero().flatten()
        self.bounds = [0, *ends.tolist(), self.length]  # where each diagonal begins
        init_weights(self, layers + 1)
        nn.init.zeros_(self.right.weight)  # the first prediction is uniform
        nn.init.zeros_(self.below.weight)

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | diagonals before its own, cond), unnormalised. `tokens` (B, M) is a canvas of diagonals.

        Without a cache the result is (B, M, V); with one, the rows it lacks, or the next `n`. `cond` (B,) labels; None
        means the null class.
        """
        right, below, share = self.votes(tokens, cond, cache=cache, n=n)
        return share[:, :1] * right + share[:, 1:] * below

    def votes(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each of two parents says of a token: R (B, M, V) of the left one, B (B, M, V) of the upper one.

        And with which share (M, 2) each counts: 1/2 and 1/2, or 1 and 0 where there is one parent only.

        `cache.length` counts rows, as everywhere. Rows of level l need inputs up to level l - 1, so the cache holds
        fewer inputs than it counts rows: those of levels below l - 1. This call feeds level l - 1.
        """
        if cache is not None and type(cache) is not KVCache:
            raise ValueError(f"diagonals have unlike lengths and need a KVCache, got a {type(cache).__name__}")
        first = 0 if cache is None else cache.length
        last = tokens.shape[1] if n is None else first + n
        begin, end = self.inputs_for(first), self.inputs_for(last)
        query = torch.arange(begin, end, device=tokens.device)
        if cache is not None:
            cache.length = begin
        keys = query if cache is None else cache.key_positions(end - begin)
        alone = self.input_levels[begin] == self.input_levels[end - 1]  # one level sees all that there is
        mask = None if alone else not_after(query, keys, self.input_levels)
        rotation = rotary(self.coordinates[query], self.blocks[0].attention.head_dim)

        inputs = torch.cat((self.vocab_size + self.told(cond, tokens)[:, None], tokens), dim=1)[:, begin:end]
        x = self.dropout(self.embedding(inputs))
        for layer, block in enumerate(self.blocks):
            before_last = x
            x = block(x, rotation, mask, cache, layer)
        if cache is not None:
            cache.length = last
        left, up = (self.parents[first:last] - begin).unbind(1)
        right = self.right(self.right_norm(before_last)[:, left])
        return right, self.below(self.below_norm(x)[:, up]), self.share[first:last]

    def inputs_for(self, length: int) -> int:
        """How many inputs `length` rows need: the label, and all tokens but those of the last of their diagonals."""
        if length not in self.bounds:
            raise ValueError(f"{length} tokens are not whole diagonals, which end at {self.bounds[1:]}")
        level = self.bounds.index(length)
        return 0 if level == 0 else 1 + self.bounds[level - 1]


def parents(coordinates: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Which inputs predict each token (N, 2), the left one and the upper one, and with which share (N, 2).

    `coordinates` (N, 2) of the tokens, `number` (rows, columns) of the token at each place. Token k is input k + 1;
    the label, input 0, is both parents of the corner. A missing parent has share 0.
    """
    index, share = [], []
    for row, column in coordinates.tolist():
        left = 1 + number[row, column - 1].item() if column else None
        up = 1 + number[row - 1, column].item() if row else None
        if left is None and up is None:
            left = up = 0
        index.append((up if left is None else left, left if up is None else up))
        share.append((float(left is not None), float(up is not None)))
    share = torch.tensor(share)
    return torch.tensor(index), share / share.sum(1, keepdim=True)
