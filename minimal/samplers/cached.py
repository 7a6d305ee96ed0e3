"""Ancestral sampling, one level per forward: the plain way, and the yardstick of every other sampler.

    for l = 0 .. L-1:   x_j ~ p(. | x of levels below l, c)   for every token j of level l, independently

In raster order a level is one token and L = N. Without a cache forward j then runs the network over j + 1 positions,
N (N + 1) / 2 in all. With one it runs over a single position, N in all, and returns the same logits: the samples are
equal, token for token. Where a level holds more (a scale, a diagonal), the model says so in `levels`, and this loop is
the same.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minimal.nn.cache import KVCache
from minimal.samplers.logits import check_filters, draw, uniform_noise
from minimal.samplers.trace import Sample, Trace


def sample_cached(model: nn.Module, n: int, **options) -> Sample:
    """Draw `n` samples with a key-value cache; options as for `decode`."""
    return decode(model, n, model.new_cache(n), **options)


def sample_uncached(model: nn.Module, n: int, **options) -> Sample:
    """The same samples, recomputing the whole prefix for every token; options as for `decode`."""
    return decode(model, n, None, **options)


@torch.inference_mode()
def decode(
    model: nn.Module,
    n: int,
    cache: KVCache | None,
    *,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    forced: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **filters,
) -> Sample:
    """Fill `n` canvases level by level.

    `cond` (n,) labels or (n, P) captions; `prompt` (n, P) tokens to continue; `forced` (n, N) tokens that are written
    whatever the model would draw, -1 where it is free (in-painting); `filters`: temperature, top_k, top_p, min_p (see
    logits.py).
    """
    canvas, first = new_canvas(model, n, cond, prompt, **filters)
    forced = check_forced(model, n, forced)
    noise = uniform_noise(n, model.length, generator, canvas.device)
    steps = [(max(start, first), end) for start, end in pairwise(bounds(model)) if end > first]
    trace = Trace()
    for start, end in tqdm(steps, desc="sampling", disable=not progress):
        logits = model.logits(canvas[:, :end], cond, cache=cache)
        trace.count("target", n, logits.shape[1])
        drawn = draw(logits[:, start - end :], noise[:, start:end], **filters)
        if forced is not None:
            drawn = torch.where(forced[:, start:end] < 0, drawn, forced[:, start:end])
        canvas[:, start:end] = drawn
    return finished(canvas, model.length, trace)


def bounds(model: nn.Module) -> list[int]:
    """0, and the end of every level of `model`; a model without `levels` writes one token at a time."""
    levels = getattr(model, "levels", None)
    if levels is None:
        return list(range(model.length + 1))
    return [0, *(1 + (levels[1:] != levels[:-1]).nonzero().flatten()).tolist(), model.length]


def check_forced(model: nn.Module, n: int, forced: Tensor | None) -> Tensor | None:
    """`forced` as it came, if it has a token or -1 for each place of each sample."""
    if forced is not None:
        if forced.shape != (n, model.length):
            raise ValueError(f"forced must be ({n}, {model.length}), -1 where free; got {tuple(forced.shape)}")
        model.check(forced.clamp(min=0))
    return forced


def finished(canvas: Tensor, length: int, trace: Trace) -> Sample:
    """The first `length` tokens as an ordinary tensor: one made in inference mode could not be trained on."""
    with torch.inference_mode(False):
        return Sample(trace.stop(), tokens=canvas[:, :length].clone())


def new_canvas(
    model: nn.Module,
    n: int,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    *,
    spare: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> tuple[Tensor, int]:
    """Check what a sampler was asked for.

    Return an empty canvas (n, N + spare) with the prompt on it, and its length.
    """
    check_filters(temperature, top_k, top_p, min_p)
    if n < 1:
        raise ValueError(f"asked for {n} samples; give at least 1")
    if model.training:
        raise ValueError("the model is in training mode, where dropout is on; call model.eval() before sampling")
    device = next(model.parameters()).device
    if prompt is None:
        prompt = torch.zeros(n, 0, dtype=torch.long, device=device)
    if len(prompt) != n:
        raise ValueError(f"asked for {n} samples from {len(prompt)} prompts; give one prompt per sample")
    model.check(prompt, cond)
    canvas = torch.zeros(n, model.length + spare, dtype=torch.long, device=device)
    canvas[:, : prompt.shape[1]] = prompt
    return canvas, prompt.shape[1]
