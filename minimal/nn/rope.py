"""Rotary position embedding in any number of dimensions (RoFormer 2104.09864; 2-D as in LlamaGen 2406.06525).

Pairs of channels (2i, 2i+1) are read as one complex number and turned by an angle proportional to the position. A dot
product of a turned query and a turned key then depends on the *difference* of their positions alone:

    score(q at m, k at n) = Re sum_i q_i conj(k_i) exp(i (m - n) w_i),     w_i = base^(-2 i / channels)

With A axes (row and column of an image: A = 2) the channels are split into A equal groups, one per axis.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def frequencies(channels: int, base: float, device: torch.device) -> Tensor:
    """Angular frequencies (channels / 2,), float64. Cached, so that a decode step does not make them again."""
    return base ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)


def rotary(coordinates: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Unit complex numbers (..., head_dim / 2) for integer `coordinates` (..., A)."""
    axes = coordinates.shape[-1]
    if head_dim % (2 * axes):
        raise ValueError(f"rotary embedding over {axes} axes needs head_dim divisible by {2 * axes}, got {head_dim}")
    angles = coordinates[..., None] * frequencies(head_dim // axes, base, coordinates.device)  # (..., A, head_dim / 2A)
    angles = angles.flatten(-2)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn queries or keys `x` (B, H, N, head_dim) by `rotation` (N, head_dim / 2) or (B, 1, N, head_dim / 2)."""
    real = x.to(torch.promote_types(x.dtype, torch.float32))  # complex numbers come in float32 and float64 only
    pairs = torch.view_as_complex(real.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation.to(pairs.dtype)).flatten(-2).to(x.dtype)


def raster_coordinates(length: int, width: int | None) -> Tensor:
    """Coordinates (length, A) in raster order: (row, column) on a grid `width` wide, or the position itself."""
    position = torch.arange(length)
    return position[:, None] if width is None else torch.stack((position // width, position % width), dim=-1)
