"""Convolutional blocks for autoencoders (the form of VQGAN, arXiv 2012.09841, reduced to what small images need).

A residual block keeps the resolution; a strided convolution halves it; nearest-neighbour enlargement and a
convolution double it (a transposed convolution would leave checkerboards). Encoder and decoder mirror each other.
The last dimension of the latent is its number of channels, so a tokenizer sees one vector per cell.

Shapes: images (B, C, H, W); latents (B, D, H/2ᵏ, W/2ᵏ) for k halvings.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation: like batch normalisation, but every image stands alone."""
    return nn.GroupNorm(num_groups=math.gcd(8, channels), num_channels=channels)


class ResBlock(nn.Module):
    """x + f(x) with f = two times (norm, SiLU, 3x3 convolution). (B, C, H, W) to (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int | None = None):
        super().__init__()
        out_channels = out_channels or in_channels
        self.norm1, self.conv1 = norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)  # the block starts as the skip path alone
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Conv2d):
    """(B, C, H, W) to (B, C, H/2, W/2)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """(B, C, H, W) to (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ConvEncoder(nn.Sequential):
    """Images (B, C, H, W) to latents (B, D, H/2ᵏ, W/2ᵏ); `widths`: channels per resolution, k = len(widths) − 1."""

    def __init__(self, in_channels: int, latent_dim: int, widths: tuple[int, ...] = (32, 64), blocks: int = 1):
        layers = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(Downsample(widths[i - 1]))
            layers += [ResBlock(widths[max(i - 1, 0)] if j == 0 else width, width) for j in range(blocks)]
        super().__init__(*layers, norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], latent_dim, 1))


class ConvDecoder(nn.Sequential):
    """Latents (B, D, H/2ᵏ, W/2ᵏ) to images (B, C, H, W): the encoder read backwards."""

    def __init__(self, out_channels: int, latent_dim: int, widths: tuple[int, ...] = (32, 64), blocks: int = 1):
        widths = widths[::-1]
        layers = [nn.Conv2d(latent_dim, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(Upsample(widths[i - 1]))
            layers += [ResBlock(widths[max(i - 1, 0)] if j == 0 else width, width) for j in range(blocks)]
        super().__init__(*layers, norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], out_channels, 3, padding=1))
