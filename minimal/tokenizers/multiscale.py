"""The tokenizer of VAR: one image as a pyramid of token maps, from a single token to the full grid (arXiv 2404.02905).

Residual VQ whose levels have different resolutions. Level k shrinks the leftover to p_k x p_k cells by averaging,
quantizes those, and enlarges the codes to the full grid; the next level sees what that left over *at full resolution*,
so nothing is lost on the way. Coarse tokens are few and say what is where; a generator can emit a whole map per step.

    z_k = area(r_(k-1), p_k),    i_k = nearest(z_k),    h_k = φ_k(bicubic(e_(i_k), p_S)),    r_k = r_(k-1) − h_k
    φ(h) = (1 − ρ) h + ρ conv3x3(h),    f̂_k = h_1 + ... + h_k
    loss = |x − decode(f + sg(f̂_S − f))|² + 1/S Σ_k (β |f − sg(f̂_k)|² + |sg(f) − f̂_k|²)

The convolution φ repairs what enlarging blurred. It learns from the last term alone, since the decoder's gradient goes
straight through to the encoder. VAR learns its codebook by that term too; here it follows by moving averages, which in
800 steps on our scenes used all 256 codes instead of 95 and was 2 dB better.

What a next-scale generator reads before it writes scale k + 1 is area(f̂_k, p_(k+1)), known from the scales before. In
training `teacher_forcing_input` gives the inputs of all scales but the first; a sampler meets them one by one:

    f_hat = 0.0
    for k, p in enumerate(tokenizer.quantizer.scales):
        indices = ...                                          # (B, p²), drawn from what was read so far
        f_hat = tokenizer.quantizer.accumulate(f_hat, indices, k)
        if k + 1 < tokenizer.quantizer.depth:
            read = tokenizer.quantizer.next_input(f_hat, k)    # (B, p_(k+1)², D)
    images = tokenizer.paint(f_hat)

Shapes: latents f, sums f̂ (B, N, D) with N = p_S²; tokens long (B, L) in order of scale, L = Σ p_k².
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.tokenizers.residual import LevelTokenizer, ResidualQuantizer


def resize(rows: Tensor, side: int, mode: str) -> Tensor:
    """Square maps as rows (B, p·p, D) in raster order to (B, side·side, D)."""
    p = round(rows.shape[1] ** 0.5)
    if p == side:
        return rows
    return F.interpolate(rows.mT.unflatten(-1, (p, p)), (side, side), mode=mode).flatten(2).mT


class Phi(nn.Conv2d):
    """φ(h) = (1 − ρ) h + ρ conv3x3(h) on rows (B, side·side, D). Starts as the identity."""

    def __init__(self, dim: int, side: int, ratio: float = 0.5):
        super().__init__(dim, dim, 3, padding=1)
        self.side, self.ratio = side, ratio
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, h: Tensor) -> Tensor:
        h = h.mT.unflatten(-1, (self.side, self.side))
        return h.lerp(super().forward(h), self.ratio).flatten(2).mT


def nearest_places(scales: int, n: int) -> list[int]:
    """Which of `n` convolutions serves each of so many scales: the one whose place is nearest to that of the scale.

    Places of scales lie evenly from 0 to 1, those of convolutions from a to 1 − a with a = 1 / 3n. Ties go up, and are
    found in fractions: floating numbers would toss a coin.
    """
    first, step = Fraction(1, 3 * n), Fraction(3 * n - 2, 3 * n * max(n - 1, 1))
    distances = ([abs(Fraction(k, max(scales - 1, 1)) - first - j * step) for j in range(n)] for k in range(scales))
    return [max(j for j in range(n) if row[j] == min(row)) for row in distances]


class MultiScaleQuantizer(ResidualQuantizer):
    """Residual VQ over square maps of rising side `scales`; the last is the grid itself.

    `phis` convolutions are shared by the scales, see `nearest_places`. `mode`: how codes are enlarged, "bicubic" in the
    paper. The codebook is one for all scales unless `shared` is off. `options` are those of residual VQ.
    """

    def __init__(
        self,
        codebook_size: int = 64,
        dim: int = 8,
        scales: tuple[int, ...] = (1, 2, 4),
        shared: bool = True,
        *,
        phis: int = 4,
        phi_ratio: float = 0.5,
        mode: str = "bicubic",
        **options,
    ):
        super().__init__(codebook_size, dim, len(scales), shared, **options)
        self.scales, self.mode = tuple(scales), mode
        self.phis = nn.ModuleList(Phi(dim, scales[-1], phi_ratio) for _ in range(phis))
        self.places = nearest_places(self.depth, phis)

    def phi(self, k: int) -> Phi:
        """The convolution of scale k."""
        return self.phis[self.places[k]]

    def sizes(self, grid: tuple[int, int]) -> list[int]:
        if grid != (self.scales[-1], self.scales[-1]):
            raise ValueError(f"the last scale must be the grid, {grid[0]} x {grid[1]}; got scales {self.scales}")
        return [p * p for p in self.scales]

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tokens.split([p * p for p in self.scales], dim=1)

    def down(self, rest: Tensor, k: int) -> Tensor:
        return resize(rest, self.scales[k], "area")

    def up(self, codes: Tensor, k: int) -> Tensor:
        p = self.scales[k]
        if codes.shape[1] != p * p:  # another square would be enlarged without a word
            raise ValueError(f"scale k = {k} has {p} x {p} tokens; got {codes.shape[1]}")
        return self.phi(k)(resize(codes, self.scales[-1], self.mode))

    def loss(self, z: Tensor, sums: list[Tensor]) -> Tensor:
        return super().loss(z, sums) + sum(F.mse_loss(total, z.detach()) for total in sums) / self.depth

    def next_input(self, total: Tensor, k: int) -> Tensor:
        """What the generator reads before scale k + 1: the sum after scale k, (B, N, D), shrunk to (B, p_(k+1)², D)."""
        if not 0 <= k < self.depth - 1:
            raise ValueError(f"scales are numbered 0 to {self.depth - 1}, and none follows the last; got k = {k}")
        return self.down(total, k + 1)


class MultiScaleTokenizer(LevelTokenizer):
    """Images to a pyramid of token maps, and back."""

    quantizer_class = MultiScaleQuantizer

    @torch.no_grad()
    def teacher_forcing_input(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to what a next-scale generator reads from scale 2 on, (B, L − p_1², D), in order of scale.

        Without gradients: to the generator these are data, and the convolutions φ are not its to train.
        """
        sums = self.partial_sums(tokens)[:-1]
        return torch.cat([self.quantizer.next_input(total, k) for k, total in enumerate(sums)], dim=1)
