"""Class labels as every conditional model takes them: long (B,), 0 .. num_classes - 1, and num_classes for "none"."""

import torch
from torch import Tensor


def check_labels(cond: Tensor | None, batch: int, num_classes: int) -> None:
    """ValueError unless `cond` is None or holds one label, or the null class, for each of `batch` examples."""
    if cond is None:
        return
    if cond.dtype != torch.long or cond.shape != (batch,):
        raise ValueError(f"labels must be long ({batch},), one per example; got {cond.dtype} {tuple(cond.shape)}")
    if batch and not 0 <= cond.min() <= cond.max() <= num_classes:
        raise ValueError(
            f"labels run from {cond.min()} to {cond.max()}; classes end at {num_classes - 1}, {num_classes} is none"
        )


def drop_labels(
    cond: Tensor | None, p: float, num_classes: int, generator: torch.Generator | None = None
) -> Tensor | None:
    """Each label becomes the null class with probability `p`: classifier-free guidance (2207.12598) needs both."""
    if cond is None:
        return None
    drop = (
        torch.rand(len(cond), generator=generator, device=generator.device if generator else "cpu").to(cond.device) < p
    )
    return cond.masked_fill(drop, num_classes)
