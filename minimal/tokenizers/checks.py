"""What tokenizers ask of their input, with errors that say what to do."""

from torch import Tensor


def check_images(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    """`x` must be images (B, *image_shape) with pixels in [-1, 1]."""
    if x.shape[1:] != image_shape:
        shape = ", ".join(map(str, image_shape))
        raise ValueError(f"expected images of shape (B, {shape}), got {tuple(x.shape)}")
    if not (x.abs() <= 1).all():  # NaN fails this comparison too
        raise ValueError("expected pixels in [-1, 1] without NaN; rescale the images first")
