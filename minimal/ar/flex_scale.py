"""FlexVAR: next-scale prediction without residuals, by as many steps as one likes (2502.20313; id `flexvar`).

In VAR scale k is what the scales before it left over, so they must all have been written, and the list of scales is
part of the model. Here every map is a whole picture at its own size (tokenizers/flex_scale.py), and what a scale reads
is the map before it, enlarged:

    log p(x | c) = sum_k log p(x_k | x_1 .. x_(k-1), c),      input of scale k = W bicubic(e_(x_(k-1)), p_k)

Nothing else may tie the model to one list. There is no embedding of the scale; positions come from one learned map of
vectors, G, resized to p_k x p_k by averaging; and in training every batch has a list of its own, `random_scales`. So a
list can be chosen when sampling, even with sizes that were never seen:

    few = model.with_scales((1, 4, 8))             # a view: the same weights, another list
    tokens = sample_cached(few, 16, cond=labels).tokens
    images = tokenizer.decode(few.split(tokens)[-1])

Everything else is VAR's: blocks, class, mask. Lists in training: sides 1 and S, and each side between with probability
1/2. (The paper's rule for its 16 sides differs, and it drops tokens in training where we drop activations.)

Shapes: tokens (B, L) long in order of scale, L = Σ p_k² for the list of this view; G (S², D); logits (B, L, V).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minimal import processes
from minimal.ar.scale import NextScale
from minimal.nn.rope import frequencies
from minimal.tokenizers.flex_scale import FlexScaleTokenizer
from minimal.tokenizers.multiscale import resize


def waves(side: int, dim: int) -> Tensor:
    """Sines and cosines of row and column of a square map, (side², dim)."""
    if dim % 4:
        raise ValueError(f"sines and cosines of two axes need a width divisible by 4, got {dim}")
    angles = torch.arange(side)[:, None] * frequencies(dim // 2, 100.0, torch.device("cpu"))  # (side, dim / 4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=-1).float()
    return torch.cat((axis.repeat_interleave(side, 0), axis.repeat(side, 1)), dim=-1)


class FlexScale(NextScale):
    """`codebook_size` V codes of `code_dim` numbers on maps of any sides; trained on sides up to `side` S.

    As built, its list is 1, 2, .., S: all of it is what `with_scales` and `maps` choose from. It holds a frozen copy of
    the tokenizer's codes; `of` makes one for a trained tokenizer. `options` are those of VAR.
    """

    def __init__(self, codebook_size: int, code_dim: int, side: int, num_classes: int = 0, dim: int = 128, **options):
        super().__init__(codebook_size, code_dim, tuple(range(1, side + 1)), num_classes, dim, **options)
        frame = dict(codebook_size=codebook_size, code_dim=code_dim, side=side, num_classes=num_classes, dim=dim)
        self.config = frame | options
        del self.level, self.position, self.quantizer  # what ties VAR to its list
        self.side = side
        self.grid = nn.Parameter(0.02 * waves(side, dim))
        self.register_buffer("codes", nn.functional.normalize(torch.randn(codebook_size, code_dim), dim=-1))

    @classmethod
    def of(cls, tokenizer: FlexScaleTokenizer, num_classes: int = 0, **options) -> "FlexScale":
        """An untrained model of the maps of `tokenizer`."""
        quantizer = tokenizer.quantizer
        model = cls(quantizer.vocab_size, quantizer.dim, tokenizer.side, num_classes, **options)
        model.codes.copy_(quantizer.codebook.detach())
        return model

    def with_scales(self, scales: Sequence[int]) -> "FlexScale":
        """The same model, weights shared, for maps of these rising sides."""
        scales = tuple(scales)
        if not scales or scales[0] < 1 or any(b <= a for a, b in zip(scales, scales[1:])):
            raise ValueError(f"scales are rising sides of at least 1, got {scales}")
        view = copy.copy(self)
        view.scales = scales
        view.length = sum(view.sizes)
        return view

    @processes.common_noise()
    def random_scales(self) -> tuple[int, ...]:
        """A list for one batch of training: side 1, each side between with probability 1/2, and S."""
        kept = (torch.rand(self.side - 2) < 0.5).tolist() if self.side > 2 else []
        return (1, *(p for p, keep in enumerate(kept, start=2) if keep), self.side)

    def maps(self, tokens: Tensor, scales: Sequence[int]) -> Tensor:
        """Of the tokens (B, L) of this list those of the maps of sides `scales`, in that order."""
        maps = dict(zip(self.scales, self.split(tokens)))
        if missing := set(scales) - set(maps):
            raise ValueError(f"there are maps of sides {self.scales}, none of {sorted(missing)}")
        return torch.cat([maps[p] for p in scales], dim=1)

    @torch.no_grad()
    def pictures(self, tokens: Tensor, first: int, stop: int) -> list[Tensor]:
        """What scales `first` to `stop` - 1 read: the codes of the map before, enlarged; (B, p_k², D) each."""
        maps = self.split(tokens)
        return [resize(self.codes[maps[k - 1]], self.scales[k], "bicubic") for k in range(max(first, 1), stop)]

    def places(self, first: int, stop: int) -> Tensor:
        """The map of positions at the size of each scale, (M, dim)."""
        return torch.cat([resize(self.grid[None], p, "area")[0] for p in self.scales[first:stop]])
