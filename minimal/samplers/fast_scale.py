"""Next-scale generation with few operations besides the matrix products: the tokens of `sample_cached`, sooner.

A next-scale model writes 256 tokens in one forward, so it is the products that bind, not the number of operations as in
raster order (fast.py). What can be saved is work that is done twice, or on twice as many rows:

    the picture so far         f̂ is carried from scale to scale; `NextScale` makes it again from all tokens
    modulations                depend on the label alone: once for all scales
    guidance before the head   the head is affine, so mixing commutes with it, and it runs on half of the rows:
                               head(h_0) + s (head(h_c) - head(h_0)) = head(h_0 + s (h_c - h_0))
    draws by the hundred       logits of some hundred positions stay in the processor's cache while they become tokens

and whole passes over memory: a short norm, shift and scale in one operation, the residual and its gate in place.
Storing weights as (in, out), which pays for single tokens, gains nothing at these sizes: the model's own are used.

Shapes: x (2B, p², D), conditional rows first; tokens (B, L) long in order of scale; logits (rows, V).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.ar.scale import NextScale
from minimal.nn.cache import KVCache
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.fast import rms
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.trace import Sample, Trace

ROWS = 128  # positions whose logits are made and drawn together


@torch.inference_mode()
def sample_next_scale(
    model: NextScale,
    n: int,
    *,
    cond: Tensor | None = None,
    guidance_scale: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """Draw `n` samples: those of `sample_cached(Guided(model, scale), n, ...)`, up to rounding.

    `guidance_scale`: a number, or one for each of K scales, (K,). At 1 everywhere nothing is doubled. `cond` (n,)
    labels; `filters`: temperature, top_k, top_p, min_p (see logits.py).
    """
    if type(model) is not NextScale:
        raise ValueError(f"made for NextScale, got a {type(model).__name__}; sample_cached takes any model")
    canvas, _ = new_canvas(model, n, cond, **filters)
    strength, labels = mixture(model, cond, n, guidance_scale)
    noise = uniform_noise(n, model.length, generator, canvas.device)
    label = model.labels(labels)[:, None]  # (2B, 1, D)
    shared = model.modulation.linear(F.silu(label))
    modulations = [ready(block.modulation(shared)) for block in model.blocks]
    shift, scale = model.last_modulation(label)
    eps = torch.full((1, 1), model.norm.eps, dtype=label.dtype, device=label.device)
    cache, trace, quantizer, picture, end = model.new_cache(len(labels)), Trace(), model.quantizer, 0.0, 0
    for k, size in enumerate(model.sizes):
        start, end = end, end + size
        read = label
        if k > 0:
            read = model.word(quantizer.next_input(picture, k - 1)).repeat(len(labels) // n, 1, 1)
        x = read + model.places(k, k + 1)
        for layer, block in enumerate(model.blocks):
            x = step(block, x, modulations[layer], cache, layer, eps)
        cache.advance(size)
        trace.count("target", n, size)
        h = torch.addcmul(shift, rms(x, eps), 1 + scale)
        if len(labels) > n:
            h = torch.lerp(h[n:], h[:n], strength[k])
        parts = zip(h.flatten(0, 1).split(ROWS), noise[:, start:end].flatten().split(ROWS))
        tokens = torch.cat([draw(model.head(rows), u, **filters) for rows, u in parts]).view(n, size)
        canvas[:, start:end] = tokens
        if end < model.length:
            picture = picture + quantizer.up(quantizer.table(k).codes(tokens), k)
    return finished(canvas, model.length, trace)


def mixture(model: NextScale, cond: Tensor | None, n: int, guidance_scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Strength of guidance per scale (K,), and the labels of all rows: (2n,), or (n,) where there is none to mix."""
    strength, scales = torch.as_tensor(guidance_scale, dtype=torch.float32), len(model.scales)
    if strength.shape not in ((), (scales,)):
        raise ValueError(f"guidance_scale must be a number or ({scales},), got {tuple(strength.shape)}")
    device = model.levels.device
    null = torch.full((n,), model.num_classes, device=device)
    if (strength == 1).all():
        return strength, null if cond is None else cond
    if cond is None:
        raise ValueError("guidance needs labels: pass cond, a long tensor (n,)")
    return strength.to(device, model.head.weight.dtype).expand(scales), torch.cat((cond, null))


def ready(modulation: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Shift, scale and gate of both branches, with 1 + scale in place of scale."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    return shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2


def step(
    block: nn.Module, x: Tensor, modulation: tuple[Tensor, ...], cache: KVCache, layer: int, eps: Tensor
) -> Tensor:
    """A modulated `Block` on one scale x (2B, p², D), written over x. It sees all that the cache holds: no mask."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    attention, feed_forward = block.attention, block.feed_forward
    h = attention.qkv(torch.addcmul(shift1, rms(x, eps), scale1))
    q, k, v = h.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)  # (2B, H, p², d) each
    h = F.scaled_dot_product_attention(q, *cache.append(layer, k, v)).transpose(1, 2).flatten(2)
    x.addcmul_(gate1, attention.out(h))
    gate, up = feed_forward.gate_up(torch.addcmul(shift2, rms(x, eps), scale2)).chunk(2, dim=-1)
    return x.addcmul_(gate2, feed_forward.out(F.silu(gate).mul_(up)))
