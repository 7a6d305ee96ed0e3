"""Raster GPT: an autoregressive transformer over image tokens in reading order (LlamaGen, 2406.06525; id `llamagen`).

The chain rule turns any distribution over N discrete tokens into N next-token distributions, so likelihood is exact:

    log p(x | c) = sum_j log p(x_j | x_0 .. x_{j-1}, c)

A Llama decoder models all N factors in one pass: its inputs are [c, x_0, ..., x_{N-2}], where the condition c (a class
label, or the words of a caption) stands in front, and its output at input x_{j-1} is the distribution of x_j. The only
thing that knows about images is the rotary embedding, which turns queries and keys by (row, column) when `grid_width`
is given.

Shapes: tokens (B, N) long, labels (B,) or captions (B, P) long, logits (B, N, V). Likelihood, loss and checks are those
of every token model: nn/token_model.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.cache import KVCache
from minimal.nn.masks import ancestor, not_after
from minimal.nn.module import arguments
from minimal.nn.rope import raster_coordinates, rotary
from minimal.nn.token_model import TokenModel


class RasterGPT(TokenModel):
    """`vocab_size` V tokens, `length` N per example, `num_classes` labels and one null class for guidance.

    With captions of `cond_length` P words, `num_classes` is the number of words. A condition is dropped to the null
    class with probability `label_dropout` in training, so that one network knows both p(x | c) and p(x)
    (classifier-free guidance, 2207.12598).
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
        cond_length: int = 1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size, self.length, self.num_classes = vocab_size, length, num_classes
        self.label_dropout, self.cond_length = label_dropout, cond_length
        self.embedding = nn.Embedding(vocab_size + num_classes + 1, dim)  # tokens, then labels, then the null class
        self.add_trunk(dim, layers, heads, kv_heads, hidden, dropout)
        # A token stands where it stands in the picture, the condition in a row above, left of it.
        # Guesses may run over the end by the length of an example, see speculative.py.
        coordinates = raster_coordinates(2 * length, grid_width)
        front = torch.full((cond_length, coordinates.shape[1]), -1)
        front[:, -1] = torch.arange(-cond_length, 0)
        self.register_buffer("coordinates", torch.cat((front, coordinates)), persistent=False)

    @property
    def levels(self) -> Tensor:
        """(N,): one token at a time."""
        return torch.arange(self.length, device=self.coordinates.device)

    def forward(self, inputs: Tensor, cache: KVCache | None = None) -> Tensor:
        """Inputs (B, n) -> logits (B, n, V) of what follows each. With a cache, they continue what it holds."""
        n = inputs.shape[1]
        logits = self.run(inputs, *self.places(n, cache), cache)
        if cache is not None:
            cache.advance(n)
        return logits

    def run(self, inputs: Tensor, rotation: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """The network itself, for inputs (B, n) anywhere in a sequence: `places` and `tree_places` say where."""
        x = self.dropout(self.embedding(inputs))
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, layer)
        return self.head(self.norm(x))

    def places(self, n: int, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        """Where the next n inputs stand and what they see; the input at position j predicts token j.

        Rotations (n, d / 2), mask (n, T), or both with leading (B, 1).
        """
        before = self.cond_length - 1  # words that predict nothing, at positions below 0
        query = torch.arange(n, device=self.coordinates.device) - before if cache is None else cache.positions(n)
        rotation = rotary(self.coordinates[query + before], self.blocks[0].attention.head_dim)
        if n == 1 and (cache is None or cache.dense):
            return rotation, None  # a single new query sees every key there is
        mask = not_after(query, query if cache is None else cache.key_positions(n))
        return (rotation[:, None], mask[:, None]) if query.ndim == 2 else (rotation, mask)

    def tree_logits(self, inputs: Tensor, depth: Tensor, ancestors: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, m, V) of what follows each node of a tree of guesses that hangs on what `cache` holds.

        Node i is input `inputs[:, i]` (B, m), `depth[i]` (m,) places behind the first one not cached. It sees all that
        is cached, and node j where `ancestors[i, j]` (m, m), True on the diagonal. The new keys are appended but not
        counted: the next pass overwrites them, unless `cache.keep(nodes)` makes a branch of them permanent.
        """
        return self.run(inputs, *self.tree_places(depth, ancestors, cache), cache)

    def tree_places(self, depth: Tensor, ancestors: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Rotations (m, d / 2) and mask (m, T) of the nodes of a tree, or both with leading (B, 1)."""
        first, m = cache.positions(1), len(depth)
        rotation = rotary(self.coordinates[first + depth + self.cond_length - 1], self.blocks[0].attention.head_dim)
        node = (cache.key_positions(m) - first).clamp(-1, m)  # the node in each slot: -1 if older, m if empty
        # all that is cached is one ancestor of every node, in front of them; what is empty is nobody's, behind them
        family = ancestor(F.pad(F.pad(ancestors, (1, 0, 1, 0), value=True), (0, 1, 0, 1)))
        mask = family(torch.arange(1, m + 1, device=node.device), node + 1)
        return (rotation[:, None], mask[:, None]) if first.ndim == 2 else (rotation, mask)

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | x_<j, cond), unnormalised. `tokens` (B, M) is a canvas: row j never reads x_j or later ones.

        Without a cache the result is (B, M, V). With one, only the rows it lacks are computed: positions cache.length
        to M - 1, or the next `n` of each row. `cond` (B,) labels or (B, P) captions; None means the null class.
        """
        start = self.start(cond, len(tokens), tokens.device)
        before = self.cond_length - 1
        if cache is None:
            return self(torch.cat((start, tokens[:, :-1]), dim=1))[:, before:]
        if isinstance(cache.length, int):
            first = max(cache.length, 0)
            last = tokens.shape[1] if n is None else first + n
            new = tokens[:, max(first - 1, 0) : last - 1]
            if first == 0:
                new = torch.cat((start[:, cache.length + before :], new), dim=1)
            return self(new, cache)[:, first - last :]
        if n is None:
            raise ValueError("with a length per row there is no common end: say how many rows to compute, n")
        inputs = torch.cat((start, tokens), dim=1)
        return self(inputs.gather(1, cache.positions(n)), cache)

    def start(self, cond: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """The first inputs (B, P): ids of the label or of the words in the embedding table."""
        if cond is None:
            return torch.full((batch, self.cond_length), self.vocab_size + self.num_classes, device=device)
        return self.vocab_size + cond.view(batch, self.cond_length)
