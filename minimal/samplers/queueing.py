"""A server on paper: the scheduler of scheduler.py with seconds in place of a network, and what theory says about it.

A decode step over m rows takes c(m) seconds, about c0 + c1 m: weights are read once, and every row has work of its own.
When everybody waits, a static batch of S requests takes c(S) max(lengths), a slot of a continuous one c(S) mean(length)
per request. The gain in throughput is therefore

    E[max of S lengths] / E[length]

in which neither the model nor the machine occurs: 1 for equal lengths, 1.69 for 16 to 256 tokens and S = 8. A static
batch that leaves finished rows out of its steps pays c0 max + c1 S mean instead, so only the share c0 / (c0 + c1 S) of
the gain is left.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minimal.samplers.scheduler import Request, Served


@dataclass(frozen=True)
class SimulatedEngine:
    """`step_seconds(m)` for a step over m rows, `prefill_seconds(P)` for a prompt, `move_seconds` for a row."""

    step_seconds: Callable[[int], float]
    prefill_seconds: Callable[[int], float] = lambda length: 0.0
    move_seconds: float = 0.0

    def prefill(self, row: int, request: Request) -> float:
        return self.prefill_seconds(len(request.prompt))

    def step(self, rows: int) -> float:
        return self.step_seconds(rows)

    def move(self, source: int, row: int) -> float:
        return self.move_seconds

    def release(self, row: int) -> None:
        return None


def workload(
    lengths: Tensor, *, rate: float = float("inf"), prompt: int = 0, generator: torch.Generator | None = None
) -> list[Request]:
    """A request for each of `lengths` (R,), with arrivals of a Poisson process of `rate` requests per second.

    An infinite rate means that all wait at time 0. Prompts have 0 to `prompt` zeros; seeds count from 0.
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}; give a positive number of requests per second")
    gaps = -torch.log1p(-torch.rand(len(lengths), generator=generator, dtype=torch.float64)) / rate
    arrivals = gaps.cumsum(0).tolist()
    prompts = torch.randint(prompt + 1, (len(lengths),), generator=generator).tolist()
    return [
        Request(torch.zeros(P, dtype=torch.long), int(length), arrival, seed)
        for seed, (P, length, arrival) in enumerate(zip(prompts, lengths, arrivals, strict=True))
    ]


def saturated_gain(lengths: Tensor, slots: int) -> float:
    """E[max of `slots` lengths] / E[length], for independent draws from `lengths` (R,)."""
    if slots < 1 or lengths.ndim != 1 or not len(lengths) or lengths.min() <= 0:
        raise ValueError(f"give positive lengths (R,) and at least one slot, got {tuple(lengths.shape)} and {slots}")
    below = (torch.arange(len(lengths) + 1, dtype=torch.float64) / len(lengths)) ** slots  # P(max is among the r least)
    ordered = lengths.double().sort().values
    return ((ordered * below.diff()).sum() / ordered.mean()).item()


def step_costs(served: Served) -> tuple[float, float]:
    """c0 and c1 of c(m) = c0 + c1 m, by least squares through the median step of every width that occurred."""
    seconds = defaultdict(list)
    for step in served.steps:
        seconds[len(step.rows)].append(step.seconds)
    if len(seconds) < 2:
        raise ValueError(f"a line needs steps of at least two widths, got {sorted(seconds)}")
    per_row, fixed = statistics.linear_regression(list(seconds), [statistics.median(s) for s in seconds.values()])
    return fixed, per_row
