"""Measuring pictures: bits per dimension, distances between sets of images, PSNR and SSIM, use of a codebook.

A likelihood needs no judge. Whether *samples* look right does: two sets of images are compared in the features of a
small classifier (minimal/judge.py). Those distances are in the features of our own judge, hence no Inception-FID and
not comparable with numbers of papers; each is quoted with its sample count and with the floor, the distance between
two real sets of that size.

    bits per dimension = nats / (dims · ln 2)
    Fréchet distance   = |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½)
    kernel distance    = E k(a, a') + E k(b, b') − 2 E k(a, b),   k(x, y) = (x·y / F + 1)³

Shapes: features (N, F); images (B, C, H, W) in [-1, 1]; indices long, any shape. Everything is computed in float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Likelihood


def bits_per_dim(nats_per_image: Tensor | float, dims: int) -> Tensor | float:
    """Negative log-likelihood of an image in nats -> bits per dimension (pixel and channel), as in 1601.06759."""
    if dims < 1:
        raise ValueError(f"an image has at least 1 dimension, got dims={dims}; give C * H * W")
    if not torch.as_tensor(nats_per_image).isfinite().all():
        raise ValueError("nats_per_image has NaN or inf; the model gives a real image probability 0, or diverged")
    return nats_per_image / (dims * math.log(2))


@torch.no_grad()
def context_sensitivity(model: nn.Module, tokens: Tensor, cond: Tensor | None = None) -> float:
    """Mean total variation between the next-token distributions after an example's own beginning and after another's.

    0 for a model that ignores what it has read; such a model is easy to draft for, and a speed-up on it proves nothing.
    Row i of `tokens` (B, N) gets the beginning of row i - 1, under its own label. Position 0 has no beginning.
    """
    if len(tokens) < 2:
        raise ValueError(f"context is exchanged between examples, so give at least 2, got {len(tokens)}")
    own, other = (model.logits(x, cond)[:, 1:].softmax(-1) for x in (tokens, tokens.roll(1, 0)))
    return (own - other).abs().sum(-1).mean().item() / 2


# Sets of images, seen through features


@torch.no_grad()
def batched(function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 512) -> Tensor:
    """`function` over many images without gradients, a batch at a time: `batched(judge.features, images)` is (N, F)."""
    return torch.cat([function(part) for part in images.split(batch_size)])


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Distance of two sets, each taken as a Gaussian (1706.08500), in the features of our own judge, not Inception's.

    With centred features Xa = Qa Ra we have Σa = Raᵀ Ra / (n − 1), so tr (Σa Σb)^½ is the sum of the singular values of
    Ra Rbᵀ / (√(na − 1) √(nb − 1)). No square root of a matrix is taken; fewer images than features do no harm.
    """
    a, b = _features(features_a, features_b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a = torch.linalg.qr(a - mean_a).R / math.sqrt(len(a) - 1)  # Σa = root_aᵀ root_a
    root_b = torch.linalg.qr(b - mean_b).R / math.sqrt(len(b) - 1)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()  # tr (Σa Σb)^½
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return distance.clamp(min=0).item()


def frechet_floor(
    features: Tensor, n: int, generator: torch.Generator | None = None, *, labels: Tensor | None = None
) -> float:
    """Fréchet distance between two disjoint random sets of `n` real images each, averaged over 10 draws.

    It is not zero: covariances of few images are noisy, and the distance counts the noise. Most of it comes from how
    many images of each class a draw happens to hold. Samples that were drawn with balanced labels lack that noise, so
    give the `labels` (N,) of the real images to compare with them: then both sets hold the classes in the same shares.
    """
    if not 2 <= n <= len(features) // 2:
        raise ValueError(f"two disjoint sets of {n} need 2 <= n <= {len(features) // 2}, got {len(features)} features")
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels.cpu()
    distances = []
    for _ in range(10):
        order = torch.randperm(len(features), generator=generator)
        order = order[labels[order].argsort(stable=True)]  # random within each class
        chosen = features[order[torch.arange(2 * n) * len(features) // (2 * n)]]  # evenly spread over the classes
        distances.append(frechet_distance(chosen[::2], chosen[1::2]))
    return sum(distances) / len(distances)


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared maximum mean discrepancy with a cubic kernel (KID, 1801.01401): unbiased, so it may fall below 0.

    Unbiased for independent draws, that is. Two sets with the classes in equal shares agree better than that, and come
    out somewhat below 0 when they are equally good.
    """
    a, b = _features(features_a, features_b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:  # an image is not compared with itself: that would be the bias
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return (among(a) + among(b) - 2 * kernel(a, b).mean()).item()


class PrecisionRecall(NamedTuple):
    precision: float  # share of samples that lie among the real images: do they look right?
    recall: float  # share of real images that lie among the samples: is anything missing?


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> PrecisionRecall:
    """Fidelity and coverage, apart (1904.06991). A set becomes the union of balls, each out to the k-th neighbour."""
    real, samples = _features(real, samples)
    if not 1 <= k < min(len(real), len(samples)):
        raise ValueError(f"k={k} neighbours need more than {k} points on each side, got {len(real)} and {len(samples)}")

    def share_inside(points: Tensor, centres: Tensor) -> float:
        radius = _distances(centres, centres).kthvalue(k + 1, dim=1).values  # + 1: the nearest is the point itself
        return (_distances(points, centres) <= radius).any(1).double().mean().item()

    return PrecisionRecall(share_inside(samples, real), share_inside(real, samples))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) Euclidean distances; the slower exact way, so that equal points are at distance 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _features(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for x in (a, b):
        if x.ndim != 2 or x.shape[1] != a.shape[1] or len(x) < 2:
            raise ValueError(f"features are (N, F) with N >= 2 and one F, got {tuple(a.shape)} and {tuple(b.shape)}")
        if not x.isfinite().all():
            raise ValueError("features have NaN or inf; look at the images they come from")
    return a.double(), b.double()


def label_accuracy(judge: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images (B, C, H, W) in which the judge sees the label (B,) that was asked for."""
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need labels ({len(images)},), got {tuple(labels.shape)}")
    return (batched(judge, images).argmax(1) == labels).double().mean().item()


# One image against another


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in decibels, (B,): 10 log10(range² / mean squared error); inf for equal images."""
    x, y = _images(x, y)
    return 10 * (data_range**2 / (x - y).square().flatten(1).mean(1)).log10()


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity (Wang et al. 2004) in windows of 7 x 7, (B,): scikit-image's, colour channels averaged."""
    from skimage.metrics import structural_similarity  # half a second to import: only for those who ask

    x, y = _images(x, y)
    if min(x.shape[-2:]) < 7:
        raise ValueError(f"ssim compares windows of 7 x 7 pixels, got images {tuple(x.shape)}; use psnr")
    pairs = zip(x.cpu().numpy(), y.cpu().numpy())
    values = [structural_similarity(p, q, data_range=data_range, channel_axis=0) for p, q in pairs]
    return torch.tensor(values, dtype=torch.float64)


def _images(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"two batches (B, C, H, W) of one shape expected, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("images have NaN or inf")
    return x.double(), y.double()


# Codebooks


def codebook_usage(indices: Tensor, size: int) -> float:
    """Share of the `size` codes that occur at least once."""
    return (_counts(indices, size) > 0).double().mean().item()


def perplexity(indices: Tensor, size: int) -> float:
    """exp of the entropy of the codes: how many equally frequent codes would be as diverse; between 1 and `size`."""
    p = _counts(indices, size) / indices.numel()
    return torch.special.entr(p).sum().exp().item()


def _counts(indices: Tensor, size: int) -> Tensor:
    if indices.dtype != torch.long or not indices.numel():
        raise ValueError(f"indices are long and at least one, got {indices.dtype} {tuple(indices.shape)}")
    if indices.min() < 0 or indices.max() >= size:
        raise ValueError(f"indices lie in 0..{size - 1}, got {indices.min()}..{indices.max()}")
    return indices.flatten().bincount(minlength=size).double()
