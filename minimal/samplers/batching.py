"""Many requests in one batch: continuous batching of a network (Orca, OSDI 2022; Flover, 2305.13484; id `flover`).

The scheduler of scheduler.py decides who runs; here is the buffer of rows in which they run. Row r has a canvas, noise,
a label and a cache of its own length:

    step:  t_r = length of row r,   x_r[t_r] ~ p(. | x_r[< t_r]) at noise u_r[t_r],   for all rows in one pass

Rows of a pass are at different positions, and a row is refilled as soon as its request is done. Each request draws its
noise from its own seed, position by position, so its tokens are those of `sample_cached` alone, whoever its neighbours
were. When nobody waits, the buffer is kept dense: the last row moves into the hole, with all that belongs to it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minimal.nn.cache import StaticKVCache
from minimal.samplers.cached import new_canvas
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.scheduler import CONTINUOUS, Policy, Request, Served, check_requests, serve
from minimal.samplers.trace import Trace


@dataclass
class NetworkEngine:
    """`slots` rows of `model`: canvas, noise, label and cache. `kind` makes the cache: static or paged."""

    model: nn.Module
    slots: int
    kind: Callable[..., StaticKVCache] = StaticKVCache
    filters: dict = field(default_factory=dict)

    def __post_init__(self):
        self.canvas, _ = new_canvas(self.model, self.slots, **self.filters)
        self.device = self.canvas.device
        self.noise = torch.zeros(self.slots, self.model.length, device=self.device)
        self.label = torch.full((self.slots,), self.model.num_classes, device=self.device)
        self.cache = self.model.new_cache(self.slots, self.model.length, self.kind)
        self.trace = Trace()

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of this thread; on a GPU, which has no such clock, of the wall."""
        on_gpu = self.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.thread_time
        start = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - start

    def prefill(self, row: int, request: Request) -> float:
        """Write a request into a row; its prompt goes through the network in one pass."""
        P = len(request.prompt)

        def work() -> None:
            self.canvas[row, :P] = request.prompt
            self.noise[row] = uniform_noise(1, self.model.length, generator(request.seed), self.device)[0]
            self.label[row] = self.model.num_classes if request.label is None else request.label
            self.cache.release(row)
            if P:
                self.forward(row, row + 1, P)

        return self.timed(work)

    def step(self, rows: int) -> float:
        return self.timed(lambda: self.decode(rows))

    def decode(self, rows: int) -> None:
        position = self.cache.length[:rows, None].clone()
        logits = self.forward(0, rows, 1)[:, -1]
        token = draw(logits, self.noise[:rows].gather(1, position).squeeze(1), **self.filters)
        self.canvas[:rows].scatter_(1, position, token[:, None])

    def forward(self, start: int, end: int, n: int) -> Tensor:
        self.trace.count("target", end - start, n)
        return self.model.logits(self.canvas[start:end], self.label[start:end], cache=self.cache.rows(start, end), n=n)

    def move(self, source: int, row: int) -> float:
        def work() -> None:
            for state in (self.canvas, self.noise, self.label):
                state[row] = state[source]
            self.cache.fork(source, row)
            self.cache.release(source)

        return self.timed(work)

    def release(self, row: int) -> Tensor:
        tokens = self.canvas[row, : int(self.cache.length[row])].clone()
        self.cache.release(row)
        return tokens


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def sample_batched(
    model: nn.Module,
    requests: Sequence[Request],
    *,
    slots: int = 8,
    policy: Policy = CONTINUOUS,
    kind: Callable[..., StaticKVCache] = StaticKVCache,
    **filters,
) -> Served:
    """Serve `requests` with `model`; `filters` as in logits.py apply to all of them."""
    check_requests(requests, slots)
    if isinstance(model, Guided) or model.cond_length > 1:
        raise ValueError("requests have a label at most; serve a model without guidance and captions")
    for i, request in enumerate(requests):
        model.check(request.prompt[None], None if request.label is None else torch.tensor([request.label]))
        if len(request.prompt) + request.new_tokens > model.length:
            raise ValueError(
                f"request {i} needs {len(request.prompt)} + {request.new_tokens} positions, and the context has "
                f"{model.length}; ask for fewer tokens or crop the prompt"
            )
    engine = NetworkEngine(model, slots, kind, filters)
    served = serve(requests, engine, slots, policy)
    served.trace = engine.trace.stop()
    with torch.inference_mode(False):
        served.tokens = [tokens.clone() for tokens in served.tokens]
    return served
