"""The same model with fewer operations per token: what a decode step spends its time on, and how not to.

At batch 1 a small decoder is limited by the *number of operations* it issues, a few microseconds each, before
arithmetic or memory count. `FastRaster` holds the weights of a `RasterGPT` in a form that needs about half as many:

    weights stored (in, out)       the residual is added inside the product: x + h W is one `addmm`
    norm weights folded            (g * x / rms) W = (x / rms) (diag(g) W): one multiplication less per product
    q and k rotated together       one complex product for both, on the (H + G) heads as they leave the projection
    softmax scale folded           into the query columns of the projection
    a short norm                   x * rsqrt(|x|^2 / D + eps), without the library's conversions
    plain attention for one query  two small products and a softmax cost less than the fused kernel's set-up
    rotations from a table         made once for all positions, a pass takes a slice

It has the face of the model, so every sampler takes it; its logits equal the model's to rounding. Inference only, and a
snapshot: make it again after training on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.ar.raster import RasterGPT
from minimal.nn.cache import KVCache
from minimal.nn.rope import rotary


class FastRaster(RasterGPT):
    """`FastRaster(model)`: same `logits`, `logprob`, `new_cache` as `model`, for inference."""

    def __init__(self, model: RasterGPT):
        nn.Module.__init__(self)
        self.config = model.config
        self.vocab_size, self.length, self.num_classes = model.vocab_size, model.length, model.num_classes
        self.cond_length = model.cond_length
        self.embedding, self.blocks, self.norm, self.head = model.embedding, model.blocks, model.norm, model.head
        self.register_buffer("coordinates", model.coordinates, persistent=False)
        with torch.no_grad():
            self.layers = [self.pack(block) for block in model.blocks]
            self.head_weight = fold(model.norm, model.head)
            self.rotations = complex_of(rotary(model.coordinates, model.blocks[0].attention.head_dim), self.head_weight)
            self.eps = torch.full((1, 1), model.norm.eps, dtype=self.head_weight.dtype, device=self.head_weight.device)
        self.eval()

    def _apply(self, fn, recurse=True):
        raise ValueError("FastRaster is a snapshot; move or cast the model and make a new one")

    @staticmethod
    def pack(block: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        attention, feed_forward = block.attention, block.feed_forward
        qkv = fold(block.norm1, attention.qkv)
        qkv[:, : attention.heads * attention.head_dim] *= attention.head_dim**-0.5
        return (
            qkv,
            attention.out.weight.mT.contiguous(),
            fold(block.norm2, feed_forward.gate_up),
            feed_forward.out.weight.mT.contiguous(),
        )

    def places(self, n: int, cache: KVCache | None) -> tuple[Tensor, Tensor | None]:
        if type(cache) is not KVCache:
            return super().places(n, cache)
        end = cache.length + self.cond_length - 1 + n  # keys, the new ones included
        rotation = self.rotations[end - n : end]
        if n == 1:
            return rotation, None
        # to be added to scores: a boolean mask would be turned into this one in every layer
        return rotation, self.eps.new_full((n, end), -torch.inf).triu(end - n + 1)

    def run(self, inputs: Tensor, rotation: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        B, n = inputs.shape
        attention, eps = self.blocks[0].attention, self.eps
        H, G, d = attention.heads, attention.kv_heads, attention.head_dim
        rotation = complex_of(rotation, eps)
        x = self.embedding(inputs).view(B * n, -1)
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers):
            heads = torch.mm(rms(x, eps), qkv).view(B, n, H + 2 * G, d).transpose(1, 2)  # (B, H + 2G, n, d)
            qk = turn(heads[:, : H + G], rotation)
            q, k, v = qk[:, :H], qk[:, H:], heads[:, H + G :]
            if cache is not None:
                k, v = cache.append(layer, k, v)
            x = torch.addmm(x, attend(q, k, v, mask), out)
            gate, up = torch.mm(rms(x, eps), gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        return torch.mm(rms(x, eps), self.head_weight).view(B, n, -1)


def fold(norm: nn.Module, linear: nn.Module) -> Tensor:
    """The matrix (in, out) of norm weight and projection together."""
    return (linear.weight * norm.weight).mT.contiguous()


def complex_of(rotation: Tensor, like: Tensor) -> Tensor:
    """`rotation` in the precision of `like`; complex numbers come in float32 and float64 only."""
    return rotation.to(torch.complex64 if like.dtype != torch.float64 else torch.complex128)


def rms(x: Tensor, eps: Tensor) -> Tensor:
    """x divided by its root mean square over the last axis, in four operations instead of the library's seven."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate (B, H + G, n, d) as `nn.rope.rotate` does, without its conversions."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with scaled queries (B, H, n, d) over (B, G, T, d), heads merged: (B n, H d)."""
    B, H, n, d = q.shape
    G = k.shape[1]
    if n > 1:
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=1.0, enable_gqa=G < H)
        return out.transpose(1, 2).reshape(B * n, H * d)
    scores = q.reshape(B, G, H // G, d) @ k.mT  # the queries of a group are rows of one product
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).reshape(B, H * d)
