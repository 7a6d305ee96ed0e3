"""Jacobi Forcing: train a model on the paths that its own Jacobi decoding takes (2512.14681; id `jacobi-forcing`).

Jacobi decoding (samplers/jacobi.py) reads guesses that are still wrong, which ordinary training never shows. So run it
over many prompts, keep every iterate of every block, and teach the model to say from a half-solved block what it would
say from the solved one. Decoding stays exact; the model becomes another one, which needs fewer iterations.

    y^0, y^1 = f(y^0), ..., y^n = x     the path of one block of n tokens; x, its fixed point, is what the model writes
    ratio(y) = (n - m) / n              noise of an iterate whose first m entries are those of x
    loss     = mean over the n - m others of CE(p(. | x_<j), p(. | y_<j))  +  weight * mean of -log p(x_j | x_<j)

The target of the first term, p(. | x_<j), is what the model itself says without noise; no gradient flows into it.
The blocks of an example get ratios on a ramp from 0 to 1 that starts again every w blocks (progressive noise): no block
then stands behind a long run of pure noise. We enter the ramp anywhere, so that no place is always clean. A noisy block
sees the prompt and the noisy blocks before it, a clean one the prompt and the clean ones. The paper packs both copies
behind one prompt into a sequence of twice the length, under a mask. Two rows of a batch compute the same without one.

Shapes: prompts (B, P); iterates (B, J, n + 1, n) of J blocks, as `trajectories` of samplers/jacobi.py returns them;
ratios (B, J).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minimal.nn.token_model import TokenModel, cross_entropy


def right_so_far(iterates: Tensor) -> Tensor:
    """How many leading entries of every iterate are those of the fixed point, (B, J, n + 1)."""
    return (iterates == iterates[:, :, -1:]).cumprod(-1).sum(-1)


def progressive(blocks: int, w: int, start: Tensor) -> Tensor:
    """Ratios (B, J): 0, 1/(w-1), ..., 1 and again from 0; row b enters the ramp at step `start[b]`."""
    step = (start[:, None] + torch.arange(blocks, device=start.device)) % w
    return step / max(1, w - 1)


def noisy_blocks(iterates: Tensor, ratios: Tensor) -> Tensor:
    """Of each path the iterate whose noise is nearest to its ratio: (B, J, n)."""
    n = iterates.shape[-1]
    noise = (n - right_so_far(iterates)) / n
    nearest = (noise - ratios[..., None]).abs().argmin(-1)
    return iterates.gather(2, nearest[:, :, None, None].expand(-1, -1, 1, n)).squeeze(2)


def forcing_loss(
    model: TokenModel, prompts: Tensor, iterates: Tensor, ratios: Tensor, weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss above for paths behind `prompts`, and its two parts. With all ratios 0 only the second is left."""
    P = prompts.shape[1]
    clean = torch.cat((prompts, iterates[:, :, -1].flatten(1)), dim=1)
    noisy = torch.cat((prompts, noisy_blocks(iterates, ratios).flatten(1)), dim=1)
    model.check(clean)
    from_clean, from_noisy = model.logits(torch.cat((clean, noisy)))[:, P:].chunk(2)
    ordinary = cross_entropy(from_clean, clean[:, P:])
    wrong = (noisy != clean)[:, P:].unflatten(1, iterates.shape[1::2])
    behind = (wrong.cumsum(-1) > 0).flatten(1)  # from the first wrong entry of each block on
    targets, guesses = from_clean[behind].detach().float().softmax(-1), from_noisy[behind].float()
    consistency = F.cross_entropy(guesses, targets, reduction="sum") / behind.sum().clamp(min=1)
    return consistency + weight * ordinary, {"consistency": consistency.detach(), "ordinary": ordinary.detach()}
