"""Conditioning by adaptive layer norm, started at zero (DiT, arXiv 2212.09748), in a residual MLP (MAR, 2406.11838).

A condition c (time, label, a transformer's hidden state) must steer every layer. Here it gives each layer a shift,
a scale and a gate:

    x + gate(c) · f(norm(x) · (1 + scale(c)) + shift(c))

The weights that make them start at zero, so each block starts as the identity and the whole network as the zero
function. Norms in the blocks have no weights of their own, since the scale and shift of c do their work.

Shapes: x (..., D), c (..., E); shift, scale, gate (..., D). With a sequence x (B, N, D), pass c as (B, 1, E) or (B,
N, E).
"""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Times (...,) in [0, 1] to (..., D): sines and cosines of geometrically spaced frequencies, then a small MLP.

    The frequencies end at `max_frequency` radians per unit of time. The usual 1000 suits integer step numbers; it makes
    the time derivative of a network enormous, and losses that contain this derivative (mean flow) then fail.
    """

    def __init__(self, width: int, num_frequencies: int = 16, max_frequency: float = 30.0):
        super().__init__()
        frequencies = torch.logspace(0, math.log10(max_frequency), num_frequencies)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[..., None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Modulation(nn.Module):
    """A condition (..., E) to `chunks` tensors (..., D), all zero at the start."""

    def __init__(self, cond_width: int, width: int, chunks: int = 3):
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(cond_width, chunks * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(nn.functional.silu(c)).chunk(self.chunks, dim=-1)


class Offset(nn.Module):
    """What one block adds to modulations (..., chunks · D) that all blocks share: 1 / depth of the weights of adaLN.

    For networks whose condition is the same in every block (VAR's largest model, 2404.02905). Starts at zero.
    """

    def __init__(self, width: int, chunks: int = 6):
        super().__init__()
        self.chunks = chunks
        self.offset = nn.Parameter(torch.zeros(chunks * width))

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return (c + self.offset).chunk(self.chunks, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """x + gate · MLP(modulate(norm(x))): one layer of the network below."""

    def __init__(self, width: int, cond_width: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(cond_width, width, chunks=3)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class ResidualMLP(nn.Module):
    """x (..., D_in) and condition (..., E) to (..., D_out), each position on its own."""

    def __init__(
        self, in_features: int, out_features: int, width: int, depth: int, cond_width: int, dropout: float = 0.0
    ):
        super().__init__()
        self.input = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, cond_width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(cond_width, width, chunks=2)
        self.output = nn.Linear(width, out_features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.input(x)
        for block in self.blocks:
            x = block(x, c)
        return self.output(modulate(self.norm(x), *self.modulation(c)))
