"""MaskGIT's parallel decoding: guess every hidden token, keep those that the network is surest of (2202.04200).

A canvas starts as MASK everywhere. Step t = 1 .. T asks the network once, and draws a token for every hidden place,
each independently of the others. Then some draws are hidden again, so that gamma(t / T) of the canvas stays masked:

    score_j = log p(x_j) + tau (1 - t / T) g_j,      g_j Gumbel noise;  known tokens have +inf
    hidden again: the m_t lowest scores,             m_t = floor(gamma(t / T) M), but at least one fewer than before

M tokens were hidden at first, gamma is a schedule with gamma(0) = 1 and gamma(1) = 0. The noise shrinks as t grows;
tau = inf is a random order. T forwards instead of N. What is lost: tokens of one step do not know of each other, and
for a finite tau even one token per step is not a sample of the model, since likely *draws* are kept first.

All noise is drawn up front, image by image: an image does not depend on how many others are made beside it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minimal.ar.masked import Schedule, cosine
from minimal.samplers.cached import check_forced, finished, new_canvas
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.trace import Sample, Trace


@torch.inference_mode()
def sample_masked(
    model: nn.Module,
    n: int,
    *,
    num_steps: int = 8,
    cond: Tensor | None = None,
    forced: Tensor | None = None,
    schedule: Schedule = cosine,
    choice_temperature: float = 4.5,
    guidance: Callable[[float], float] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **filters,
) -> Sample:
    """Fill `n` canvases in at most `num_steps` forwards.

    `cond` (n,) labels; `forced` (n, N) tokens that are known from the start, -1 where free (in-painting); `guidance`:
    the scale of each step, given the share of steps that are done, in [0, 1) (`ramp`). A constant scale needs none of
    this, `Guided(model, scale)` does it. `filters` (temperature, ...) shape the draws, not the scores.
    """
    canvas, _ = new_canvas(model, n, cond, **filters)
    canvas.fill_(model.vocab_size)  # MASK
    forced = check_forced(model, n, forced)
    if forced is not None:
        canvas = torch.where(forced < 0, canvas, forced)
    counts = hidden_counts((canvas == model.vocab_size).sum(1), num_steps, schedule)
    if not choice_temperature >= 0:
        raise ValueError(
            f"choice_temperature is {choice_temperature}; give 0 (surest first), more, or math.inf (random)"
        )
    noise = uniform_noise(n, num_steps * 2 * model.length, generator, canvas.device)
    noise = noise.view(n, num_steps, 2, model.length)
    trace = Trace()
    for t in tqdm(range(num_steps), desc="unmasking", disable=not progress):
        hidden = canvas == model.vocab_size
        if not hidden.any():
            break
        network = model if guidance is None else Guided(model, guidance(t / num_steps))
        logits = network.logits(canvas, cond)
        trace.count("target", n, model.length)
        drawn = draw(logits, noise[:, t, 0], **filters)
        gumbel = -(-noise[:, t, 1].clamp(min=1e-30).log()).log()
        scores = gumbel
        if choice_temperature < math.inf:
            logp = logits.float().log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
            scores = logp + choice_temperature * (1 - (t + 1) / num_steps) * gumbel
        rank = scores.masked_fill(~hidden, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
        again = rank < counts[:, t, None]
        canvas = torch.where(hidden & ~again, drawn, canvas)
    return finished(canvas, model.length, trace)


def hidden_counts(start: Tensor, num_steps: int, schedule: Schedule) -> Tensor:
    """How many tokens (n, T) stay hidden after each step, of `start` (n,): fewer every time, 0 at the end."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; give at least 1")
    share = schedule(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64))
    if not (abs(share[0] - 1) < 1e-6 and abs(share[-1]) < 1e-6 and (share[1:] <= share[:-1] + 1e-6).all()):
        raise ValueError(f"a schedule falls from 1 to 0, this one runs {[round(x, 3) for x in share.tolist()]}")
    left, counts = start, []
    for t in range(1, num_steps + 1):
        wanted = (share[t].item() * start + 1e-6).floor().long()  # 1e-6: 2.9999999 are three
        left = torch.minimum(wanted.clamp(min=0 if t == num_steps else 1), (left - 1).clamp(min=0))
        counts.append(left)
    return torch.stack(counts, dim=1)


def ramp(scale: float) -> Callable[[float], float]:
    """Guidance that grows from none (1) to `scale` as the canvas fills: early tokens keep the variety."""
    return lambda done: 1 + (scale - 1) * done
