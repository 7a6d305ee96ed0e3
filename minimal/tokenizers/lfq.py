"""LFQ: the sign of each coordinate is a bit, b bits are a token (MAGVIT-v2, arXiv 2310.05737; id `lfq`).

b coordinates name 2ᵇ codes, the corners of a cube, without a table. Nothing makes an encoder visit all corners, so its
use of them is asked for by a loss. With p(c | z) = softmax over codes of −τ |z − c|², the expected code of one sample
should be certain (low entropy) and the codes of a batch diverse (high entropy):

    q = sign(z) ∈ {−1, 1}ᵇ,    index = Σ_j [z_j > 0] 2^(b − 1 − j)
    loss = w_e (E_z H(p(· | z)) − γ H(E_z p(· | z))) + w_c |z − sg(q)|²

Both entropies are sums over 2ᵇ codes, and neither needs them. p is a product over bits, p_j = σ(4τ z_j), because the
corners of a cube are all combinations of its bits. Hence, exactly,

    H(p(· | z)) = Σ_j H₂(σ(4τ z_j))                     b terms instead of 2ᵇ
    E_z p(a, c | z) = (1/N) Σ_n A[n, a] C[n, c] = AᵀC/N   a: first half of the bits, c: the second; A, C (N, 2^(b/2))

so (N, 2ᵇ) is never formed, and 2ᵇ numbers appear once. Beyond `group` bits even those are too many: then the bits are
split into groups, and the sum of the groups' entropies, an upper bound on H(E p), stands in for it.

Shapes: z, q (..., b); indices long (...), first bit the most significant. Entropies in nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal import processes
from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_indices, check_vectors
from minimal.tokenizers.grid import GridTokenizer


def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy of a bit that is 1 with probability σ(logits), the same shape: without overflow at either end."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def corners(bits: int, like: Tensor) -> Tensor:
    """All codes of a few bits, (2^bits, bits) of −1 and 1; row i is the code of index i."""
    place = torch.arange(bits - 1, -1, -1, device=like.device)
    index = torch.arange(2**bits, device=like.device)
    return (index[:, None] >> place & 1).to(like.dtype) * 2 - 1


def mean_distribution(logits: Tensor) -> Tensor:
    """Logits of bits (N, b) to the mean over n of the N distributions over codes, (2ᵇ,): one product of two halves."""
    split = (logits.shape[1] + 1) // 2
    first, second = (
        (half @ corners(half.shape[1], half).mT / 2).softmax(-1) for half in (logits[:, :split], logits[:, split:])
    )
    return (first.mT @ second).flatten() / len(logits)


class LFQ(nn.Module):
    """b bits from b signs, and a loss that asks for confident and diverse codes.

    `entropy_weight` w_e, `diversity` γ, `commitment_weight` w_c, `sharpness` τ; `group`: at most so many bits share one
    distribution.
    """

    def __init__(
        self,
        bits: int = 9,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.25,
        sharpness: float = 1.0,
        group: int = 16,
    ):
        super().__init__()
        if not 1 <= bits <= 62:
            raise ValueError(f"an index of {bits} bits does not fit; bits lie in 1 .. 62")
        if not 1 <= group <= 20:
            raise ValueError(f"a distribution over 2^{group} codes does not fit; groups have 1 to 20 bits")
        self.dim, self.vocab_size = bits, 2**bits
        self.entropy_weight, self.diversity, self.commitment_weight = entropy_weight, diversity, commitment_weight
        self.sharpness = sharpness
        groups = -(-bits // group)
        self.groups = [bits // groups + (i < bits % groups) for i in range(groups)]
        self.register_buffer("place_values", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    @property
    def scale(self) -> float:
        """Size of a code's coordinates."""
        return 1.0

    def normalised(self, z: Tensor) -> Tensor:
        """What is compared with the codes; here `z` itself."""
        return z

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (..., b) to: codes (..., b) with the gradient of `normalised`, indices (...), weighted loss."""
        check_vectors(z, self.dim)
        u = self.normalised(z if z.dtype == torch.float64 else z.float())
        bits = u > 0  # sign(0) would be 0, which is no code
        q = torch.where(bits, self.scale, -self.scale).to(u.dtype)
        loss = self.commitment_weight * F.mse_loss(u, q)
        if self.entropy_weight:
            each, mean = self.entropies(u.flatten(0, -2))
            loss = loss + self.entropy_weight * (each - self.diversity * mean)
        return (q + (u - u.detach())).to(z.dtype), self.number(bits), loss

    def entropies(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of `u` (N, b): the mean entropy of a sample, and the entropy of the mean (its bound, if there are groups)."""
        logits = 4 * self.sharpness * self.scale * u
        diversity = 0.0
        for part in logits.split(self.groups, dim=-1):
            with torch.autocast(u.device.type, enabled=False):  # bfloat16 has three digits, too few for a mean
                p = mean_distribution(part)
            p = p + (processes.gathered(p.detach()[None]).mean(0) - p.detach())  # the mean of all processes' batches
            diversity = diversity + torch.special.entr(p.clamp(min=torch.finfo(p.dtype).tiny)).sum()
        return bit_entropy(logits).sum(-1).mean(), diversity

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Index (M,) of the corner nearest to each of `rows` (M, b)."""
        check_vectors(rows, self.dim)
        return self.number(rows > 0)

    # Codes and their numbers

    def number(self, bits: Tensor) -> Tensor:
        """Booleans (..., b) to indices (...)."""
        return (bits * self.place_values).sum(-1)

    def indices(self, q: Tensor) -> Tensor:
        """Codes (..., b) to indices (...): the inverse of `codes`."""
        return self.nearest(q)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (...) to codes (..., b): the binary digits of the number."""
        check_indices(indices, self.vocab_size)
        bits = (indices[..., None] & self.place_values) > 0
        return torch.where(bits, self.scale, -self.scale)

    def mean_code(self) -> Tensor:
        return torch.zeros(self.dim, device=self.place_values.device)


class LFQTokenizer(GridTokenizer):
    """Images to one code of `bits` bits per cell of a grid, and back."""

    quantizer_class = LFQ

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        bits: int = 7,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.25,
        sharpness: float = 1.0,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
    ):
        super().__init__(
            image_shape,
            self.quantizer_class(bits, entropy_weight, diversity, commitment_weight, sharpness),
            widths,
            blocks,
            patch,
        )
        self.config = arguments(locals())
