"""VAR: next-scale prediction, a picture from coarse to fine in as many steps as it has scales (2404.02905; id `var`).

A multi-scale tokenizer turns an image into K maps of tokens, p_k x p_k for rising p_k. The model predicts map after
map, each map as a whole:

    log p(x | c) = sum_k log p(x_k | x_1 .. x_(k-1), c),      log p(x_k | ...) = sum over the p_k² cells

What it reads before it writes scale k is not the map before. It is the picture so far, f̂_(k-1), shrunk to p_k x p_k:
for every cell that is about to be written there is one input, and it says what is already there. Cells of a scale see
each other's inputs, and all of the scales before (`not_after` on the index of the scale). They do not see each other's
tokens, which are drawn independently: that is the price of K steps instead of N.

    input of scale 1        class + start
    input of scale k        W area(f̂_(k-1), p_k),      f̂_k = f̂_(k-1) + φ_k(bicubic(e_(x_k)))

The class also modulates every block (adaLN with weights shared by the blocks, as in the paper's largest model). Blocks
are those of the raster GPT, so that the two can be compared: RMS norms, SwiGLU, queries and keys not normalised.

Shapes: tokens (B, L) long in order of scale, L = Σ p_k²; labels (B,) long; logits (B, L, V).
"""

from itertools import accumulate

import torch
from torch import Tensor, nn

from minimal.nn.adaln import Modulation, modulate
from minimal.nn.blocks import Block, init_weights
from minimal.nn.cache import KVCache
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.nn.token_model import TokenModel
from minimal.tokenizers.multiscale import MultiScaleQuantizer, MultiScaleTokenizer


class NextScale(TokenModel):
    """`codebook_size` V codes of `code_dim` numbers on maps of sides `scales`.

    It holds a frozen copy of the tokenizer's quantizer, which says what a scale adds to the picture; `of` makes one
    for a trained tokenizer.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        scales: tuple[int, ...],
        num_classes: int = 0,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size, self.num_classes, self.label_dropout = codebook_size, num_classes, label_dropout
        self.scales = tuple(scales)
        self.length = sum(self.sizes)
        self.labels = nn.Embedding(num_classes + 1, dim)  # the last is the null class
        self.word = nn.Linear(code_dim, dim)
        self.level = nn.Embedding(len(self.scales), dim)
        self.position = nn.Embedding(self.length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, None, hidden, dropout, shared=True) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5, elementwise_affine=False)
        self.modulation, self.last_modulation = Modulation(dim, dim, chunks=6), Modulation(dim, dim, chunks=2)
        self.head = nn.Linear(dim, codebook_size)
        init_weights(self, layers)
        nn.init.zeros_(self.head.weight)  # the first prediction is uniform
        nn.init.zeros_(self.head.bias)
        self.quantizer = MultiScaleQuantizer(codebook_size, code_dim, self.scales).requires_grad_(False)

    @classmethod
    def of(cls, tokenizer: MultiScaleTokenizer, num_classes: int = 0, **options) -> "NextScale":
        """An untrained model of the tokens of `tokenizer`."""
        quantizer = tokenizer.quantizer
        model = cls(quantizer.vocab_size, quantizer.dim, quantizer.scales, num_classes, **options)
        model.quantizer.load_state_dict(quantizer.state_dict())
        return model

    @property
    def sizes(self) -> list[int]:
        """Tokens of each scale."""
        return [p * p for p in self.scales]

    @property
    def levels(self) -> Tensor:
        """(L,): the scale of each token, 0, 1, .."""
        device = self.head.weight.device
        return torch.arange(len(self.scales), device=device).repeat_interleave(torch.tensor(self.sizes, device=device))

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | scales before its own, cond), unnormalised. `tokens` (B, M) is a canvas of whole scales.

        Without a cache the result is (B, M, V); with one, the rows it lacks, or the next `n`. A row never reads tokens
        of its own scale or of later ones. `cond` (B,) labels; None means the null class.
        """
        if cache is not None and not isinstance(cache.length, int):
            raise ValueError(f"all rows write the same scale: use a KVCache, not a {type(cache).__name__}")
        first = 0 if cache is None else cache.length
        last = tokens.shape[1] if n is None else first + n
        k, stop = self.scale_at(first), self.scale_at(last)
        if stop <= k:
            raise ValueError(f"no rows to compute: the cache holds {first} tokens, and the canvas ends at {last}")
        label = self.labels(self.told(cond, tokens))[:, None]
        x = self.dropout(self.inputs(tokens, label, k, stop) + self.places(k, stop))
        mask = None  # one scale sees all that there is
        if stop > k + 1:
            positions = torch.arange(first, last, device=tokens.device)
            keys = positions if cache is None else cache.key_positions(last - first)
            mask = not_after(positions, keys, self.levels)
        shared = self.modulation.linear(nn.functional.silu(label))
        for layer, block in enumerate(self.blocks):
            x = block(x, None, mask, cache, layer, shared)
        if cache is not None:
            cache.advance(last - first)
        return self.head(modulate(self.norm(x), *self.last_modulation(label)))

    @torch.no_grad()
    def pictures(self, tokens: Tensor, first: int, stop: int) -> list[Tensor]:
        """What scales `first` to `stop` - 1 (of 0, 1, ..) read: the sum of the scales before, at their own size.

        (B, p_k², D) each; nothing for scale 0. The codes are data here: no gradient reaches them.
        """
        maps, f_hat, read = self.split(tokens), 0.0, []
        for k in range(stop - 1):
            f_hat = self.quantizer.accumulate(f_hat, maps[k], k)
            if k + 1 >= first:
                read.append(self.quantizer.next_input(f_hat, k))
        return read

    def inputs(self, tokens: Tensor, label: Tensor, first: int, stop: int) -> Tensor:
        """Inputs (B, M, dim) of scales `first` to `stop` - 1: the label for scale 0, pictures for the others."""
        read = [self.word(picture) for picture in self.pictures(tokens, first, stop)]
        return torch.cat([label.expand(-1, self.sizes[0], -1), *read] if first == 0 else read, dim=1)

    def places(self, first: int, stop: int) -> Tensor:
        """What says where a cell stands, (M, dim) for scales `first` to `stop` - 1."""
        positions = torch.arange(sum(self.sizes[:first]), sum(self.sizes[:stop]), device=self.head.weight.device)
        return self.position(positions) + self.level(self.levels[positions])

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, L), or the first scales of them, as one map (B, p_k²) a scale."""
        maps = []
        for size in self.sizes:
            if tokens.shape[1]:
                maps.append(tokens[:, :size])
                tokens = tokens[:, size:]
        return maps

    def scale_at(self, length: int) -> int:
        """How many whole scales `length` tokens are. ValueError if the last is not whole."""
        ends = [0, *accumulate(self.sizes)]
        if length not in ends:
            raise ValueError(f"{length} tokens are not whole scales, which end at {', '.join(map(str, ends[1:]))}")
        return ends.index(length)
