"""VQ-VAE: an autoencoder whose latent vectors are words of a learned codebook (arXiv 1711.00937; id `vq-vae`).

The encoder turns an image into a grid of vectors, each vector is replaced by the nearest of K codes, and the
decoder paints the image from the codes. The image is thereby a sequence of small integers. Rounding has no
gradient, so the decoder's is copied straight through to the encoder. The codebook is not trained by gradient but is
a running k-means: each code follows the mean of the vectors it serves.

    k = argmin_j |z − e_j|²,    q = e_k,    loss = |x − decode(z + sg(q − z))|² + β |z − sg(q)|²
    N_j ← γ N_j + (1 − γ) n_j,    M_j ← γ M_j + (1 − γ) Σ_{k_i = j} z_i,    e_j = M_j / Ñ_j

with n_j the number of vectors served in this batch, Ñ the counts N after Laplace smoothing (arXiv 1711.00937,
appendix A; 1906.00446), and sg the stop-gradient. A code that serves nobody would stay where it is for ever: it is
moved onto a vector of the batch.

Shapes: images (B, C, H, W); latents z, q (B, N, D) with N = H/2ᵏ · W/2ᵏ cells; tokens long (B, N).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal import processes
from minimal.nn.module import arguments
from minimal.tokenizers.grid import GridTokenizer


class VectorQuantizer(nn.Module):
    """A codebook (K, D) learned by exponential moving averages.

    `decay` γ; `commitment_weight` β; `revive_below`: a code whose running count falls below it is moved (0 never
    revives). The first training batch sets the codes by k-means when `kmeans_init` is on.
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
    ):
        super().__init__()
        self.dim, self.vocab_size = dim, codebook_size
        self.decay, self.commitment_weight, self.revive_below, self.eps = decay, commitment_weight, revive_below, eps
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("ready", torch.tensor(not kmeans_init))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (..., D) to: codes (..., D) with the gradient of `z`, indices (...), weighted commitment loss.

        Learns in training mode.
        """
        rows = z.detach().reshape(-1, z.shape[-1])
        if self.training and not self.ready:
            self.kmeans(processes.gathered(rows))
        indices = self.nearest(rows)
        q = self.codebook[indices].view_as(z)  # before the update, which replaces the codebook
        if self.training:
            self.update(processes.gathered(rows), processes.gathered(indices))
        commitment_loss = self.commitment_weight * F.mse_loss(z, q)
        return z + (q - z).detach(), indices.view(z.shape[:-1]), commitment_loss

    @torch.no_grad()
    def nearest(self, rows: Tensor, chunk: int = 512) -> Tensor:
        """Index (M,) of the code nearest to each of `rows` (M, D).

        |z − e|² is smallest where z·e − |e|²/2 is largest: one product. Chunks keep its result in the processor's
        cache.
        """
        half_norms = self.codebook.square().sum(-1) / -2
        return torch.cat([torch.addmm(half_norms, part, self.codebook.mT).argmax(-1) for part in rows.split(chunk)])

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (...) to codes (..., D)."""
        return self.codebook[indices]

    def mean_code(self) -> Tensor:
        return self.codebook.mean(0)

    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """One step of the moving averages, then revival of unused codes."""
        K = len(self.codebook)
        self.counts.lerp_(torch.bincount(indices, minlength=K).to(rows.dtype), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, rows), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.eps) / (total + K * self.eps) * total
        self.codebook = self.sums / smoothed[:, None]
        dead = (self.counts < self.revive_below).nonzero().squeeze(-1)
        if len(dead):
            drawn = rows[torch.randint(len(rows), (len(dead),)).to(rows.device)]
            self.codebook[dead], self.sums[dead] = drawn, drawn * self.revive_below
            self.counts[dead] = self.revive_below

    @torch.no_grad()
    def kmeans(self, rows: Tensor, iterations: int = 10) -> None:
        """Start the codes at the means of `rows` (M, D), by Lloyd's algorithm from random rows."""
        K = len(self.codebook)
        self.codebook = rows[torch.randperm(len(rows))[torch.arange(K) % len(rows)].to(rows.device)].clone()
        for _ in range(iterations):
            indices = self.nearest(rows)
            counts = torch.bincount(indices, minlength=K)[:, None]
            means = torch.zeros_like(self.codebook).index_add_(0, indices, rows) / counts.clamp(min=1)
            self.codebook = torch.where(counts > 0, means, self.codebook)
        self.counts, self.sums = torch.ones_like(self.counts), self.codebook.clone()
        self.ready = torch.ones_like(self.ready)


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
