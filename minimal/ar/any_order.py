"""Any-order GPT: one causal transformer for all orders of the tokens (sigma-GPT, 2404.09562; id `any-order`).

The chain rule holds in every order o, a permutation of the places:

    log p(x | c, o) = sum_i log p(x_(o_i) | x_(o_1) .. x_(o_(i-1)), c)

A causal model of shuffled tokens can learn all of them, if it is told two places: where the token that it has just read
belongs, and which place it has to write next. Here the first turns the keys (a 2-D rotary embedding), the second turns
the queries and is added to the input as a learned embedding, an *instruction*. So a score depends on how far the token
that is read lies from the place that is written, whatever the order. (The paper adds two embeddings and does not turn;
RandAR, 2412.01827, gives each instruction a position of its own.) Training shuffles anew for every example and step.

What it buys: known tokens can always come first. In-painting is then ordinary conditioning, exact, with a cache.

Shapes: tokens (B, N) long in the order of generation, `order` (N,) or (B, N): their places; logits (B, N, V).
"""

import copy

import torch
from torch import Tensor, nn

from minimal.nn.cache import KVCache
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary
from minimal.nn.token_model import TokenModel


class AnyOrderGPT(TokenModel):
    """`vocab_size` V codes, `length` N on a grid `grid_width` wide, `num_classes` labels and one null class.

    A new model generates in reading order; `in_order` makes views of it that share the weights and have another.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        num_classes: int = 0,
        grid_width: int | None = None,
        dim: int = 128,
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
        self.instruction = nn.Embedding(length, dim)
        self.add_trunk(dim, layers, heads, kv_heads, hidden, dropout)
        coordinates = raster_coordinates(length, grid_width)
        front = torch.full_like(coordinates[:1], -1)  # the label stands above and left of the picture
        self.register_buffer("coordinates", torch.cat((coordinates, front)), persistent=False)
        self.register_buffer("order", torch.arange(length), persistent=False)

    @property
    def levels(self) -> Tensor:
        """(N,): one token at a time."""
        return torch.arange(self.length, device=self.order.device)

    def in_order(self, order: Tensor) -> "AnyOrderGPT":
        """This model, the same weights, generating in `order` (N,): the place of the first token, of the second, ...

        With (B, N), every row of a batch has its own. ValueError unless it names each place once.
        """
        order = order.to(self.order.device)
        if (
            order.dtype != torch.long
            or order.ndim not in (1, 2)
            or not torch.equal(order.sort(-1).values, self.levels.expand(*order.shape[:-1], -1))
        ):
            raise ValueError(
                f"an order names each of the places 0 .. {self.length - 1} once, long ({self.length},), or that for "
                f"each row; got {order.dtype} {tuple(order.shape)}"
            )
        view = copy.copy(self)
        view._buffers = self._buffers | {"order": order}
        return view

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row i is p(x at place o_i | the i tokens before it, cond), unnormalised. `tokens` (B, M): the first M.

        Without a cache the result is (B, M, V); with one, the rows it lacks, or the next `n` of each row. Row i reads
        neither token i or later ones, nor which places come after o_i. `cond` (B,) labels; None means the null class.
        """
        if n is None:
            n = tokens.shape[1] - (0 if cache is None else cache.length)
        query = torch.arange(n, device=tokens.device) if cache is None else cache.positions(n)
        order = self.orders(len(tokens))
        ids = torch.cat(
            (self.vocab_size + self.told(cond, tokens)[:, None], tokens), dim=1
        )  # input i reads token i - 1, at its place
        at = torch.cat((torch.full_like(order[:, :1], self.length), order), dim=1)
        rows = query.expand(len(tokens), n)
        asked = order.gather(1, rows)  # the place that comes next

        x = self.dropout(self.embedding(ids.gather(1, rows)) + self.instruction(asked))
        rotation, mask = self.rotation(at.gather(1, rows), asked), None
        if n > 1 or not (cache is None or cache.dense):  # a single new query sees every key there is
            mask = not_after(query, query if cache is None else cache.key_positions(n))
            mask = mask[:, None] if mask.ndim == 3 else mask
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, layer)
        if cache is not None:
            cache.advance(n)
        return self.head(self.norm(x))

    def orders(self, batch: int) -> Tensor:
        """The order of each of `batch` rows (B, N). A guided model asks with twice the rows of `order`."""
        if self.order.ndim == 1:
            return self.order.expand(batch, -1)
        if batch % len(self.order):
            raise ValueError(f"this view has orders for {len(self.order)} rows, got a batch of {batch}; make another")
        return self.order.repeat(batch // len(self.order), 1)

    def rotation(self, read: Tensor, asked: Tensor) -> Tensor:
        """A rotation for each head (B, H + G, n, d / 2): queries by the place asked for, keys by the place read."""
        attention = self.blocks[0].attention
        queries, keys = (rotary(self.coordinates[place], attention.head_dim)[:, None] for place in (asked, read))
        heads = (queries.expand(-1, attention.heads, -1, -1), keys.expand(-1, attention.kv_heads, -1, -1))
        return torch.cat(heads, dim=1)

    def loss(self, tokens: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None):
        """Cross-entropy in nats per token, every example in a random order of its own, and logs."""
        self.check(tokens, cond)
        if tokens.shape[1] != self.length:
            raise ValueError(f"training shuffles whole pictures of {self.length} tokens, got {tokens.shape[1]}")
        noise = torch.rand(tokens.shape, generator=generator, device=generator.device if generator else "cpu")
        shuffle = noise.argsort(-1).to(tokens.device)
        view = self.in_order(self.orders(len(tokens)).gather(1, shuffle))
        return TokenModel.loss(view, tokens.gather(1, shuffle), cond, generator=generator)
