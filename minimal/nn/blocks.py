"""The transformer block of the course: pre-norm attention, then a gated feed-forward (Llama, 2302.13971).

    h = h + attention(norm(h))
    h = h + swiglu(norm(h)),        swiglu(x) = W_out (silu(W_gate x) * W_up x)        (2002.05202)

With `cond_dim` both branches are shifted, scaled and gated by a condition (adaLN-zero, 2212.09748): see adaln.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.adaln import Modulation, Offset, modulate
from minimal.nn.attention import Attention
from minimal.nn.cache import KVCache


class SwiGLU(nn.Module):
    """Gate and up projections share one product."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """`hidden` defaults to 8/3 of `dim` in steps of 32: as many weights as a plain feed-forward four times as wide.

    With `cond_dim` every call needs `cond` (B, 1, cond_dim) or (B, n, cond_dim), and the block starts as the identity.
    With `shared`, `cond` holds the modulations of all blocks, (B, 1, 6 dim), and this one only adds its offset.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
        cond_dim: int | None = None,
        shared: bool = False,
    ):
        super().__init__()
        modulated = shared or cond_dim is not None
        self.norm1 = nn.RMSNorm(dim, eps=1e-5, elementwise_affine=not modulated)
        self.attention = Attention(dim, heads, kv_heads)
        self.norm2 = nn.RMSNorm(dim, eps=1e-5, elementwise_affine=not modulated)
        self.feed_forward = SwiGLU(dim, hidden or max(32, 32 * round(8 * dim / 3 / 32)))
        self.dropout = nn.Dropout(dropout)
        if shared:
            self.modulation = Offset(dim)
        else:
            self.modulation = None if cond_dim is None else Modulation(cond_dim, dim, chunks=6)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        cond: Tensor | None = None,
    ) -> Tensor:
        if self.modulation is None:
            x = x + self.dropout(self.attention(self.norm1(x), rotation, mask, cache, layer))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)
        h = modulate(self.norm1(x), shift1, scale1)
        x = x + gate1 * self.dropout(self.attention(h, rotation, mask, cache, layer))
        return x + gate2 * self.dropout(self.feed_forward(modulate(self.norm2(x), shift2, scale2)))


def init_weights(model: nn.Module, layers: int, std: float = 0.02) -> None:
    """Normal weights; what is added to the residual stream starts smaller, lest its variance grow with depth."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "modulation" not in name:  # those start at zero
            scale = (2 * layers) ** -0.5 if name.endswith("out.weight") else 1.0
            torch.nn.init.normal_(parameter, std=std * scale)
