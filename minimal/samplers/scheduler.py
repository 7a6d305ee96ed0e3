"""Who runs in which row, and when: continuous batching (Orca, OSDI 2022; temporal fusion of Flover, 2305.13484).

A decode step for eight rows costs far less than eight steps for one, so a server runs many requests at once. A *static*
batch is closed: it runs until its longest member is done, and who is done earlier leaves a row of padding.
*Continuous* batching decides anew after every token: finished rows leave, waiting requests take their places.

    while anyone waits or runs:
        admit waiting requests into free rows, first come first served; prefill their prompts
        close holes: move the last row into a row that nobody took
        one decode step over rows 0 .. m - 1, a new token for each
        rows that have all their tokens leave

`serve` decides, an `Engine` works: that of batching.py runs a network, that of queueing.py only counts seconds. Time is
*virtual*: the clock advances by what the engine says that its work took, so that other work on the machine is not
counted. Between arrivals an idle clock jumps.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minimal.samplers.trace import Trace


@dataclass(frozen=True)
class Request:
    """Continue `prompt` (P,) by `new_tokens`; `seed` makes the noise, `label` is the class, None the null class."""

    prompt: Tensor
    new_tokens: int
    arrival: float = 0.0
    seed: int = 0
    label: int | None = None


@dataclass(frozen=True)
class Policy:
    """`refill`: admit while others run. `shrink`: leave rows that are done out of later steps."""

    refill: bool
    shrink: bool


STATIC = Policy(refill=False, shrink=False)
SHRINKING = Policy(refill=False, shrink=True)  # a better static batch: it closes, but does not compute padding
CONTINUOUS = Policy(refill=True, shrink=True)


class Engine(Protocol):
    """Does the work in rows of a buffer and says how many seconds each piece took."""

    def prefill(self, row: int, request: Request) -> float: ...

    def step(self, rows: int) -> float:
        """One new token for each of the first `rows` rows."""

    def move(self, source: int, row: int) -> float:
        """Row `source` goes to the empty `row`."""

    def release(self, row: int) -> Tensor | None:
        """Empty a row; return the tokens that it held."""


class Step(NamedTuple):
    start: float
    seconds: float
    rows: tuple[int | None, ...]  # the request in each row; None is padding


@dataclass
class Served:
    """What happened: for request i its `tokens[i]` (P + new,), and times (R,), all on the virtual clock."""

    requests: Sequence[Request]
    tokens: list[Tensor | None]
    admitted: Tensor
    first: Tensor  # when the first new token was there
    finished: Tensor
    steps: list[Step]
    spent: Counter  # seconds in "prefill", "step" and "move"
    trace: Trace | None = None

    @property
    def latency(self) -> Tensor:
        """Seconds (R,) from arrival to the last token."""
        return self.finished - torch.tensor([request.arrival for request in self.requests], dtype=torch.float64)

    @property
    def throughput(self) -> float:
        """New tokens per second, from the first arrival to the last token."""
        begin = min(request.arrival for request in self.requests)
        return sum(request.new_tokens for request in self.requests) / (self.finished.max().item() - begin)

    @property
    def padding(self) -> float:
        """Share of the rows computed in decode steps that belonged to nobody."""
        rows = [request for step in self.steps for request in step.rows]
        return rows.count(None) / len(rows)


def serve(requests: Sequence[Request], engine: Engine, slots: int, policy: Policy = CONTINUOUS) -> Served:
    """Serve all `requests` in at most `slots` rows."""
    check_requests(requests, slots)
    waiting = deque(sorted(range(len(requests)), key=lambda r: requests[r].arrival))
    rows: list[int | None] = []  # the request in each row
    left: dict[int, int] = {}  # tokens that a running request still lacks
    clock, steps, spent = 0.0, [], Counter(prefill=0.0, step=0.0, move=0.0)
    admitted, first, finished = (torch.zeros(len(requests), dtype=torch.float64) for _ in range(3))
    tokens: list[Tensor | None] = [None] * len(requests)
    while waiting or left:
        if not left:
            rows, clock = [], max(clock, requests[waiting[0]].arrival)
        if policy.refill or not left:
            while waiting and len(left) < slots and requests[waiting[0]].arrival <= clock:
                r = waiting.popleft()
                if None not in rows:
                    rows.append(None)
                row = rows.index(None)
                rows[row], left[r], admitted[r] = r, requests[r].new_tokens, clock
                seconds = engine.prefill(row, requests[r])
                clock, spent["prefill"] = clock + seconds, spent["prefill"] + seconds
        while policy.shrink and None in rows:
            r = rows.pop()
            if r is not None:
                hole = rows.index(None)
                rows[hole], seconds = r, engine.move(len(rows), hole)
                clock, spent["move"] = clock + seconds, spent["move"] + seconds
        seconds = engine.step(len(rows))
        steps.append(Step(clock, seconds, tuple(rows)))
        clock, spent["step"] = clock + seconds, spent["step"] + seconds
        for row, r in enumerate(rows):
            if r is None:
                continue
            if left[r] == requests[r].new_tokens:
                first[r] = clock
            left[r] -= 1
            if not left[r]:
                del left[r]
                rows[row], finished[r], tokens[r] = None, clock, engine.release(row)
    return Served(requests, tokens, admitted, first, finished, steps, spent)


def check_requests(requests: Sequence[Request], slots: int) -> None:
    if slots < 1:
        raise ValueError(f"slots is {slots}; at least one row is needed")
    if not requests:
        raise ValueError("no requests to serve")
    for i, request in enumerate(requests):
        if request.new_tokens < 1:
            raise ValueError(f"request {i} asks for {request.new_tokens} new tokens; give at least 1")
        if not 0 <= request.arrival < float("inf"):
            raise ValueError(f"request {i} arrives at {request.arrival}; give a time of 0 or later")
