"""VQ-VAE: an autoencoder whose latent vectors are words of a learned codebook (arXiv 1711.00937; id `vq-vae`).

The encoder turns an image into a grid of vectors, each vector is replaced by the nearest of K codes, and the decoder
paints the image from the codes. So the image becomes a sequence of whole numbers below K. A lookup has no gradient, so
the decoder's is handed to the encoder by one of the rules of gradients.py.

    k = argmin_j |z − e_j|²,    q = e_k,    loss = |x − decode(q)|² + β |z − sg(q)|²

with sg the stop-gradient. The second term commits the encoder to its codes. The codes learn in one of three ways, a
class for each:

    moving averages   N_j ← γ N_j + (1 − γ) n_j,    M_j ← γ M_j + (1 − γ) Σ_{k_i = j} z_i,    e_j = M_j / Ñ_j
    gradient          loss + |sg(z) − q|²
    cosine            the same on the unit sphere: z and all e_j have length one (ViT-VQGAN, arXiv 2110.04627)

with n_j the number of vectors that code j serves in this batch and Ñ the counts N after Laplace smoothing (arXiv
1711.00937, appendix A; 1906.00446). The first is a running k-means: each code follows the mean of its vectors. A code
that serves nobody learns nothing; once its running count is below a limit, it is moved onto a vector of the batch.

Shapes: vectors z and codes q (..., D); codebook (K, D); indices long (...). Images and grids: see grid.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal import processes
from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_vectors
from minimal.tokenizers.gradients import Estimator, estimator, nearest, straight_through
from minimal.tokenizers.grid import GridTokenizer


@processes.common_noise()
@torch.no_grad()
def kmeans(rows: Tensor, size: int, iterations: int = 10) -> Tensor:
    """`size` codes at the means of the `rows` (M, D) that they serve, by Lloyd's algorithm from random rows."""
    codes = rows[torch.randperm(len(rows))[torch.arange(size) % len(rows)].to(rows.device)].clone()
    for _ in range(iterations):
        counts, sums = served(rows, nearest(rows, codes), size)
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), codes)
    return codes


def served(rows: Tensor, indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many of the `rows` (M, D) each code serves, (size,), and their sum, (size, D)."""
    counts = torch.bincount(indices, minlength=size).to(rows.dtype)
    return counts, rows.new_zeros(size, rows.shape[1]).index_add_(0, indices, rows)


class Codebook(nn.Module):
    """What all codebooks (K, D) share; subclasses hold the table `codebook`, and say how it learns.

    `commitment_weight` β; `kmeans_init`: the first training batch sets the codes; `gradient`: an estimator or its name.
    """

    codebook: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        commitment_weight: float = 0.25,
        kmeans_init: bool = True,
        gradient: str | Estimator = "straight_through",
    ):
        super().__init__()
        self.dim, self.vocab_size = dim, codebook_size
        self.commitment_weight, self.estimator = commitment_weight, estimator(gradient)
        self.register_buffer("ready", torch.tensor(not kmeans_init))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (..., D) to: codes (..., D) with a gradient for `z`, indices (...), weighted loss."""
        check_vectors(z, self.dim)
        if self.training and not self.ready:
            self.kmeans(processes.gathered(z.detach().reshape(-1, self.dim)))
        choose = self.estimator if self.training else straight_through
        q, indices = choose(z, self.codebook)
        return q, indices, self.loss(z, self.codes(indices))

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Commitment of the vectors (..., D) to their codes (..., D)."""
        return self.commitment_weight * F.mse_loss(z, q.detach())

    def start(self, codes: Tensor) -> None:
        """Take over these codes (K, D)."""
        raise NotImplementedError

    def kmeans(self, rows: Tensor, iterations: int = 10) -> None:
        """Start at the means of `rows` (M, D)."""
        self.start(kmeans(rows, self.vocab_size, iterations))

    def nearest(self, z: Tensor) -> Tensor:
        """Indices (...) of the codes nearest to `z` (..., D)."""
        return nearest(z, self.codebook)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (...) to codes (..., D)."""
        return self.codebook[indices]

    def mean_code(self) -> Tensor:
        return self.codebook.mean(0)


class VectorQuantizer(Codebook):
    """A codebook learned by exponential moving averages.

    `decay` γ; `revive_below`: a code whose running count falls below it is moved (0 never revives).
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_below: float = 1.0,
        kmeans_init: bool = True,
        eps: float = 1e-5,
        gradient: str | Estimator = "straight_through",
    ):
        super().__init__(codebook_size, dim, commitment_weight, kmeans_init, gradient)
        self.decay, self.revive_below, self.eps = decay, revive_below, eps
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As above; in training mode the codes move afterwards: what was looked up is what the loss sees."""
        q, indices, loss = super().forward(z)
        if self.training:
            rows = z.detach().reshape(-1, self.dim)
            self.update(processes.gathered(rows), processes.gathered(indices.flatten()))
        return q, indices, loss

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        self.codebook, self.sums = codes, codes.clone()
        self.counts, self.ready = torch.ones_like(self.counts), torch.ones_like(self.ready)

    @processes.common_noise()
    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """One step of the moving averages, then revival of unused codes."""
        counts, sums = served(rows, indices, self.vocab_size)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + self.vocab_size * self.eps) * total
        self.codebook = self.sums / smoothed[:, None]
        dead = (self.counts < self.revive_below).nonzero().squeeze(-1)
        if len(dead):
            drawn = rows[torch.randint(len(rows), (len(dead),)).to(rows.device)]
            self.codebook[dead], self.sums[dead] = drawn, drawn * self.revive_below
            self.counts[dead] = self.revive_below


class GradientVectorQuantizer(Codebook):
    """A codebook of parameters, drawn to the vectors that it serves by the second term of van den Oord's loss.

    A code without vectors has no gradient, and nothing revives it.
    """

    def __init__(self, codebook_size: int, dim: int, **options):
        super().__init__(codebook_size, dim, **options)
        self.weight = nn.Parameter(torch.randn(codebook_size, dim))

    @property
    def codebook(self) -> Tensor:
        return self.weight

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        self.weight.copy_(codes)
        self.ready = torch.ones_like(self.ready)

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return super().loss(z, q) + F.mse_loss(q, z.detach())


class CosineVectorQuantizer(GradientVectorQuantizer):
    """Codes and vectors on the unit sphere, where the nearest code is the one at the smallest angle (2110.04627).

    Length carries no information, so no code is out of reach for being too long or too short.
    """

    @property
    def codebook(self) -> Tensor:
        return F.normalize(self.weight, dim=-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_vectors(z, self.dim)
        return super().forward(F.normalize(z, dim=-1))

    def nearest(self, z: Tensor) -> Tensor:
        return super().nearest(F.normalize(z, dim=-1))


class VQTokenizer(GridTokenizer):
    """Images to one code of a learned codebook per cell of a grid, and back."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        codebook_size: int = 128,
        dim: int = 8,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
    ):
        super().__init__(
            image_shape, VectorQuantizer(codebook_size, dim, decay, commitment_weight), widths, blocks, patch
        )
        self.config = arguments(locals())
