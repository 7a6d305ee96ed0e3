"""Raster GPT: an autoregressive transformer over image tokens in reading order (LlamaGen, 2406.06525; id `llamagen`).

The chain rule turns any distribution over N discrete tokens into N next-token distributions, so likelihood is exact:

    log p(x | c) = sum_j log p(x_j | x_0 .. x_{j-1}, c)

A Llama decoder models all N factors in one pass: its inputs are [c, x_0, ..., x_{N-2}], where the condition c (a class
label) is one more token in front, and its output at input j is the distribution of x_j. The only thing that knows about
images is the rotary embedding, which turns queries and keys by (row, column) when `grid_width` is given.

Shapes: tokens (B, N) long, labels (B,) long, logits (B, N, V).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.blocks import Block, init_weights
from minimal.nn.cache import KVCache
from minimal.nn.labels import check_labels, drop_labels
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary


class RasterGPT(nn.Module):
    """`vocab_size` V tokens, `length` N per example, `num_classes` labels and one null class for guidance.

    A label is dropped to the null class with probability `label_dropout` in training, so that one network knows both
    p(x | c) and p(x) (classifier-free guidance, 2207.12598).
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        num_classes: int = 0,
        grid_width: int | None = None,
        dim: int = 96,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size, self.length, self.num_classes = vocab_size, length, num_classes
        self.label_dropout = label_dropout
        self.embedding = nn.Embedding(vocab_size + num_classes + 1, dim)  # tokens, then labels, then the null class
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        # input j + 1 is token j and stands where that token stands; the class in front stands outside the picture.
        # Guesses may run over the end by the length of an example, see speculative.py.
        coordinates = raster_coordinates(2 * length, grid_width)
        self.register_buffer(
            "coordinates", torch.cat((torch.full_like(coordinates[:1], -1), coordinates)), persistent=False
        )
        init_weights(self, layers)
        nn.init.zeros_(self.head.weight)  # the first prediction is uniform

    def forward(self, inputs: Tensor, cache: KVCache | None = None) -> Tensor:
        """Inputs (B, n) -> logits (B, n, V) of what follows each. With a cache, they continue what it holds."""
        n = inputs.shape[1]
        rotation, mask = self.places(n, cache)
        x = self.dropout(self.embedding(inputs))
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, layer)
        if cache is not None:
            cache.advance(n)
        return self.head(self.norm(x))

    def places(self, n: int, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """Where the next n inputs stand and what they see.

        Rotations (n, d / 2), mask (n, T), or both with leading (B, 1).
        """
        query = torch.arange(n, device=self.coordinates.device) if cache is None else cache.positions(n)
        rotation = rotary(self.coordinates[query], self.blocks[0].attention.head_dim)
        if n == 1 and (cache is None or cache.dense):
            return rotation, None  # a single new query sees every key there is
        mask = not_after(query, query if cache is None else cache.key_positions(n))
        return (rotation[:, None], mask[:, None]) if query.ndim == 2 else (rotation, mask)

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | x_<j, cond), unnormalised. `tokens` (B, M) is a canvas: row j never reads x_j or later ones.

        Without a cache the result is (B, M, V). With one, only the rows it lacks are computed: positions cache.length
        to M - 1, or the next `n` of each row. `cond` (B,) labels; None means the null class.
        """
        start = self.start(cond, len(tokens), tokens.device)
        if cache is None:
            return self(torch.cat((start, tokens[:, :-1]), dim=1))
        if isinstance(cache.length, int):
            first, last = cache.length, tokens.shape[1] if n is None else cache.length + n
            new = tokens[:, max(first - 1, 0) : last - 1]
            return self(torch.cat((start, new), dim=1) if first == 0 else new, cache)
        if n is None:
            raise ValueError("with a length per row there is no common end: say how many rows to compute, n")
        inputs = torch.cat((start, tokens), dim=1)
        return self(inputs.gather(1, cache.positions(n)), cache)

    def start(self, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """The first input (B, 1): the label's id in the embedding table."""
        if cond is None:
            return torch.full((batch, 1), self.vocab_size + self.num_classes, device=device)
        return (self.vocab_size + cond)[:, None]

    def logprob(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Exact log-likelihood (B,) in nats."""
        self.check(tokens, cond)
        logits = self.logits(tokens, cond)
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        return logp.gather(-1, tokens[..., None]).squeeze(-1).sum(-1)

    def loss(self, tokens: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None):
        """Cross-entropy in nats per token, and logs. Drops labels in training mode."""
        self.check(tokens, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        logits = self.logits(tokens, cond)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        return loss, {"nats_per_token": loss.detach()}

    def new_cache(self, batch: int, capacity: int | None = None, kind: type[KVCache] = KVCache) -> KVCache:
        """An empty cache for `batch` rows, by default as long as an example."""
        attention, weight = self.blocks[0].attention, self.head.weight
        return kind(
            len(self.blocks),
            batch,
            attention.kv_heads,
            capacity or self.length,
            attention.head_dim,
            device=weight.device,
            dtype=weight.dtype,
        )

    def check(self, tokens: Tensor, cond: Tensor | None = None) -> None:
        """Raise a ValueError that says what is wrong with a batch."""
        if tokens.dtype != torch.long or tokens.ndim != 2:
            raise ValueError(f"tokens must be long (B, N), got {tokens.dtype} {tuple(tokens.shape)}")
        if tokens.shape[1] > self.length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are longer than the context of {self.length}; crop, or build a longer model"
            )
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise ValueError(
                f"tokens run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {self.vocab_size - 1}"
            )
        check_labels(cond, len(tokens), self.num_classes)
