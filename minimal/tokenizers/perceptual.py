"""Perceptual distance: two images are alike if a trained network sees the same in them (LPIPS, 1801.03924; id `lpips`).

A pixel is compared with the pixel at its place, so an edge that moved by one pixel costs as much as an edge that is
gone. The features of a classifier forget exact places and keep what is there. Here the network is passed in, frozen:
LPIPS takes one that was trained on photographs, and learns a weight per channel from people's answers; the course
takes a small classifier of its own data and weights that are all one.

    P(x, y) = Σ_l  1/(h_l w_l) Σ_places |f_l(x) − f_l(y)|²,      f_l = features of stage l / their length

The length is taken over the channels, at each place. So P does not depend on how loud a stage is, and a stage adds
between 0 and 4. The network of the loss must not be the one that measures the result afterwards: a decoder learns to
please this network, its blind spots included.

Shapes: images (B, C, H, W); features of a stage (B, c, h, w); distances (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.conv import Downsample


def stages_of(trunk: nn.Sequential) -> tuple[int, ...]:
    """The places of the last layer of each resolution in `trunk`: before each halving, and before it is flattened."""
    ends = [place for place, layer in enumerate(trunk) if isinstance(layer, (Downsample, nn.Flatten))]
    if not ends or ends[0] == 0:
        raise ValueError("the trunk halves nothing; name its stages: PerceptualDistance(trunk, stages=(1, 3))")
    return tuple(place - 1 for place in ends)


def unit(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Features (B, c, h, w) of length one over the channels. `eps` keeps the gradient finite where all are zero."""
    return features * (features.square().sum(1, keepdim=True) + eps).rsqrt()


class PerceptualDistance(nn.Module):
    """The distance between images in the features of `trunk`, after the layers at the places `stages`.

    The trunk is frozen, and stays in eval mode whatever is trained around it.
    """

    def __init__(self, trunk: nn.Sequential, stages: tuple[int, ...] | None = None):
        super().__init__()
        self.stages = stages_of(trunk) if stages is None else tuple(stages)
        if not self.stages or not set(self.stages) <= set(range(len(trunk))):
            raise ValueError(f"stages are places in a trunk of {len(trunk)} layers, got {self.stages}")
        self.trunk = trunk.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        return super().train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) to the unit features (B, c, h, w) of each stage."""
        found = []
        for place, layer in enumerate(self.trunk[: max(self.stages) + 1]):
            x = layer(x)
            if place in self.stages:
                found.append(unit(x))
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images x, y (B, C, H, W) to distances (B,)."""
        return self.per_stage(x, y).sum(1)

    def per_stage(self, x: Tensor, y: Tensor) -> Tensor:
        """Images x, y (B, C, H, W) to what each of S stages adds, (B, S)."""
        if x.ndim != 4 or x.shape != y.shape:
            raise ValueError(
                f"two batches (B, C, H, W) of one shape expected, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs], 1)


def sharpness(painted: Tensor, x: Tensor) -> float:
    """Energy of the finest detail, what a 3x3 mean takes away, in `painted` over that in `x`, both (B, C, H, W)."""

    def energy(images: Tensor) -> Tensor:
        return (images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)).square().mean()

    return (energy(painted) / energy(x)).item()
