"""Jacobi decoding: solve for a whole block of tokens at once, by fixed-point iteration (2002.03629, 2305.10427).

With the noise u fixed, sampling is a system of N equations in N unknowns (greedy decoding is the case without noise):

    y_j = f(y)_j = inverse_cdf(p(. | y_0 .. y_{j-1}), u_j)

Equation j depends on earlier unknowns only, so there is one solution, the sequential sample. Iterating y <- f(y) from
any guess reaches it: if the first j entries of y are right, the first j + 1 entries of f(y) are. Each pass therefore
settles at least one token, and more whenever a guess was right. Only the entries up to and including the first
*change* are settled; those behind it were computed from a wrong prefix and may change back.

Exact for every block size and every first guess. It saves passes, not work: a pass runs over the whole block.
"""

import torch
from torch import Tensor, nn

from minimal.nn.cache import KVCache, StaticKVCache
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.trace import Sample, Trace


def settled(old: Tensor, new: Tensor) -> Tensor:
    """How many leading entries of `new` = f(`old`) (B, n) are final (B,): all up to and including the first change."""
    unchanged = (old == new).cumprod(-1).sum(-1)
    return (unchanged + 1).clamp(max=old.shape[1])


@torch.inference_mode()
def sample_jacobi(
    model: nn.Module,
    n: int,
    *,
    block: int = 16,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    guess: Tensor | None = None,
    **filters,
) -> Sample:
    """The samples of `sample_cached` with the same generator, `block` unknowns at a time.

    The block slides: settled tokens leave it on the left, their keys stay in the cache, and fresh unknowns enter on
    the right with the values of `guess` (n, N), by default zeros. `trace.accepted` counts the tokens settled beyond
    the first.
    """
    if not 1 <= block <= model.length:
        raise ValueError(f"block is {block}; solve for between 1 and {model.length} tokens at a time")
    canvas, first = new_canvas(model, n, cond, prompt, spare=block, **filters)
    N, device = model.length, canvas.device
    if guess is not None:
        model.check(guess)
        if guess.shape != (n, N):
            raise ValueError(f"guess must be ({n}, {N}), a value for every unknown; got {tuple(guess.shape)}")
        canvas[:, first:N] = guess[:, first:]
    noise = torch.cat((uniform_noise(n, N, generator, device), torch.zeros(n, block, device=device)), dim=1)
    cache = model.new_cache(n, N + block, KVCache if n == 1 else StaticKVCache)
    lacks = first  # rows before the next position that the cache has not seen
    length = torch.full((n,), first, device=device)
    trace = Trace()
    while (active := length < N).any():
        window = length[:, None] + torch.arange(block, device=device)
        logits = model.logits(canvas, cond, cache=cache, n=lacks + block)[:, -block:]
        trace.count("target", int(active.sum()), lacks + block)
        old = canvas.gather(1, window)
        new = draw(logits, noise.gather(1, window), **filters)
        canvas.scatter_(1, window, new)
        step = settled(old, new).minimum(N - length)
        trace.drafted += int(((N - length).clamp(max=block) - 1).clamp(min=0).sum())
        trace.accepted += int((step - 1).clamp(min=0).sum())
        length = length + step
        cache.truncate(length)
        lacks = 0
    return finished(canvas, N, trace)
