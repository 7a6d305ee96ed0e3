"""Speculative sampling: a small model guesses, the large one checks many guesses at once (2211.17192, 2302.01318).

One round, from a prefix of L tokens: the draft proposes k tokens x_i ~ q_i, one by one and cheaply; the target computes
p_1 .. p_{k+1} in a single forward over all of them; then, from left to right,

    keep x_i with probability min(1, p_i(x_i) / q_i(x_i));   at the first refusal draw from  (p_i - q_i)_+ , normalised.

If all k are kept, one more token comes from p_{k+1} for free. The output has exactly the target's distribution: a
token x comes out with probability min(p, q)(x) by being kept and (p - q)_+(x) by being drawn after a refusal, and the
two add up to p(x). The chance of keeping is sum min(p, q) = 1 - TV(p, q); no other coupling of p and q does better.

Noise is indexed by position: three uniform numbers (draft, coin, repair) for each. Guesses after a refusal are
forgotten unseen and made again later from the same numbers, which is sound because no decision has looked at them.
"""

import torch
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import inverse_cdf, probabilities, uniform_noise
from minimal.samplers.trace import Sample, Trace


def verify(p: Tensor, q: Tensor, drafts: Tensor, coins: Tensor, repair: Tensor) -> tuple[Tensor, Tensor]:
    """Number of drafts kept (B,), and the token (B,) that follows them.

    `p` (B, k + 1, V) target and `q` (B, k, V) draft distributions, `drafts` (B, k);
    `coins` (B, k) and `repair` (B, k + 1) uniform in [0, 1).
    """
    p_draft = p[:, :-1].gather(-1, drafts[..., None]).squeeze(-1)
    q_draft = q.gather(-1, drafts[..., None]).squeeze(-1)
    keep = coins * q_draft < p_draft  # u < p / q, without the division
    kept = keep.cumprod(-1).sum(-1)
    # behind the last draft stands q = 0, where the residual (p - q)_+ is p itself: the free token is no special case
    q = torch.cat((q, torch.zeros_like(q[:, :1])), dim=1)
    row = torch.arange(len(p), device=p.device)
    p_next, q_next = p[row, kept], q[row, kept]
    residual = (p_next - q_next).clamp(min=0)
    empty = residual.sum(-1, keepdim=True) == 0  # p = q up to rounding: a refusal has probability zero, but be safe
    return kept, inverse_cdf(torch.where(empty, p_next, residual), repair[row, kept])


def verify_greedy(logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """The same at temperature 0, where p is all on one token: keep what the target's `logits` (B, k + 1, V) choose."""
    best = logits.argmax(-1)
    kept = (best[:, :-1] == drafts).cumprod(-1).sum(-1)
    return kept, best.gather(1, kept[:, None]).squeeze(1)


@torch.inference_mode()
def sample_speculative(
    model: nn.Module,
    draft: nn.Module,
    n: int,
    *,
    k: int = 4,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """Draw `n` samples of `model` with `k` guesses of `draft` per round; `filters` as in logits.py apply to both.

    `temperature=0` is greedy decoding of `model`: a guess is kept if the target would have chosen it. Rows advance at
    their own pace. `trace.drafted` counts guesses that were decided on, so `trace.acceptance` is the mean of
    1 - TV(p, q) over the prefixes that were visited, up to chance.
    """
    check_pair(model, draft, k)
    canvas, first = new_canvas(model, n, cond, prompt, spare=k + 1, **filters)
    N, device = model.length, canvas.device
    draft.check(canvas[:, :first], cond)
    noise = uniform_noise(n, N + k + 1, generator, device, numbers=3)
    target_cache, draft_cache = (net.new_cache(n, N + k + 1, ragged(n)) for net in (model, draft))
    target_lacks = draft_lacks = first  # rows before the next position that a cache has not seen
    row, ahead = torch.arange(n, device=device)[:, None], torch.arange(k + 1, device=device)
    greedy = filters.get("temperature") == 0
    length = torch.full((n,), first, device=device)
    trace = Trace()
    while rows := int((length < N).sum()):
        window = length[:, None] + ahead  # positions (n, k + 1) that this round may fill
        u_draft, coins, repair = noise[row, window].unbind(-1)
        drafts, q = [], []
        for i in range(k):
            new = draft_lacks + 1 if i == 0 else 1
            logits = draft.logits(canvas, cond, cache=draft_cache, n=new)[:, -1]
            trace.count("draft", rows, new)
            if greedy:
                drafts.append(logits.argmax(-1))
            else:
                q.append(probabilities(logits, **filters))
                drafts.append(inverse_cdf(q[i], u_draft[:, i]))
            canvas.scatter_(1, window[:, i : i + 1], drafts[i][:, None])
        logits = model.logits(canvas, cond, cache=target_cache, n=target_lacks + k + 1)[:, -k - 1 :]
        trace.count("target", rows, target_lacks + k + 1)
        drafts = torch.stack(drafts, 1)
        if greedy:
            kept, token = verify_greedy(logits, drafts)
        else:
            kept, token = verify(probabilities(logits, **filters), torch.stack(q, 1), drafts, coins[:, :k], repair)
        canvas.scatter_(1, (length + kept)[:, None], token[:, None])
        room = (N - length).clamp(max=k)  # guesses beyond the end of the image do not count
        trace.accepted += int(kept.minimum(room).sum())
        trace.drafted += int((kept + 1).minimum(room).sum())
        length = (length + kept + 1).clamp(max=N)
        target_cache.truncate(length)
        draft_cache.truncate(length - 1)  # after full acceptance it has not seen the last guess: feed two next time
        target_lacks, draft_lacks = 0, 1
    return finished(canvas, N, trace)


def check_pair(model: nn.Module, draft: nn.Module, k: int) -> None:
    if draft.vocab_size != model.vocab_size:
        raise ValueError(
            f"the draft has {draft.vocab_size} tokens and the target {model.vocab_size}; they must share a vocabulary"
        )
    if draft.length < model.length:
        raise ValueError(f"the draft's context of {draft.length} is shorter than the target's {model.length}")
    if not 1 <= k <= model.length:
        raise ValueError(f"k is {k}; draft between 1 and {model.length} tokens per round")
    if draft.training:
        raise ValueError("the draft is in training mode, where dropout is on; call draft.eval() before sampling")
