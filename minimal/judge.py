"""A small judge for each data set: does a sample show its label, and how far are samples from real images?

Papers measure samples in the features of a large network trained on photographs (Inception, 1706.08500). On digits of
8 x 8 pixels that says nothing, so we train a small classifier per data set and ship it. `forward` gives logits for
label accuracy; `features` gives the vector below them for the distances in minimal/metrics.py. Such numbers compare
samplers within this course, never with a paper. The features are linear in the last hidden layer and the first
convolution is not normalised, so that blur, noise and lost contrast move them too, and not the class alone.

    image -> convolution -> (halve, residual block) until 4 x 4 -> linear -> features -> linear -> logits

Shapes: images (B, C, H, W) in [-1, 1]; features (B, F); logits (B, num_classes).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.data import Images, load
from minimal.data.frozen import SPLITS
from minimal.metrics import batched, label_accuracy
from minimal.nn.conv import Downsample, ResBlock, norm
from minimal.nn.module import arguments
from minimal.train import EMA, adamw, fit

# Frozen: distances are comparable only under the same judge. A new one gets a new version, and all is measured again.
VERSION = 1
SHA256 = {
    "judge_digits": "6548f38335c2e3cdddaff425a3873c14d586b4c4de2cc41ba60afcacd3e41b22",
    "judge_shapes": "f4b7d29a3eee79e86a5c770e316958b617a502b8e64fb03e2bbab5940f34a3e5",
    "judge_mnist14": "7406b2d7d67eda11c871fb427dc43abaa0e21259af08ebc8a6b793da5d230a40",
}


class Judge(nn.Module):
    """A convolutional classifier for square images; every image is judged alone (no batch statistics)."""

    def __init__(
        self,
        num_classes: int,
        channels: int = 1,
        image_size: int = 8,
        width: int = 32,
        feature_dim: int = 48,
        dropout: float = 0.4,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.image_shape = (channels, image_size, image_size)
        layers, size = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()], image_size
        while size > 4:
            layers += [Downsample(width), ResBlock(width)]
            size = (size + 1) // 2
        self.trunk = nn.Sequential(*layers, norm(width), nn.SiLU(), nn.Flatten(), nn.Dropout(dropout))
        self.project = nn.Linear(width * size**2, feature_dim)
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to features (B, F). ValueError for another shape, range or NaN."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"this judge sees images of shape {self.image_shape}, got a batch {tuple(x.shape)}")
        if not (x.abs() <= 1 + 1e-4).all():  # NaN fails this comparison too
            raise ValueError("the judge sees images in [-1, 1] without NaN; clamp samples first: x.clamp(-1, 1)")
        return self.project(self.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.head(self.features(x))

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict]:
        """Cross-entropy in nats with 5 % label smoothing: an overconfident judge spreads its features without bound."""
        logits = self(x)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels, label_smoothing=0.05), {"accuracy": accuracy}


def jittered(
    x: Tensor, generator: torch.Generator | None = None, *, degrees: float = 12, scale: float = 0.1, pixels: float = 1
) -> Tensor:
    """Each image (B, C, H, W) turned, resized and moved at random, up to so much either way; the border is repeated."""
    u = torch.rand(4, len(x), generator=generator) * 2 - 1
    angle, factor = u[0] * math.radians(degrees), 1 + u[1] * scale
    cos, sin = factor * angle.cos(), factor * angle.sin()
    right, down = u[2] * 2 * pixels / x.shape[3], u[3] * 2 * pixels / x.shape[2]  # the image is 2 wide here
    maps = torch.stack([cos, -sin, right, sin, cos, down], 1).view(-1, 2, 3).to(x.device)
    grid = F.affine_grid(maps, x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


# Training


@dataclass(frozen=True)
class Recipe:
    """What `train_judge` needs to know: a data set with its options, and for how long."""

    data: str
    steps: int
    options: dict = field(default_factory=dict)


RECIPES = {
    "judge_digits": Recipe("digits", steps=1200),
    "judge_shapes": Recipe("shapes", steps=200, options={"version": "single"}),
    "judge_mnist14": Recipe("mnist", steps=1000, options={"size": 14}),
}


def train_judge(name: str, *, steps: int | None = None, **options) -> tuple[Judge, dict[str, float]]:
    """Train the judge `name` of RECIPES; returns it with its accuracies on validation and test."""
    recipe = RECIPES[name]
    parts = (load(recipe.data, split, **recipe.options) for split in SPLITS)
    return fit_judge(*parts, steps=steps or recipe.steps, desc=name, **options)


def fit_judge(
    train: Images,
    validation: Images,
    test: Images,
    *,
    steps: int,
    width: int = 32,
    seed: int = 0,
    device: str = "cpu",
    save_to: str | None = None,
    desc: str = "judge",
    progress: bool = True,
) -> tuple[Judge, dict[str, float]]:
    """Train a judge of labelled images; returns it with its accuracies on validation and test."""
    torch.manual_seed(seed)
    channels, _, image_size = train.image_shape
    judge = Judge(train.num_classes, channels, image_size, width).to(device)

    def batch(batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(train), (batch_size,), generator=generator)
        return jittered(train.images[rows], generator).to(device), train.labels[rows].to(device)

    def nats(step: int) -> float:
        return F.cross_entropy(batched(judge, validation.images.to(device)).cpu(), validation.labels).item()

    fit(
        judge,
        batch,
        adamw(judge, lr=3e-3, weight_decay=0.2),
        steps=steps,
        seed=seed,
        ema=EMA(judge, 0.99),
        validate=nats,
        keep_best=False,
        save_to=save_to,
        desc=desc,
        progress=progress,
    )
    parts = {"validation": validation, "test": test}
    return judge, {
        f"{split}_accuracy": label_accuracy(judge, part.images.to(device), part.labels.to(device))
        for split, part in parts.items()
    }
