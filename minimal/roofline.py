"""What a decode step must read and compute, what the machine can do, and the least time that follows (id `kv-cache`).

A step with n new tokens in each of B rows reads every weight once, whatever B and n, and the cached keys and values of
each row once. It does about two operations per weight and new token. With W weights, L layers, H query heads, G
key-value heads of d channels, T keys per row and s bytes per number:

    bytes       W s  +  2 L G d T B s
    operations  2 W B n  +  4 L H d T B n
    seconds    >= max(operations / F, bytes / M),     F operations and M bytes per second (the roofline)

Operations per byte are the *arithmetic intensity*; below F / M a step waits for memory. Batching and checking several
guesses at once raise it for the weights, grouped queries (2305.13245) for the cache. What the two terms leave out is
the price of calling an operator at all: `count_operators` counts the calls.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch

from minimal.nn.token_model import TokenModel
from minimal.samplers.capture import Operators


class Bytes(NamedTuple):
    """What one step reads."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache


def bytes_per_step(model: TokenModel, batch: int = 1, context: int | None = None, n: int = 1) -> Bytes:
    """Bytes that a forward of `n` new tokens in each of `batch` rows reads.

    `context` T counts the keys attended to, the new ones included; by default an example's length. A static cache is
    attended whole: there T is its capacity. Of the embedding table one row per new token is read, not the table.
    """
    context = check_sizes(model, batch, context, n)
    attention, table = model.blocks[0].attention, model.embedding.weight
    weights = sum(p.nbytes for p in model.parameters() if p is not table)
    keys = len(model.blocks) * attention.kv_heads * attention.head_dim * context * batch
    size = table.element_size()
    return Bytes(weights + batch * n * table.shape[1] * size, 2 * keys * size)


def operations_per_step(model: TokenModel, batch: int = 1, context: int | None = None, n: int = 1) -> int:
    """Additions and multiplications in the matrix products of the same forward, attention included."""
    context = check_sizes(model, batch, context, n)
    attention, table = model.blocks[0].attention, model.embedding.weight
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2 and p is not table)
    scores = len(model.blocks) * attention.heads * attention.head_dim * context
    return batch * n * (2 * matrices + 4 * scores)


def roofline_seconds(
    model: TokenModel, batch: int = 1, context: int | None = None, n: int = 1, *, bandwidth: float, peak: float
) -> float:
    """The least time of a step on a machine with `bandwidth` bytes and `peak` operations per second."""
    operations = operations_per_step(model, batch, context, n)
    return max(operations / peak, bytes_per_step(model, batch, context, n).total / bandwidth)


def check_sizes(model: TokenModel, batch: int, context: int | None, n: int) -> int:
    """The context, if the sizes fit together."""
    context = model.length if context is None else context
    if batch < 1 or not 1 <= n <= context:
        raise ValueError(
            f"a step needs batch >= 1 and 1 <= n <= context, for the context counts the n new tokens too; "
            f"got batch {batch}, n {n}, context {context}"
        )
    return context


# The machine


def copy_bandwidth(device: torch.device | str = "cpu", bytes: float = 200e6, repeats: int = 5) -> float:
    """Bytes read and written per second when `bytes` bytes are copied, best of `repeats`.

    Take far more than fits a cache. The target exists already: the pages of a fresh one would cost more than the copy.
    """
    source = torch.ones(int(bytes) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device, repeats)


def arithmetic_peak(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None, repeats: int = 5
) -> float:
    """Operations per second in a product of two square matrices, `size` wide, best of `repeats`."""
    size = size or (8192 if torch.device(device).type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device, repeats)


def best_seconds(run: Callable[[], object], device: torch.device | str = "cpu", repeats: int = 5) -> float:
    """Shortest time of `run()`, after one to warm up. A single thread on a CPU is timed by its own clock."""
    cuda = torch.device(device).type == "cuda"
    clock = time.thread_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.synchronize(device)
        start = clock()
        run()
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return min(seconds[1:])


# The calls


class CountOperators(Operators):
    """Counts operators by name; views compute nothing and are counted together, as "view"."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def see(self, op, args, kwargs):
        name = op.overloadpacket.__name__
        self.calls["view" if op.is_view or name == "_unsafe_view" else name] += 1
        return op(*args, **kwargs)


@torch.no_grad()
def count_operators(run: Callable[[], object]) -> Counter:
    """How often `run()` calls each operator, such as {"mm": 33, "add": 16, "view": 210}.

    Count a function that does not switch inference mode on: there, taking operators apart makes copies that are none.
    """
    with CountOperators() as counter:
        run()
    return counter.calls
