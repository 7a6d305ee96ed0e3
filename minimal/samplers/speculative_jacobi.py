"""Speculative Jacobi decoding: the last iterate is the draft, and a coin decides (2410.01699).

Jacobi iteration keeps a guess only if it comes out again. But a guess is more than a token: it was drawn from a
distribution q_j, which the last pass computed behind a guessed beginning. So judge it as speculative sampling would,

    keep x_j with probability min(1, p_j(x_j) / q_j(x_j));   at the first refusal draw from  (p_j - q_j)_+ , normalised,

and draw all later guesses again, from the p of this pass, which is the q of the next. What comes out has the target's
distribution. It is not the sample of sequential decoding with the same noise, as with jacobi.py.

Noise is indexed by place: three uniform numbers (guess, coin, repair) for each, used in every pass. That is sound: all
guesses for place j, its q and p, and the pass that judges it, are functions of the noise at earlier places and of j's
own number for guesses. Given what is in front of it, that number is still uniform, and the guess has distribution q_j.
"""

import torch
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import inverse_cdf, probabilities, uniform_noise
from minimal.samplers.speculative import verify
from minimal.samplers.trace import Sample, Trace


@torch.inference_mode()
def sample_speculative_jacobi(
    model: nn.Module,
    n: int,
    *,
    block: int = 16,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """Draw `n` samples of `model`; a pass judges block - 1 guesses and adds a token of its own.

    First guesses are uniform; where the window grows, they come from the distribution at its old end.
    """
    if not 2 <= block <= model.length:
        raise ValueError(
            f"block is {block}; work on between 2 and {model.length} tokens at a time, or use sample_cached"
        )
    canvas, first = new_canvas(model, n, cond, prompt, spare=block, **filters)
    N, device = model.length, canvas.device
    noise = uniform_noise(n, N + block, generator, device, numbers=3)
    cache = model.new_cache(n, N + block, ragged(n))
    lacks = first  # rows before the next position that the cache has not seen
    row, ahead = torch.arange(n, device=device)[:, None], torch.arange(block, device=device)
    length = torch.full((n,), first, device=device)
    q = torch.full((n, block - 1, model.vocab_size), 1 / model.vocab_size, device=device)
    trace = Trace()
    while (active := length < N).any():
        window = length[:, None] + ahead
        u_guess, coins, repair = noise[row, window].unbind(-1)
        guesses = inverse_cdf(q, u_guess[:, :-1])
        canvas.scatter_(1, window[:, :-1], guesses)
        logits = model.logits(canvas, cond, cache=cache, n=lacks + block)[:, -block:]
        trace.count("target", int(active.sum()), lacks + block)
        p = probabilities(logits, **filters)
        kept, token = verify(p, q, guesses, coins[:, :-1], repair)
        canvas.scatter_(1, (length + kept)[:, None], token[:, None])
        room = (N - length).clamp(max=block - 1)  # guesses beyond the end of the image do not count
        trace.accepted += int(kept.minimum(room).sum())
        trace.drafted += int((kept + 1).minimum(room).sum())
        length = (length + kept + 1).clamp(max=N)
        cache.truncate(length)
        lacks = 0
        q = p[row, (kept[:, None] + 1 + ahead[:-1]).clamp(max=block - 1)]
    return finished(canvas, N, trace)
