"""What tokenizers and quantizers ask of their input, with errors that say what to do."""

import torch
from torch import Tensor


def check_images(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    """`x` must be images (B, *image_shape) with pixels in [-1, 1]."""
    if x.shape[1:] != image_shape:
        shape = ", ".join(map(str, image_shape))
        raise ValueError(f"expected images of shape (B, {shape}), got {tuple(x.shape)}")
    if not (x.abs() <= 1).all():  # NaN fails this comparison too
        raise ValueError("expected pixels in [-1, 1] without NaN; rescale the images first")


def check_vectors(z: Tensor, dim: int) -> None:
    """`z` must be floating (..., dim) and finite: rounding would turn a NaN into some token without a word."""
    if not z.is_floating_point() or z.shape[-1:] != (dim,):
        raise ValueError(f"expected floating vectors (..., {dim}), got {z.dtype} {tuple(z.shape)}")
    if z.numel() and not all(end.isfinite() for end in z.aminmax()):
        raise ValueError("vectors have NaN or inf: the encoder diverged; lower the learning rate or clip its gradient")


def check_indices(indices: Tensor, size: int) -> None:
    """`indices` must be long in 0 .. size − 1: arithmetic would wrap another number round without a word."""
    if indices.dtype != torch.long:
        raise ValueError(f"indices must be long, got {indices.dtype}; use .long()")
    if indices.numel() and not 0 <= indices.min() <= indices.max() < size:
        raise ValueError(f"indices lie in 0 .. {size - 1}, got {indices.min()} to {indices.max()}")
