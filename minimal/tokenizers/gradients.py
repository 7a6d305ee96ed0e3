"""Gradients through the choice of a code: four answers to a derivative that is zero.

The nearest code does not move when a vector moves a little, so the true derivative of a lookup is zero almost
everywhere, and an encoder would learn nothing. An estimator puts something useful in its place:

    estimator(z, codebook) -> q, indices

z (..., D), codebook (K, D), indices (...); q (..., D) has the value of codebook[indices] and a gradient for z.

    straight_through   dq/dz = I: the decoder's gradient is copied (arXiv 1308.3432, 1711.00937)
    rotation           dq/dz = λR, the rotation and scaling that carry z onto q (arXiv 2410.06424)
    sampled            like straight_through, but the code is drawn, p_k ∝ exp(−|z − e_k|² / T)
    gumbel             the same draw, k = argmax(ℓ + g), differentiated as if it were softmax((ℓ + g) / τ)
                       with ℓ_k = −|z − e_k|² / T and Gumbel noise g (arXiv 1611.01144, 1611.00712)

Draws belong to training. Whoever needs tokens takes the nearest code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Which code


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor, chunk: int = 512) -> Tensor:
    """Indices (...) of the codes of `codebook` (K, D) nearest to the vectors `z` (..., D).

    |z − e|² is smallest where z·e − |e|²/2 is largest: one product. Chunks keep its result in the processor's cache.
    In half precision neighbours would be confused, so it is computed in float32 at least.
    """
    exact = torch.promote_types(codebook.dtype, torch.float32)
    z, codebook = z.to(exact), codebook.to(exact)
    half_norms = codebook.square().sum(-1) / -2
    parts = z.reshape(-1, z.shape[-1]).split(chunk)
    with torch.autocast(z.device.type, enabled=False):
        indices = torch.cat([torch.addmm(half_norms, part, codebook.mT).argmax(-1) for part in parts])
    return indices.view(z.shape[:-1])


def gumbel_logits(z: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """ℓ + g (..., K): the largest entry of a row is a draw from p_k ∝ exp(−|z − e_k|² / T).

    |z|² is the same for all codes and left out.
    """
    logits = (2 * z @ codebook.mT - codebook.square().sum(-1)) / temperature
    return logits - torch.empty_like(logits).exponential_().log()  # −log of an exponential variable is Gumbel


# Which gradient


def copied(z: Tensor, q: Tensor) -> Tensor:
    """The value of `q` and the gradient of `z`."""
    return z + (q - z).detach()


def rotated(z: Tensor, q: Tensor, eps: float = 1e-6) -> Tensor:
    """λRz = q, with λ = |q| / |z| and R the rotation from z's direction u to q's direction v, both held fixed.

    R = (I − 2vv')(I − 2ww') = I − 2ww' + 2vu', two reflections, with w the direction of u + v. No matrix is built. The
    gradient g becomes λR'g, which has the same angle to z as g has to q.
    """
    with torch.no_grad():
        u, v = F.normalize(z, dim=-1, eps=eps), F.normalize(q, dim=-1, eps=eps)
        w = F.normalize(u + v, dim=-1, eps=eps)  # 0 for opposite directions: R still sends u to v
        scale = q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=eps)
    turned = z - 2 * (z * w).sum(-1, keepdim=True) * w + 2 * (z * u).sum(-1, keepdim=True) * v
    return copied(scale * turned, q)  # the value of q, without rounding


# Both


def straight_through(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    indices = nearest(z, codebook)
    return copied(z, codebook[indices]), indices


def rotation(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    indices = nearest(z, codebook)
    return rotated(z, codebook[indices]), indices


def sampled(z: Tensor, codebook: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    indices = gumbel_logits(z.detach(), codebook.detach(), temperature).argmax(-1)
    return copied(z, codebook[indices]), indices


def gumbel(z: Tensor, codebook: Tensor, temperature: float = 0.1, softness: float = 1.0) -> tuple[Tensor, Tensor]:
    """The choice is hard on the way forward and soft on the way back. A codebook of parameters gets a gradient too."""
    logits = gumbel_logits(z, codebook, temperature)
    indices = logits.argmax(-1)
    hard = F.one_hot(indices, len(codebook)).to(z.dtype)
    return copied((logits / softness).softmax(-1), hard) @ codebook, indices


ESTIMATORS: dict[str, Estimator] = {f.__name__: f for f in (straight_through, rotation, sampled, gumbel)}


def estimator(choice: str | Estimator) -> Estimator:
    """A function as it is, or the one of that name."""
    if callable(choice):
        return choice
    if choice not in ESTIMATORS:
        raise ValueError(f"no gradient estimator {choice!r}; there are {', '.join(ESTIMATORS)}, or pass a function")
    return ESTIMATORS[choice]
