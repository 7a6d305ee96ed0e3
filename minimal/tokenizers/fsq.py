"""FSQ: squash a few numbers into a range and round them; the grid of results is the codebook (arXiv 2309.15505; `fsq`).

Nothing is looked up and no codebook is learned. A vector has few coordinates, each is one of L_j levels, and all
combinations together are the ∏ L_j codes. Rounding has no gradient, so it is taken as the identity (straight through);
no loss beside the reconstruction is needed, and no code can die.

    y_j = tanh(z_j + s_j) h_j − o_j,    k_j = round(y_j),    q_j = k_j / ⌊L_j / 2⌋
    index = Σ_j (k_j + ⌊L_j / 2⌋) ∏_(i<j) L_i

The index is a number in mixed radix whose first digit counts least. An even number of levels has no middle: the offset
o_j = 1/2 moves the grid half a step, to −L/2 ... L/2 − 1, and the shift s_j = artanh(o_j / h_j) keeps y = 0 at z = 0.

The reach h decides how wide the outermost bins are. With h = 1.001 (L − 1)/2 ("endpoint", as published) y barely gets
past the outermost levels, so theirs are half as wide as the others. With h = L/2 ("equal") all have width one.

Shapes: z, q (..., d) with d = len(levels); indices long (...).
"""

import math

import torch
from torch import Tensor, nn

from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_indices, check_vectors
from minimal.tokenizers.grid import GridTokenizer

BINS = ("endpoint", "equal")


class FSQ(nn.Module):
    """Rounds coordinate j to `levels[j]` values. `bins`: "endpoint" or "equal" width, see above."""

    slope = 2.0  # of the squashing 2σ(slope z) − 1 = tanh(slope z / 2); 2 makes it the tanh

    def __init__(self, levels: tuple[int, ...] = (5, 5, 5, 5), bins: str = "endpoint"):
        super().__init__()
        if not len(levels) or any(level != int(level) or level < 2 for level in levels):
            raise ValueError(f"levels are whole numbers of at least 2, one per coordinate; got {levels}")
        if math.prod(levels) >= 2**63:
            raise ValueError(f"{levels} make {math.prod(levels):.1e} codes; an index must fit 63 bits: fewer levels")
        if bins not in BINS:
            raise ValueError(f"bins are one of {', '.join(BINS)}, got {bins!r}")
        self.bins, self.dim, self.vocab_size = bins, len(levels), math.prod(levels)
        place = [math.prod(levels[:j]) for j in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Any numbers (..., d) to y, which rounds to levels −⌊L/2⌋ ... ⌈L/2⌉ − 1."""
        reach = (self.levels - 1) * (1 + 1e-3) / 2 if self.bins == "endpoint" else self.levels * (1 - 1e-6) / 2
        offset = (self.levels % 2 == 0) / 2
        return torch.tanh(z * (self.slope / 2) + torch.atanh(offset / reach)) * reach - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (..., d) to: codes (..., d) with the gradient of `bound`, indices (...), a loss of 0."""
        check_vectors(z, self.dim)
        y = self.bound(z if z.dtype == torch.float64 else z.float())  # bfloat16 would round before we do
        k = y.detach().round()
        q = (k + (y - y.detach())) / (self.levels // 2)  # exactly k / ⌊L/2⌋, since y − y = 0
        return q.to(z.dtype), self.number(k), z.new_zeros(())

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Index (M,) of the cell of each of `rows` (M, d)."""
        check_vectors(rows, self.dim)
        return self.number(self.bound(rows if rows.dtype == torch.float64 else rows.float()).round())

    # Codes and their numbers

    def number(self, k: Tensor) -> Tensor:
        """Levels k (..., d), counted from the middle, to indices (...). In integers: floats count to 2²⁴ only."""
        return (k.long() * self.place_values).sum(-1) + (self.levels // 2 * self.place_values).sum()

    def indices(self, q: Tensor) -> Tensor:
        """Codes (..., d) to indices (...): the inverse of `codes`."""
        check_vectors(q, self.dim)
        return self.number((q.float() * (self.levels // 2)).round())

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (...) to codes (..., d): the digits of the number, from the last place up."""
        check_indices(indices, self.vocab_size)
        digits = indices[..., None] // self.place_values % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)

    def mean_code(self) -> Tensor:
        return (self.levels % 2 - 1) / self.levels  # 0 for odd levels; an even grid −1 ... 1 − 2/L leans to one side


class FSQTokenizer(GridTokenizer):
    """Images to one code of a fixed grid of codes per cell, and back."""

    quantizer_class = FSQ

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        levels: tuple[int, ...] = (5, 5, 5),
        bins: str = "endpoint",
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
    ):
        super().__init__(image_shape, self.quantizer_class(levels, bins), widths, blocks, patch)
        self.config = arguments(locals())
