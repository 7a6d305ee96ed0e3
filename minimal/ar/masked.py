"""MaskGIT: a transformer that sees everything and fills in what is masked (2202.04200; id `maskgit`).

There is no order. Some tokens of a picture are replaced by MASK, and the network predicts each of them from all that is
visible, to every side. How many are hidden is drawn anew for every example, so it learns to begin on an empty canvas
and to finish an almost full one:

    r ~ U(0, 1),    k = ceil(cos(pi r / 2) N) tokens hidden at random,
    loss = mean over all hidden tokens j of a batch of -log p(x_j | visible)

With another weight this is a likelihood. Write the tokens one by one in a random order: the next one is any of the k
hidden ones, equally likely. So the mean over all orders of the negative log-likelihood is (ARDM, 2110.02037)

    E_order[-log p(x | order)] = N E_k [ 1/k  sum over the k hidden j of -log p(x_j | visible) ],    k ~ U{1 .. N}

MaskGIT weighs every hidden token alike, and its cosine hides many more often than few. As in the paper the label stands
in front and is sometimes dropped, and places have learned embeddings; blocks, norms and rotary positions are those of
the raster GPT. Parallel decoding is in samplers/masked.py.

Shapes: tokens (B, N) long, MASK = V; labels (B,) long; logits (B, N, V).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.cache import KVCache
from minimal.nn.labels import drop_labels
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary
from minimal.nn.token_model import TokenModel, log_probabilities

Schedule = Callable[[Tensor], Tensor]  # progress r in [0, 1] -> share that is still masked, from 1 down to 0


def cosine(r: Tensor) -> Tensor:
    """Slow at first, when little is known and errors are copied into all that follows."""
    return (math.pi / 2 * r).cos()


def linear(r: Tensor) -> Tensor:
    """Equally many tokens in each step."""
    return 1 - r


def hide(tokens: Tensor, counts: Tensor, mask: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Replace `counts[b]` random tokens of row b by `mask`. Returns the canvas (B, N) and what is hidden (B, N)."""
    rank = uniform(*tokens.shape, like=tokens, generator=generator).argsort(-1).argsort(-1)
    hidden = rank < counts[:, None]
    return tokens.masked_fill(hidden, mask), hidden


def uniform(*shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device if generator else "cpu").to(like.device)


class MaskedTransformer(TokenModel):
    """`vocab_size` V codes, `length` N on a grid `grid_width` wide, `num_classes` labels and one null class."""

    def __init__(
        self,
        vocab_size: int,
        length: int,
        num_classes: int = 0,
        grid_width: int | None = None,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
        label_smoothing: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size, self.length, self.num_classes = vocab_size, length, num_classes
        self.label_dropout, self.label_smoothing = label_dropout, label_smoothing
        self.embedding = nn.Embedding(vocab_size + 1, dim)  # the last is MASK
        self.labels = nn.Embedding(num_classes + 1, dim)  # the last is the null class
        self.place = nn.Embedding(length, dim)
        self.add_trunk(dim, layers, heads, None, hidden, dropout)
        coordinates = raster_coordinates(length, grid_width)
        front = torch.full_like(coordinates[:1], -1)  # the label stands above and left of the picture
        self.register_buffer("coordinates", torch.cat((front, coordinates)), persistent=False)

    @property
    def mask(self) -> int:
        """The id of MASK."""
        return self.vocab_size

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j (V,) is the network's opinion of token j. `tokens` (B, N) is a whole canvas, MASK where it is unknown.

        It is a prediction where the canvas is masked; elsewhere the network reads the answer. ValueError for part of a
        canvas, and for a cache: every token sees every other, so nothing that was computed stays true.
        """
        if cache is not None or n is not None or tokens.shape[1] != self.length:
            raise ValueError(
                f"a masked model reads whole canvases of {self.length} tokens without a cache, MASK ({self.mask}) "
                f"where unknown, got {tuple(tokens.shape)}; sample with sample_masked"
            )
        x = torch.cat(
            (self.labels(self.told(cond, tokens))[:, None], self.embedding(tokens) + self.place.weight), dim=1
        )
        x, rotation = self.dropout(x), rotary(self.coordinates, self.blocks[0].attention.head_dim)
        for block in self.blocks:
            x = block(x, rotation)
        return self.head(self.norm(x[:, 1:]))

    def loss(self, tokens: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None):
        """Cross-entropy in nats per hidden token, and logs. Smooths targets and drops labels in training mode."""
        self.check(tokens, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        counts = (cosine(uniform(len(tokens), like=tokens, generator=generator)) * self.length).ceil()
        canvas, hidden = hide(tokens, counts, self.mask, generator)
        logits = self.logits(canvas, cond)[hidden]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, tokens[hidden], label_smoothing=smoothing)
        return loss, {"nats_per_hidden_token": loss.detach()}

    def any_order_nats(
        self, tokens: Tensor, cond: Tensor | None = None, *, draws: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """An unbiased estimate (B,) of E_order[-log p(x | order)] in nats, from `draws` forwards.

        By convexity it bounds the negative log-likelihood of the mixture of all orders from above. Draw d takes its k
        from the d-th of `draws` equal parts of 1 .. N, so that `draws` = N takes every k once.
        """
        self.check(tokens, cond)
        total = 0.0
        for d in range(draws):
            u = (d + uniform(len(tokens), like=tokens, generator=generator)) / draws
            counts = 1 + (u * self.length).long().clamp(max=self.length - 1)
            canvas, hidden = hide(tokens, counts, self.mask, generator)
            total = total - self.read(canvas, tokens, cond).where(hidden, 0.0).sum(1) * self.length / counts / draws
        return total

    def logprob(self, tokens: Tensor, cond: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """Exact log-likelihood (B,) in nats of writing token by token in `order` (N,), by default row by row.

        The chain rule takes N forwards. Another order is another distribution: nothing makes the conditionals agree.
        """
        self.check(tokens, cond)
        order = torch.arange(self.length, device=tokens.device) if order is None else order
        if order.shape != (self.length,) or not torch.equal(order.sort().values, torch.arange(self.length).to(order)):
            raise ValueError(
                f"order must name each of the {self.length} places once, got {tuple(order.shape)}: {order}"
            )
        canvas, total = torch.full_like(tokens, self.mask), 0.0
        for j in order.tolist():
            total = total + self.read(canvas, tokens, cond)[:, j]
            canvas[:, j] = tokens[:, j]
        return total

    def read(self, canvas: Tensor, tokens: Tensor, cond: Tensor | None) -> Tensor:
        """log p(x_j | canvas) (B, N) of the true tokens."""
        return log_probabilities(self.logits(canvas, cond), tokens)
