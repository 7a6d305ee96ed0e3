"""Any-subset speculative decoding, ASSD: a model that drafts for itself (2504.20456; id `as-arm`).

An any-subset model (ar/any_subset.py) predicts every hidden place from what is known, so it needs no second network to
make guesses. One round, for the next k hidden places from left to right:

    pass 1    q_1 .. q_k, all from the tokens known so far; draw x_i ~ q_i, each for itself
    pass 2    p_1 .. p_k, where p_i has read x_1 .. x_(i-1) as well; keep or redraw from left to right as in
              speculative.py, up to and including the first refusal

Both passes see the same for the first place: p_1 = q_1, so x_1 is always kept, and a second place is written whatever
happens. Two passes write at least two tokens, a single last place takes one pass: there are never more passes than
tokens. For k = 2 there are never fewer either. k = 1 is one token a pass, left to right.

When all k are kept the round ends: as in the paper there is no free token from p_(k+1).

The order is fixed before anything is drawn, as the conditionals of a trained network depend on it. Noise is indexed by
place: three uniform numbers (draft, coin, repair) for each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minimal.ar.any_subset import AnySubsetGPT, ranks
from minimal.samplers.cached import check_forced, finished, new_canvas
from minimal.samplers.logits import inverse_cdf, probabilities, uniform_noise
from minimal.samplers.speculative import verify
from minimal.samplers.trace import Sample, Trace


@torch.inference_mode()
def sample_any_subset(
    model: AnySubsetGPT,
    n: int,
    *,
    k: int = 8,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    forced: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """Draw `n` samples of `model`, up to `k` tokens in two passes; `filters` as in logits.py apply to both.

    `forced` (n, N) holds the known tokens, -1 where a place is hidden; `prompt` (n, P) are further known tokens in
    front. Rows advance at their own pace. `trace.drafted` counts guesses that a coin decided on, the first ones of the
    rounds aside, so `trace.acceptance` is the mean of their 1 - TV(p, q). Temperature 0 is the greedy completion in
    this order, whatever `k`.
    """
    if k < 1:
        raise ValueError(f"k is {k}; a round writes at least 1 token")
    canvas, first = new_canvas(model, n, cond, prompt, spare=1, **filters)  # place N takes what is thrown away
    N, device = model.length, canvas.device
    known = (torch.arange(N, device=device) < first).expand(n, N)
    if check_forced(model, n, forced) is not None:
        canvas[:, :N] = torch.where((forced >= 0) & ~known, forced, canvas[:, :N])
        known = known | (forced >= 0)
    levels = ranks(known)  # (n, N)
    hidden = (~known).sum(1)
    k = min(k, max(1, int(hidden.max())))
    order = F.pad(known.long().argsort(dim=1, stable=True), (0, k))  # hidden places from left to right,
    order[torch.arange(N + k, device=device) >= hidden[:, None]] = N  # and place N behind them
    noise = uniform_noise(n, N + 1, generator, device, numbers=3)
    row = torch.arange(n, device=device)[:, None]
    written = torch.zeros_like(hidden)
    trace = Trace()
    while (active := written < hidden).any():
        window = order[row, written[:, None] + torch.arange(k, device=device)]  # (n, k) places
        room = (hidden - written).clamp(max=k)
        u_draft, coins, repair = noise[row, window].unbind(-1)
        asked = window.clamp(max=N - 1)
        together = levels.minimum(written[:, None] + 1)  # all that is still hidden shares a level
        first_pass = model.logits(canvas[:, :N], cond, levels=together, asked=asked)
        trace.count("target", int(active.sum()), N + 1 + k)
        q = probabilities(first_pass, **filters)
        drafts = inverse_cdf(q, u_draft)
        canvas.scatter_(1, window, drafts)
        kept = torch.ones_like(room)
        if (judged := active & (room > 1)).any():
            second_pass = model.logits(canvas[:, :N], cond, levels=levels, asked=asked)
            trace.count("target", int(judged.sum()), N + 1 + k)
            check_first(first_pass[:, 0], second_pass[:, 0])
            p = probabilities(second_pass, **filters)
            # p_1 = q_1 but for rounding; the last row would give a token behind k kept ones, and goes to place N
            p = torch.cat((q[:, :1], p[:, 1:], p[:, -1:]), dim=1)
            kept, token = verify(p, q, drafts, coins, F.pad(repair, (0, 1)))
            place = window.gather(1, kept.clamp(max=k - 1)[:, None])
            canvas.scatter_(1, place.where(kept[:, None] < k, N), token[:, None])
            trace.drafted += int(((kept + 1).minimum(room) - 1)[judged].sum())
            trace.accepted += int((kept.minimum(room) - 1)[judged].sum())
            kept = kept + 1  # and the one that was redrawn
        written = written + kept.minimum(room)
    return finished(canvas, N, trace)


def check_first(q: Tensor, p: Tensor) -> None:
    """The first place of a round has read the same tokens in both passes."""
    if not torch.allclose(q, p, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the two passes disagree on the first place by {(q - p).abs().max():.2g}; in this model a known token or "
            "an earlier one reads the drafts, and then verification is not exact. Mend its mask"
        )
