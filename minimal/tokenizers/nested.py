"""Nested dropout: show the decoder only the first k of N latents, k random, and they sort themselves by importance
(arXiv 1402.0915; id `nested-dropout`).

A prefix must be a picture by itself, so the first latent learns what helps most on its own, the second what helps
most given the first, and so on. The lengths follow a law p(1), p(2), ..., and the law decides how often each latent
is trained:

    k ~ p,    loss = |x − decode(z_1 .. z_k)|²,    P(latent j is kept) = p(j) + p(j + 1) + ... + p(M)

The law of ReToK (arXiv 2601.01535; id `retok`) reaches beyond the N latents: M − N redundant ones behind the real
sequence take many of the cuts, and exist in training only. (Its semantic loss, and the last tuning of its decoder, are
not here.) Where encoder and decoder are linear the latents become the principal components, in order, where a plain
autoencoder finds their span and nothing more.

Shapes: a law is M numbers; lengths long (B,); images as rows x (B, P); latents (B, N).
"""

from itertools import accumulate

import torch
from torch import Tensor, nn

Law = tuple[float, ...]


def uniform(longest: int, shortest: int = 1) -> Law:
    """Every length from `shortest` to `longest`, each as likely."""
    if not 1 <= shortest <= longest:
        raise ValueError(f"lengths run from 1 <= shortest <= longest, got {shortest} to {longest}")
    return (0.0,) * (shortest - 1) + (1 / (longest - shortest + 1),) * (longest - shortest + 1)


def doublings(longest: int) -> Law:
    """1, 2, 4, ..., `longest`, each as likely (FlexTok, arXiv 2502.13967)."""
    if longest < 1 or longest & (longest - 1):
        raise ValueError(f"doubling from 1 never gives {longest}; take a power of two")
    return tuple(float(k & (k - 1) == 0) / longest.bit_length() for k in range(1, longest + 1))


def kept(law: Law) -> Law:
    """P(latent j is kept) for j = 1 .. M: the mass of all lengths from j on."""
    return tuple(accumulate(reversed(law)))[::-1]


def draw(law: Law, batch: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
    """Lengths (batch,) from the law, one for each image: one for all would make every step's gradient noisier."""
    if min(law) < 0 or abs(sum(law) - 1) > 1e-6:
        raise ValueError(f"a law is a distribution over lengths; these sum to {sum(law):.6g}, least {min(law):.6g}")
    weights = torch.tensor(law, device=device)
    return 1 + torch.multinomial(weights, batch, replacement=True, generator=generator)


class LinearAutoencoder(nn.Module):
    """x ≈ Σ_j (w_j · x) v_j, with the v_j as columns of `axes` (P, N), after a law over 1 .. N.

    All prefixes together cost hardly more than one here, so the loss is the mean over the law and draws nothing.
    """

    def __init__(self, dims: int, law: Law):
        super().__init__()
        self.law = law
        self.read = nn.Parameter(torch.randn(len(law), dims) / dims**0.5)
        self.axes = nn.Parameter(torch.randn(dims, len(law)) / dims**0.5)

    def prefixes(self, x: Tensor) -> Tensor:
        """Rows (B, P) to the reconstructions from 1, 2, ..., N latents, (B, N, P)."""
        return ((x @ self.read.T)[..., None] * self.axes.T).cumsum(1)

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """The squared error per row, averaged over the law."""
        errors = (x[:, None] - self.prefixes(x)).square().sum(-1).mean(0)  # (N,)
        return errors @ errors.new_tensor(self.law), {"full": errors[-1].detach()}
