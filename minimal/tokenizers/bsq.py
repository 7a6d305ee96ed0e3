"""BSQ: LFQ on a sphere, where rounding cannot go far wrong (arXiv 2406.07548; id `bsq`).

The vector is scaled to length one before its signs are taken, and the codes are the corners of a cube that the sphere
touches: they have length one too. Then no latent can run away from its code, and the error is bounded:

    u = z / |z|,    q = sign(u) / √b,    |u − q|² = 2 − 2 |u|₁ / √b ≤ 2 − 2 / √b

(|u|₁ ≥ |u|₂ = 1, with equality on an axis). Entropies are those of LFQ with codes scaled by 1/√b, p_j = σ(4τ u_j / √b).

Shapes: as in lfq.py. The gradient passes straight through to u, behind the scaling, not to z.
"""

import torch.nn.functional as F
from torch import Tensor

from minimal.tokenizers.lfq import LFQ, LFQTokenizer


class BSQ(LFQ):
    """b bits from the b signs of a vector of length one."""

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    def normalised(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)


class BSQTokenizer(LFQTokenizer):
    """Images to one code of `bits` bits, a corner on the sphere, per cell of a grid, and back."""

    quantizer_class = BSQ
