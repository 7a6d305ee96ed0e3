"""The network behind the flows: a residual MLP that names the clean image (arXiv 2511.13720).

An 8x8 digit is 64 numbers. At this size no convolution or attention is needed: four residual layers, steered by time
and class (adaln.py), see the whole picture at once, and every kind of automatic differentiation works, the forward mode
of mean flow included. A larger image wants another network; anything with this `forward` serves.

The layers give a guess d of the data, and the velocity is what leads there in the time that is left:

    v = (d − x) / max(1 − t, 0.05)

Noise fills all 64 dimensions, digits only a few. To name a velocity, a network would have to copy the noise through
all its layers; to name the data it may forget it. The bound keeps a small error of d from exploding at t = 1.

Shapes: x (B, ...) of which one example has `shape`; times (B,) in [0, 1]; labels (B,) long; output as x.
"""

import math

import torch
from torch import Tensor, nn

from minimal.nn.adaln import ResidualMLP, TimeEmbedding


class VelocityNet(nn.Module):
    """v(x, t, cond); with `num_times` = 2 a function of two times, called as net(x, t, cond, second)."""

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 0,
        width: int = 184,
        depth: int = 4,
        cond_width: int = 64,
        dropout: float = 0.0,
        num_times: int = 1,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.times = nn.ModuleList(TimeEmbedding(cond_width) for _ in range(num_times))
        self.labels = nn.Embedding(num_classes + 1, cond_width)  # the last one is the null class
        self.mlp = ResidualMLP(math.prod(shape), math.prod(shape), width, depth, cond_width, dropout)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, *more_times: Tensor) -> Tensor:
        if cond is None:
            cond = torch.full((len(x),), self.num_classes, device=x.device)
        c = self.labels(cond)  # (B, E)
        for embedding, time in zip(self.times, (t, *more_times), strict=True):
            c = c + embedding(time)
        flat = x.flatten(1)
        velocity = (self.mlp(flat, c) - flat) / (1 - t).clamp(min=0.05)[:, None]
        return velocity.view_as(x)
