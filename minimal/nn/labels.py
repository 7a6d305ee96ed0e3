"""Conditions as every conditional model takes them: a class label, or a caption, which is a label of several words.

Labels are long (B,), 0 .. num_classes - 1, and num_classes for "none". Captions are long (B, P) with the same rule for
each word.
"""

import torch
from torch import Tensor


def check_labels(cond: Tensor | None, batch: int, num_classes: int, cond_length: int = 1) -> None:
    """ValueError unless `cond` is None or holds a label, or a caption, for each of `batch` examples."""
    if cond is None:
        return
    shape, what = ((batch,), "labels") if cond_length == 1 else ((batch, cond_length), "captions")
    if cond.dtype != torch.long or cond.shape != shape:
        raise ValueError(f"{what} must be long {shape}, one per example; got {cond.dtype} {tuple(cond.shape)}")
    if batch and not 0 <= cond.min() <= cond.max() <= num_classes:
        raise ValueError(
            f"{what} run from {cond.min()} to {cond.max()}; classes end at {num_classes - 1}, {num_classes} is none"
        )


def drop_labels(
    cond: Tensor | None, p: float, num_classes: int, generator: torch.Generator | None = None
) -> Tensor | None:
    """Each condition becomes none with probability `p`: classifier-free guidance (2207.12598) needs both."""
    if cond is None:
        return None
    drop = (
        torch.rand(len(cond), generator=generator, device=generator.device if generator else "cpu").to(cond.device) < p
    )
    return cond.masked_fill(drop.view(-1, *[1] * (cond.ndim - 1)), num_classes)
