"""The KL autoencoder: tokens stay real numbers, but precision has a price (arXiv 1312.6114, 2112.10752; id `kl-vae`).

The encoder does not name a point but a region: a Gaussian for each number of the latent, narrow where the decoder needs
precision, wide where it does not. In training the decoder sees a draw from it, and the distance of the region from
N(0, 1) is paid for, in nats. With a weight of 0 this is an autoencoder; with a small one the latents get a known scale;
with a large one they fall silent, unit after unit.

    mean, logvar = encoder(x),    z = mean + exp(logvar / 2) · noise
    KL   = ½ Σ (mean² + var − 1 − log var)                 summed over all N · D numbers of an image
    loss = |x − decoder(z)|² / pixels + weight · KL        averaged over the batch

Such a loss is a bound on −log p(x) (times a constant) under pixel noise of variance weight · pixels / 2. The latent
diffusion paper writes 10⁻⁶ and means another sum, so weights are compared by that variance, not by their digits.

Tokens are the means, shifted and scaled to unit variance over the training images (`calibrate`, after training), so
that a flow that is trained on them needs to know nothing. The decoder's units are `embed(tokens)`.

Shapes: images (B, C, H, W); mean, logvar, z and tokens (B, N, D), N = H/f · W/f.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_vectors
from minimal.tokenizers.grid import GridTokenizer

LOGVAR = (-30.0, 20.0)  # exp stays finite, and a width of 3e-7 is as good as none


class DiagonalGaussian:
    """N(mean, var) for every number on its own, from moments (..., 2D): the means, then the logarithms of var."""

    def __init__(self, moments: Tensor):
        exact = torch.promote_types(moments.dtype, torch.float32)  # half precision would lose var − 1 − log var
        self.mean, logvar = moments.to(exact).chunk(2, dim=-1)
        self.logvar = logvar.clamp(*LOGVAR)

    @property
    def std(self) -> Tensor:
        return (self.logvar / 2).exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw (..., D) that carries the gradient to mean and std."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator).to(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) of each number, (..., D), in nats."""
        return (self.mean.square() + self.logvar.expm1() - self.logvar) / 2  # expm1: var − 1 without cancellation


class Scale(nn.Module):
    """In the place of a quantizer: tokens = (z − shift) / scale. One scale for all: silent channels stay silent."""

    vocab_size = None

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Take the mean of each channel of z (..., D), and the standard deviation of all of them around it."""
        shift = z.mean(tuple(range(z.ndim - 1)))
        scale = (z - shift).square().mean().sqrt()
        if not scale > 1e-4:
            raise ValueError(f"latents vary by {scale:.1e}: the posterior collapsed; train with a smaller weight")
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def tokens(self, z: Tensor) -> Tensor:
        return (z - self.shift) / self.scale

    def codes(self, tokens: Tensor) -> Tensor:
        return self.shift + self.scale * tokens

    def mean_code(self) -> Tensor:
        return self.shift


class KLTokenizer(GridTokenizer):
    """Images to `dim` real numbers per cell of a grid, and back. `weight` is that of the KL, in nats per image."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        dim: int = 4,
        weight: float = 1e-6,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
    ):
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of the KL is a number of at least 0, got {weight}")
        super().__init__(image_shape, Scale(dim), widths, blocks, patch)
        self.config = arguments(locals())
        self.weight = weight
        self.encoder[-1] = nn.Conv2d(widths[-1], 2 * dim, 1)  # a mean and a width for each number

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """Images (B, C, H, W) to the region of each number, before shift and scale."""
        return DiagonalGaussian(self.latents(x))

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, D): the middle of the region, always the same."""
        return self.quantizer.tokens(self.posterior(x).mean)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, D) drawn from the region: what the KL pays for."""
        return self.quantizer.tokens(self.posterior(x).sample(generator))

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) to what the decoder reads, (B, N, D)."""
        check_vectors(tokens, self.quantizer.dim)
        if tokens.ndim != 3 or tokens.shape[1] != self.length:
            raise ValueError(f"tokens must be (B, {self.length}, {self.quantizer.dim}), got {tuple(tokens.shape)}")
        return self.quantizer.codes(tokens)

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> None:
        """Make the tokens of these images (M, C, H, W) have mean 0 per channel and variance 1. Changes no picture."""
        self.quantizer.fit(torch.cat([self.posterior(part).mean for part in images.split(500)]))

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """Mean squared error over pixels plus weight times the KL, summed over an image."""
        region = self.posterior(x)
        mse = F.mse_loss(self.paint(region.sample()), x)
        kl = region.kl().flatten(1).sum(1).mean()
        return mse + self.weight * kl, {"mse": mse.detach(), "kl": kl.detach()}


def active_units(means: Tensor, threshold: float = 1e-2) -> int:
    """How many of the numbers in means (B, ...) vary from image to image: Var[mean] > threshold (arXiv 1509.00519)."""
    return int((means.flatten(1).var(0) > threshold).sum())
