"""Classifier-free guidance for token models (2207.12598): a model in front of a model.

    logits = logits_null + s (logits_cond - logits_null)

s = 1 is the conditional model, s = 0 the unconditional one, s > 1 sharpens towards the class. `Guided` doubles the
batch (second half: null class, same tokens), mixes the two halves and otherwise has the face of the model inside.
Every sampler therefore works with guidance unchanged: guidance is part of *what* is sampled, not of *how*.
"""

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
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Guided logits, shaped as the inner model's. `cond` (B,) labels are required."""
        if cond is None:
            raise ValueError("guidance needs labels: pass cond, a long tensor (B,)")
        position = self.positions(tokens, cache, n)
        both = torch.cat((cond, torch.full_like(cond, self.num_classes)))
        conditional, null = self.model.logits(tokens.repeat(2, 1), both, cache=cache, n=n).chunk(2)
        scale = self.scale[position.clamp(max=self.length - 1)][..., None].to(null.dtype)
        return torch.lerp(null, conditional, scale)

    def positions(self, tokens: Tensor, cache: KVCache | None, n: int | None) -> Tensor:
        """Positions of the rows that `logits` will return: (n,) or (B, n)."""
        if cache is None:
            return torch.arange(tokens.shape[1], device=tokens.device)
        if isinstance(cache.length, int):
            return cache.positions(tokens.shape[1] - cache.length if n is None else n)
        return cache.positions(n)[: len(tokens)]

    def new_cache(self, batch: int, capacity: int | None = None, kind: type[KVCache] = KVCache) -> KVCache:
        """One cache for both halves of the doubled batch."""
        return self.model.new_cache(2 * batch, capacity, kind)

    def check(self, tokens: Tensor, cond: Tensor | None = None) -> None:
        self.model.check(tokens, cond)
