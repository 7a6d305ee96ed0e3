"""Jacobi decoding: solve for a whole block of tokens at once, by fixed-point iteration (2002.03629, 2305.10427).

With the noise u fixed, sampling is a system of N equations in N unknowns (greedy decoding is the case without noise):

    y_j = f(y)_j = inverse_cdf(p(. | y_0 .. y_{j-1}), u_j)

Equation j depends on earlier unknowns only, so there is one solution, the sequential sample. Iterating y <- f(y) from
any guess reaches it: if the first j entries of y are right, the first j + 1 entries of f(y) are. Each pass therefore
settles at least one token, and more whenever a guess was right. Only the entries up to and including the first
*change* are settled; those behind it were computed from a wrong prefix and may change back.

Exact for every block size and every first guess. It saves passes, not work: a pass runs over the whole block.

How often a guess comes out again when the beginning in front of it has changed depends on how noise selects a token.
For distributions p and q of total variation d the Gumbel rule,

    y_j = argmax_v log p(v | y_0 .. y_{j-1}) + G_jv,        G = -log(-log u), one number for each token,

changes its mind with probability at most 2 d / (1 + d) (2408.07978). The inverse cumulative distribution may do so far
more often, since what one token gains shifts all those behind it, also where tokens are ordered. At best it would be d.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import draw, filter_logits, uniform_noise
from minimal.samplers.trace import Sample, Trace


def settled(old: Tensor, new: Tensor) -> Tensor:
    """How many leading entries of `new` = f(`old`) (B, n) are final (B,): all up to and including the first change."""
    unchanged = (old == new).cumprod(-1).sum(-1)
    return (unchanged + 1).clamp(max=old.shape[1])


def gumbel_draw(logits: Tensor, u: Tensor, **filters) -> Tensor:
    """The token (...) that wins when each logit (..., V) gets the Gumbel noise of its own uniform `u` (..., V)."""
    return (filter_logits(logits, **filters) - (-u.log()).log()).argmax(-1)


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
    gumbel: bool = False,
    **filters,
) -> Sample:
    """The samples of `sample_cached` with the same generator, `block` unknowns at a time.

    With `gumbel` the noise selects tokens by `gumbel_draw`: other samples, again the same for every block and guess.

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
    choose, numbers = (gumbel_draw, model.vocab_size) if gumbel else (draw, 1)
    noise = uniform_noise(n, N, generator, device, numbers=numbers)
    noise = F.pad(noise, (0, 0, 0, block), value=0.5)
    cache = model.new_cache(n, N + block, ragged(n))
    row = torch.arange(n, device=device)[:, None]
    lacks = first  # rows before the next position that the cache has not seen
    length = torch.full((n,), first, device=device)
    trace = Trace()
    while (active := length < N).any():
        window = length[:, None] + torch.arange(block, device=device)
        logits = model.logits(canvas, cond, cache=cache, n=lacks + block)[:, -block:]
        trace.count("target", int(active.sum()), lacks + block)
        old = canvas.gather(1, window)
        new = choose(logits, noise[row, window].squeeze(-1), **filters)
        canvas.scatter_(1, window, new)
        step = settled(old, new).minimum(N - length)
        trace.drafted += int(((N - length).clamp(max=block) - 1).clamp(min=0).sum())
        trace.accepted += int((step - 1).clamp(min=0).sum())
        length = length + step
        cache.truncate(length)
        lacks = 0
    return finished(canvas, N, trace)


@torch.inference_mode()
def trajectories(
    model: nn.Module, prompts: Tensor, block: int, generator: torch.Generator | None = None, **filters
) -> Tensor:
    """Jacobi decoding behind `prompts` (B, P), block by block, from zeros: every iterate, (B, J, n + 1, n) long.

    J blocks of n = `block` tokens, as many as fit. Row k of a path is what k passes made of the guess; the last row is
    solved, for after k passes the first k entries are. A pass over a batch therefore computes n - k positions.
    """
    (B, P), n = prompts.shape, block
    J = (model.length - P) // n if n > 0 else 0
    if J < 1:
        raise ValueError(f"no block of {n} tokens fits behind a prompt of {P} in a context of {model.length}")
    canvas, _ = new_canvas(model, B, prompt=prompts, **filters)
    noise = uniform_noise(B, model.length, generator, canvas.device)
    iterates = torch.zeros(B, J, n + 1, n, dtype=torch.long, device=canvas.device)
    cache = model.new_cache(B)
    for j in range(J):
        start, end = P + j * n, P + (j + 1) * n
        for k in range(n):
            logits = model.logits(canvas[:, :end], cache=cache)[:, k - n :]
            new = draw(logits, noise[:, start + k : end], **filters)
            solved = torch.equal(new, canvas[:, start + k : end])
            canvas[:, start + k : end] = new
            iterates[:, j, k + 1 :] = canvas[:, None, start:end]
            if solved:
                break  # and the cache has seen what is right
            cache.truncate(start + k + 1)
    with torch.inference_mode(False):
        return iterates.clone()
