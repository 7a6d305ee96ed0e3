"""What a sampler returns: the sample, and a trace of what it cost.

Every sampler of the course returns the same record, so that any two of them can stand in one table. A *forward* is one
pass of a network, whatever its width. Rows of a batch may need different numbers of passes (speculative decoding), so
the trace counts the rows of every pass: `rows / n` is the number of dependent forwards that one image waited for.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Trace:
    """Counts by network name ("target", "draft", "velocity", ...); `clock` starts when the trace is made."""

    forwards: Counter = field(default_factory=Counter)  # passes of the network
    rows: Counter = field(default_factory=Counter)  # passes x images in the batch
    positions: Counter = field(default_factory=Counter)  # passes x images x positions computed per image
    drafted: int = 0  # tokens proposed
    accepted: int = 0  # proposed tokens that the target kept
    seconds: float = 0.0
    clock: float = field(default_factory=time.perf_counter, repr=False)

    def count(self, network: str, rows: int, positions: int = 1) -> None:
        """Record one forward of `network` over `rows` images and `positions` new positions of each."""
        self.forwards[network] += 1
        self.rows[network] += rows
        self.positions[network] += rows * positions

    def stop(self) -> "Trace":
        self.seconds = time.perf_counter() - self.clock
        return self

    @property
    def acceptance(self) -> float:
        """Accepted / drafted tokens (nan when nothing was drafted)."""
        return self.accepted / self.drafted if self.drafted else float("nan")


@dataclass
class Sample:
    """`tokens` (n, N) of a discrete model or `images` (n, C, H, W) of a continuous one, and the trace."""

    trace: Trace
    tokens: Tensor | None = None
    images: Tensor | None = None


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the matrix products, convolutions and attention inside `run()`, as PyTorch counts them."""
    from torch.utils.flop_counter import (
        FlopCounterMode,
        sdpa_flop_count,
    )  # here, since it imports triton where there is one

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not in PyTorch's own list
    count = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=count) as counter:
        run()
    return counter.get_total_flops() // 2
