"""Any-subset autoregressive model: one network for every set of visible tokens (AS-ARM, 2504.20456; id `as-arm`).

Some tokens of an example are known, wherever they stand; the others are written from left to right. With h_1 < h_2 < ..
the hidden places, S the known ones and c a label, the model is

    p(x_hidden | x_S, c) = prod_i p(x_(h_i) | x_(h_1) .. x_(h_(i-1)), x_S, c),

one factorisation for each of the 2^N sets (the binary lattice of 2205.13554) instead of N! orders for all. No token is
moved: an order is a mask. Known tokens have level 0, the i-th hidden one has level i, and two streams run through the
same blocks (XLNet, 1906.08237):

    content    a row for each token. It reads contents of its own level and lower ones: known tokens see one another.
    query      a row for each place that is asked for. It knows its place, not its token, and reads the contents of
               lower levels; nobody reads it.

A level may hold many places. Their queries read the same tokens, so one pass predicts all of them, each for itself.
That is a draft; samplers/any_subset.py verifies it by a second pass with the levels apart. Only training can teach a
query to skip hidden places on its left, so half of the examples put their last hidden tokens into one level. (The paper
trains with one token per level.)

The any-order GPT (any_order.py) shuffles tokens instead, and is causal in all N! orders. Here known tokens read each
other in both directions, hidden ones have one order, and places far ahead can be asked for.

Shapes: tokens (B, N) long in reading order, levels (B, N) or (N,) long, asked (B, Q) long, logits (B, Q, V).
"""

import torch
from torch import Tensor, nn

from minimal.ar.masked import hide, uniform
from minimal.nn.cache import KVCache
from minimal.nn.labels import drop_labels
from minimal.nn.masks import before, not_after
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary
from minimal.nn.token_model import TokenModel, cross_entropy, log_probabilities


def ranks(known: Tensor) -> Tensor:
    """Levels (..., N) for `known` (..., N, bool): 0 where a token is known; the hidden ones count 1, 2, .. by place."""
    if known.dtype != torch.bool:
        raise ValueError(f"known is boolean, True where a token is given; got {known.dtype} {tuple(known.shape)}")
    return (~known).long().cumsum(-1).masked_fill(known, 0)


class ContentKeys:
    """What the blocks get as their cache: of each layer's rows, only the first `n`, the contents, can be read."""

    def __init__(self, n: int):
        self.n = n

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k[:, :, : self.n], v[:, :, : self.n]


class AnySubsetGPT(TokenModel):
    """`vocab_size` V codes, `length` N on a grid `grid_width` wide, `num_classes` labels and one null class."""

    def __init__(
        self,
        vocab_size: int,
        length: int,
        num_classes: int = 0,
        grid_width: int | None = None,
        dim: int = 96,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size, self.length, self.num_classes = vocab_size, length, num_classes
        self.label_dropout = label_dropout
        self.embedding = nn.Embedding(vocab_size + num_classes + 1, dim)  # tokens, then labels, then the null class
        self.query = nn.Embedding(length, dim)  # what a query starts from: its place
        self.add_trunk(dim, layers, heads, None, hidden, dropout)
        coordinates = raster_coordinates(length, grid_width)
        front = torch.full_like(coordinates[:1], -1)  # the label stands above and left of the picture
        self.register_buffer("coordinates", torch.cat((front, coordinates)), persistent=False)

    @property
    def levels(self) -> Tensor:
        """(N,): with nothing known, one token at a time in reading order."""
        return 1 + torch.arange(self.length, device=self.coordinates.device)

    def logits(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        levels: Tensor | None = None,
        asked: Tensor | None = None,
        cache: KVCache | None = None,
        n: int | None = None,
    ) -> Tensor:
        """Row q is p(token at place asked[q] | tokens of a lower level than that place's, cond), unnormalised.

        `tokens` (B, M) is a canvas, the first M places. `levels` default to the reading order, `asked` to all places.
        Contents would fit a cache, since none reads a higher level; this file keeps none, and refuses one.
        """
        B, M = tokens.shape
        if cache is not None or n is not None:
            raise ValueError("this model reads whole canvases; sample with sample_any_subset, or without a cache")
        levels = self.check_levels(self.levels[:M] if levels is None else levels, tokens)
        asked = torch.arange(M, device=tokens.device).expand(B, M) if asked is None else asked

        front = (self.vocab_size + self.told(cond, tokens))[:, None]
        contents = torch.cat((torch.full_like(front, -1), levels), dim=1)  # the label is below all: everybody reads it
        mask = torch.cat((not_after(contents, contents), before(levels.gather(1, asked), contents)), dim=1)
        x = torch.cat((self.embedding(torch.cat((front, tokens), dim=1)), self.query(asked)), dim=1)
        place = torch.cat((torch.arange(M + 1, device=tokens.device).expand(B, -1), asked + 1), dim=1)
        rotation = rotary(self.coordinates[place], self.blocks[0].attention.head_dim)[:, None]
        x, keys = self.dropout(x), ContentKeys(M + 1)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask[:, None], keys, layer)
        return self.head(self.norm(x[:, M + 1 :]))

    def check_levels(self, levels: Tensor, tokens: Tensor) -> Tensor:
        """`levels` for each row (B, M)."""
        if levels.dtype != torch.long or levels.shape not in (tokens.shape, tokens.shape[1:]) or levels.min() < 0:
            raise ValueError(
                f"levels are long, not negative, {tuple(tokens.shape)} like the tokens or {tuple(tokens.shape[1:])}; "
                f"got {levels.dtype} {tuple(levels.shape)}. Make them by ranks(known)"
            )
        return levels.expand_as(tokens)

    def logprob(self, tokens: Tensor, cond: Tensor | None = None, *, known: Tensor | None = None) -> Tensor:
        """Exact log-likelihood (B,) in nats of the tokens that are not `known` (B, N, bool), given those that are."""
        self.check(tokens, cond)
        known = torch.zeros_like(tokens, dtype=torch.bool) if known is None else known
        logits = self.logits(tokens, cond, levels=ranks(known))
        return log_probabilities(logits, tokens).masked_fill(known, 0.0).sum(-1)

    def loss(self, tokens: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None):
        """Cross-entropy in nats per hidden token, and logs. Drops labels in training mode.

        How many tokens are hidden is uniform in 1 .. N, which ones is random. In every other example all hidden tokens
        from a random one on are drafts: they share its level.
        """
        self.check(tokens, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        M = tokens.shape[1]
        share, cut = uniform(2, len(tokens), like=tokens, generator=generator)
        counts = 1 + (share * M).long()
        hidden = hide(tokens, counts, 0, generator)[1]
        first_draft = 1 + (cut * counts).long()
        first_draft[1::2] = M  # these stay one by one
        levels = ranks(~hidden).minimum(first_draft[:, None])
        loss = cross_entropy(self.logits(tokens, cond, levels=levels)[hidden][None], tokens[hidden][None])
        return loss, {"nats_per_hidden_token": loss.detach()}
