"""Classifier-free guidance for token models (2207.12598): a model in front of a model.

    logits = logits_null + s (logits_cond - logits_null)

s = 1 is the conditional model, s = 0 the unconditional one, s > 1 sharpens towards the class. `Guided` doubles the
batch (second half: null class, same tokens), mixes the two halves and otherwise has the face of the model inside.
Every sampler therefore works with guidance unchanged: guidance is part of *what* is sampled, not of *how*.

A schedule gives every token its own scale. Those below take the model's `levels` (N,) and rise from 1, no guidance, to
s with the progress r of generation, 0 at the first level and 1 at the last:

    linear   1 + (s - 1) r                       over the scales of VAR (2404.02905): its ramp
    cosine   1 + (s - 1) (1 - cos πr) / 2
    interval s for start <= r <= stop, else 1    (2404.07724, there over noise levels)
"""

import math

import torch
from torch import Tensor, nn

from minimal.nn.cache import KVCache


class Guided(nn.Module):
    """`guidance_scale` s: a number, or a schedule (N,) with one scale per position."""

    def __init__(self, model: nn.Module, guidance_scale: float | Tensor):
        super().__init__()
        if not model.num_classes:
            raise ValueError("guidance needs a class-conditional model; this one has num_classes=0")
        self.model = model
        self.vocab_size, self.length, self.num_classes = model.vocab_size, model.length, model.num_classes
        scale = torch.as_tensor(guidance_scale, dtype=torch.float32)
        if scale.ndim and scale.shape != (self.length,):
            raise ValueError(f"guidance_scale must be a number or ({self.length},), got {tuple(scale.shape)}")
        self.register_buffer("scale", scale.expand(self.length), persistent=False)
        self.train(model.training)

    def logits(
        self,
        tokens: Tensor,
        cond: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        n: int | None = None,
        **places: Tensor,
    ) -> Tensor:
        """Guided logits, shaped as the inner model's. `cond`, (B,) labels or (B, P) captions, is required.

        `places`: the levels (B, N) and asked places (B, Q) that an any-subset model reads beside.
        """
        if cond is None:
            raise ValueError("guidance needs labels: pass cond, a long tensor (B,)")
        position = places["asked"] if "asked" in places else self.positions(tokens, cache, n)
        both = torch.cat((cond, torch.full_like(cond, self.num_classes)))
        places = {name: place.repeat(2, 1) for name, place in places.items()}
        return self.mix(self.model.logits(tokens.repeat(2, 1), both, cache=cache, n=n, **places), position)

    def tree_logits(self, inputs: Tensor, depth: Tensor, ancestors: Tensor, cache: KVCache) -> Tensor:
        """Guided logits behind each node of a tree of tokens, as the inner model's."""
        both = self.model.tree_logits(inputs.repeat(2, 1), depth, ancestors, cache)
        return self.mix(both, (cache.positions(1) + depth).expand(2 * len(inputs), -1)[: len(inputs)])

    def mix(self, both: Tensor, position: Tensor) -> Tensor:
        """Logits (B, n, V) from those of both halves (2B, n, V), at the scale of each `position` (n,) or (B, n)."""
        conditional, null = both.chunk(2)
        scale = self.scale[position.clamp(max=self.length - 1)][..., None].to(null.dtype)
        return torch.lerp(null, conditional, scale)

    @property
    def levels(self) -> Tensor:
        return self.model.levels

    def positions(self, tokens: Tensor, cache: KVCache | None, n: int | None) -> Tensor:
        """Positions of the rows that `logits` will return: (n,) or (B, n)."""
        if cache is None:
            return torch.arange(tokens.shape[1], device=tokens.device)
        if isinstance(cache.length, int):
            first = max(cache.length, 0)
            return torch.arange(first, tokens.shape[1] if n is None else first + n, device=tokens.device)
        return cache.positions(n)[: len(tokens)]

    def new_cache(self, batch: int, capacity: int | None = None, kind: type[KVCache] = KVCache) -> KVCache:
        """One cache for both halves of the doubled batch."""
        return self.model.new_cache(2 * batch, capacity, kind)

    def check(self, tokens: Tensor, cond: Tensor | None = None) -> None:
        self.model.check(tokens, cond)


# Schedules: `Guided(model, cosine(model.levels, 3.0))`


def progress(levels: Tensor) -> Tensor:
    """How far generation is when each token is written: 0 at the first level, 1 at the last. (N,) float32."""
    if levels.ndim != 1 or not len(levels) or levels.is_floating_point():
        raise ValueError(f"levels are whole numbers (N,), as in model.levels; got {levels.dtype} {tuple(levels.shape)}")
    first, last = levels.min(), levels.max()
    return (levels - first).float() / (last - first).clamp(min=1)


def constant(levels: Tensor, scale: float) -> Tensor:
    """(N,): the same for every token."""
    return torch.full_like(progress(levels), scale)


def linear(levels: Tensor, scale: float) -> Tensor:
    """(N,): in equal steps from 1 at the first level to `scale` at the last."""
    return 1 + (scale - 1) * progress(levels)


def cosine(levels: Tensor, scale: float) -> Tensor:
    """(N,): as `linear`, but slow at both ends."""
    return 1 + (scale - 1) * (1 - (math.pi * progress(levels)).cos()) / 2


def interval(levels: Tensor, scale: float, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """(N,): `scale` while the progress is in [start, stop], 1 before and after. With stop = 1 it is a step."""
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"an interval of progress is 0 <= start <= stop <= 1, got {start} and {stop}")
    r = progress(levels)
    return torch.where((start <= r) & (r <= stop), scale, 1.0)
