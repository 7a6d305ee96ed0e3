"""Training on many processes: each computes its share of every batch, and all move their weights alike.

    torchrun --nproc-per-node 2 -m minimal train digits_ar

Every process holds the whole model and all random states. It draws the whole batch, keeps its own rows, and averages
its gradients with the others' before they are clipped, so all weights stay equal. The run is that of a single process
up to the order of summation, as long as the loss is a mean over the examples. Noise would break that (a process would
draw the noise of its rows only), so within `whole_batch_noise` random numbers are drawn for the whole batch too.
Validation chooses weights, so all do it alike; what is measured in the end concerns the first process only.

Alone, every function here does nothing.
"""

import functools
import os
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def joined(device: str = "cpu"):
    """Within it this process is one of those that torchrun started (gloo on CPUs, nccl on GPUs); gives its device."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"WORLD_SIZE asks for many processes, but they do not meet ({error}); use torchrun") from error
    try:
        yield device
        dist.barrier()  # nobody leaves while another still listens: taking the group down early may abort its peers
    finally:
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """0 is the process that shows, saves and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def by_first(measure):
    """Decorator for what one process measures for all; to the others it gives an empty dict at once."""
    return functools.wraps(measure)(lambda *args, **kwargs: {} if rank() else measure(*args, **kwargs))


def share(batch):
    """This process's rows of a batch: a tensor, or a tuple of tensors. ValueError, in all processes, for NaN."""
    if count() == 1 or batch is None:
        return batch
    if isinstance(batch, tuple):
        return tuple(share(part) for part in batch)
    if len(batch) % count():
        raise ValueError(f"{len(batch)} examples cannot be shared by {count()} processes; change the batch size")
    if batch.is_floating_point() and not batch.isfinite().all():
        raise ValueError("the batch has NaN or inf; look at the data")
    return batch.chunk(count())[rank()]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the whole batch. For statistics of a batch, without gradients."""
    if count() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(count())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def average(values: list[float], device="cpu") -> list[float]:
    """Each number's mean over the processes."""
    if count() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (total / count()).tolist()


def average_gradients(parameters) -> None:
    """Replace each gradient by its mean over the processes: one message for all of them."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= count()
    for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(mean.view_as(g))


def whole_batch_noise(batch):
    """Context in which noise with one row per example of this share of a batch is drawn for the whole batch and cut."""
    if count() == 1:
        return nullcontext()
    return _WholeBatchNoise(len(batch[0] if isinstance(batch, tuple) else batch))


@contextmanager
def common_noise():
    """Context, or decorator, for noise that belongs to no example: there all draw the same, whatever its shape."""
    before, _WholeBatchNoise.paused = _WholeBatchNoise.paused, True
    try:
        yield
    finally:
        _WholeBatchNoise.paused = before


class _WholeBatchNoise(TorchDispatchMode):
    """Sees every operator that PyTorch tags as random, and runs it on `count()` times as many rows.

    Works for what draws its rows independently of each other (normal and uniform noise, dropout, choices), wherever the
    first dimension counts examples. Fused attention bears the tag for a dropout of its own, which we do not use.
    """

    paused = False

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in operator.tags and "attention" not in operator.name()
        wide = [self.widen(x) for x in args] if random and not self.paused else args
        if all(x is y for x, y in zip(wide, args, strict=True)):
            return operator(*args, **kwargs)
        whole = operator(*wide, **kwargs)
        if operator._schema.is_mutable:  # x.normal_() and the like
            return args[0].copy_(self.cut(whole))
        return tuple(map(self.cut, whole)) if isinstance(whole, tuple) else self.cut(whole)

    def widen(self, x):
        """A tensor or a shape of our rows: the same with all rows."""
        if isinstance(x, Tensor) and x.ndim and len(x) == self.rows:
            return x.repeat(count(), *[1] * (x.ndim - 1))
        if isinstance(x, (list, tuple)) and len(x) and x[0] == self.rows:
            return [self.rows * count(), *x[1:]]
        return x

    def cut(self, x):
        if isinstance(x, Tensor) and x.ndim and len(x) == self.rows * count():
            return x.chunk(count())[rank()]
        return x
