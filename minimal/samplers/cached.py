"""Ancestral sampling, one token per forward: the plain way, and the yardstick of every other sampler.

    for j = 0 .. N-1:   x_j ~ p(. | x_0 .. x_{j-1}, c)

Without a cache forward j runs the network over j + 1 positions, N (N + 1) / 2 in all. With one it runs over a single
position, N in all, and returns the same logits: the samples are equal, token for token.
"""

import torch
from torch import Tensor, nn
from tqdm import trange

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
    generator: torch.Generator | None = None,
    progress: bool = False,
    **filters,
) -> Sample:
    """Fill `n` canvases position by position.

    `cond` (n,) labels; `prompt` (n, P) tokens to continue; `filters`: temperature, top_k, top_p, min_p (see logits.py).
    """
    canvas, first = new_canvas(model, n, cond, prompt, **filters)
    noise = uniform_noise(n, model.length, generator, canvas.device)
    trace = Trace()
    for j in trange(first, model.length, desc="sampling", disable=not progress):
        logits = model.logits(canvas[:, : j + 1], cond, cache=cache)
        trace.count("target", n, logits.shape[1])
        canvas[:, j] = draw(logits[:, -1], noise[:, j], **filters)
    return finished(canvas, model.length, trace)


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
