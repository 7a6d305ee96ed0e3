"""Multi-head attention with grouped queries (2305.13245), rotary positions, any mask and any cache.

    out = softmax(q k^T / sqrt(d) + mask) v,     H query heads share G key-value heads, H / G queries to each

`plain_attention` is the definition, in three lines. `Attention` calls PyTorch's fused kernel; tests compare the two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.cache import KVCache
from minimal.nn.rope import rotate


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax weights (B, H, Nq, Nk) of queries (B, H, Nq, d) over keys (B, G, Nk, d)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The reference: weighted mean of the values (B, H, Nq, d). Forward-mode autodiff works here."""
    return attention_weights(q, k, mask) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


class Attention(nn.Module):
    """`dim` wide, `heads` query heads of dim / heads channels, `kv_heads` key-value heads (default: as many)."""

    def __init__(self, dim: int, heads: int, kv_heads: int | None = None):
        super().__init__()
        kv_heads = kv_heads or heads
        if dim % heads or heads % kv_heads:
            raise ValueError(f"dim {dim} must be a multiple of heads {heads}, and heads of kv_heads {kv_heads}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """`x` (B, n, dim) -> (B, n, dim).

        `mask` broadcasts to (B, H, n, T); with a cache, T counts the cached keys too.
        """
        q, k, v = self.project(x, rotation)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=self.kv_heads < self.heads)
        return self.out(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, n, d), keys and values (B, G, n, d); queries and keys turned to their positions together."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2G, n, d)
        qk, v = heads[:, : self.heads + self.kv_heads], heads[:, self.heads + self.kv_heads :]
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        return q, k, v
