"""One decode step with fixed shapes, captured as a CUDA graph and replayed (id `cuda-graphs`). No Triton, no compiler.

A small model at batch 1 leaves a GPU idle: each of some hundred kernels per token costs the host some microseconds to
launch. A CUDA graph records the launches once and replays them as one. For that a step keeps three rules, none of which
needs a GPU to check (capture.py does):

    fixed shapes       the cache is attended whole, and a mask made from the lengths hides what is not filled
    fixed addresses    canvas, lengths, cache and noise are allocated once and written in place
    no way back        nothing is read to the host: positions are tensors, tokens are drawn by inverse CDF

On a CPU the same step runs eagerly, with the same result. Noise is drawn outside, for all steps at once, so that eager,
replayed and plain decoding use the same numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal.nn.cache import StaticKVCache
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.trace import Sample, Trace


class StaticDecoder:
    """The state of a batch of `n` samples and the step that advances it by one token.

    `filters` (temperature, top_k, top_p, min_p) are part of the captured step; `cond`, prompt and noise may change from
    one call of `sample` to the next. Logits are made in the model's dtype, and so is the cache; tokens are drawn in
    float32 or better.
    """

    def __init__(self, model: nn.Module, n: int, *, conditional: bool = True, **filters):
        self.model, self.n, self.filters = model, n, filters
        self.canvas, _ = new_canvas(model, n, spare=1, **filters)  # one spare slot: the last token is fed to nobody
        device = self.canvas.device
        self.cond = torch.zeros(n, dtype=torch.long, device=device) if conditional else None
        self.noise = torch.zeros(n, model.length, device=device)
        self.cache = model.new_cache(n, model.length, StaticKVCache)
        self.graph = record(self.step, self.rewind) if device.type == "cuda" else None

    def step(self) -> None:
        """Draw the next token of every row and write it onto the canvas."""
        # (n, 1); a guided cache has a second half, equal to the first
        position = self.cache.positions(1)[: self.n].clone()
        logits = self.model.logits(self.canvas, self.cond, cache=self.cache, n=1)[:, -1]
        token = draw(logits, self.noise.gather(1, position).squeeze(1), **self.filters)
        self.canvas.scatter_(1, position, token[:, None])

    def rewind(self) -> None:
        """Back to the beginning. Nothing is erased: what lies beyond a length is hidden."""
        self.cache.truncate(0)

    @torch.inference_mode()
    def sample(
        self, *, cond: Tensor | None = None, prompt: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Sample:
        """Fill the canvas: the samples of `sample_cached` with the same generator."""
        canvas, first = new_canvas(self.model, self.n, cond, prompt, spare=1, **self.filters)
        check_conditional(cond, self.cond)
        self.canvas.copy_(canvas)
        self.noise.copy_(uniform_noise(self.n, self.model.length, generator, canvas.device))
        self.rewind()
        if cond is not None:
            self.cond.copy_(cond)
        trace = Trace()
        if first:
            self.model.logits(self.canvas, self.cond, cache=self.cache, n=first)
            trace.count("target", self.n, first)
        for _ in range(first, self.model.length):
            self.graph.replay() if self.graph else self.step()
            trace.count("target", self.n)
        if canvas.is_cuda:
            torch.cuda.synchronize()  # for the clock only
        return finished(self.canvas, self.model.length, trace)


def check_conditional(cond: Tensor | None, buffer: Tensor | None) -> None:
    """A recorded step reads labels, or it does not."""
    if (cond is None) != (buffer is None):
        raise ValueError(
            f"this decoder was built with conditional={buffer is not None}; build another for the other case"
        )


@torch.inference_mode()
def record(step: Callable[[], object], rewind: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of `step()`, which may start wherever `rewind()` leads back to.

    Warm-up on a side stream comes first: kernels are chosen and workspaces allocated there.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            rewind()
            step()
    torch.cuda.current_stream().wait_stream(side)
    rewind()  # the warm-up really ran; the recording itself does not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def sample_static(model: nn.Module, n: int, *, cond=None, prompt=None, generator=None, **filters) -> Sample:
    """Draw `n` samples with a `StaticDecoder` that is made for this call; keep one yourself to draw often."""
    decoder = StaticDecoder(model, n, conditional=cond is not None, **filters)
    return decoder.sample(cond=cond, prompt=prompt, generator=generator)
