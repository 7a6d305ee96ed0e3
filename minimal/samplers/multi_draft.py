"""Many drafts, one kept: speculative sampling with k guesses for every token (SpecTr, 2310.15141; id `spectr`).

One round, from a prefix: k chains of L tokens each are drawn from the draft model q; the target computes p along all of
them in a single forward. Then, position by position, a rule looks at the next tokens of the chains that are still alive
and chooses the output, whose law is p and which should be one of these tokens as often as possible. Chains that said
the same stay alive; when none is left the round ends, and after L positions one more token comes for free.

    k-seq      independent chains. Take the drafts in order, accept x with probability min(1, p(x) / (rho q(x))); if
               none is accepted, draw from (p - rho q)_+. Speculative sampling against a draft inflated by rho.
    recursive  independent chains. Speculative sampling once per draft; a refusal leaves (p - q)_+ as the next target.
    distinct   the k first tokens are drawn without replacement; recursive, and q loses the refused token too.
    greedy     the first tokens are the k - 1 most likely ones and one draw from the rest of q: a single coin for that
               one, and whatever is drawn after its refusal is often among the others anyway.

The last two spread the chains at their first token, behind which each goes on alone. Whatever the rule, the output has
exactly the target's distribution; optimal_transport.py says how often a draft can be kept.

Noise is indexed by position, 2k + 1 uniform numbers for each (k drafts, k coins, one repair), as in speculative.py: for
k = 1 all rules are that sampler, token for token. Chains are a dimension of the batch: a pass runs over k (L + 1)
positions of each image (a tree that shares the first row would need k L + 1), and after a round every chain's cache
becomes a copy of the survivor's.

Shapes: p (B, k, L + 1, V), q (B, k, L, V), drafts (B, k, L); in a rule p and q (B, V), tokens and `alive` (B, k).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import inverse_cdf, probabilities, uniform_noise
from minimal.samplers.optimal_transport import k_seq_scale, normalised
from minimal.samplers.speculative import check_pair
from minimal.samplers.trace import Sample, Trace

# Choosing the output: (p, q, tokens, alive, coins (B, k), repair (B,)) -> token (B,)


def k_seq(p: Tensor, q: Tensor, tokens: Tensor, alive: Tensor, coins: Tensor, repair: Tensor) -> Tensor:
    """The first living draft that a coin accepts at scale rho, or else a draw from what p has left."""
    k = alive.sum(-1)
    rho = k_seq_scale(p, q, k)
    accepted = alive & (coins * rho * q.gather(-1, tokens) < p.gather(-1, tokens))
    handed_out = torch.minimum(q, p / rho)  # by one draft
    refused = 1 - handed_out.sum(-1)
    times = sum((refused**i) * (i < k) for i in range(tokens.shape[1]))[:, None]  # = rho when bisection is exact
    left = normalised((p - times * handed_out).clamp(min=0), p)
    first = tokens.gather(-1, accepted.int().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(accepted.any(-1), first, inverse_cdf(left, repair))


def recursive(
    p: Tensor, q: Tensor, tokens: Tensor, alive: Tensor, coins: Tensor, repair: Tensor, distinct: bool = False
) -> Tensor:
    """Speculative sampling with each living draft in turn; a refusal changes p, and q if the drafts are distinct."""
    token = torch.full_like(tokens[:, 0], -1)
    for i in range(tokens.shape[1]):
        x = tokens[:, i : i + 1]
        asked = (alive[:, i] & (token < 0))[:, None]
        keep = coins[:, i : i + 1] * q.gather(-1, x) < p.gather(-1, x)
        token = torch.where(asked & keep, x, token[:, None]).squeeze(-1)
        p = torch.where(asked & ~keep, normalised((p - q).clamp(min=0), p), p)
        if distinct:
            q = torch.where(asked & ~keep, normalised(q.scatter(-1, x, 0), q), q)
    return torch.where(token < 0, inverse_cdf(p, repair), token)


def greedy(p: Tensor, q: Tensor, tokens: Tensor, alive: Tensor, coins: Tensor, repair: Tensor) -> Tensor:
    """Speculative sampling with the last draft, drawn from q without the others; they catch many of the repairs."""
    others, x = tokens[:, :-1], tokens[:, -1:]
    rest = normalised(q.scatter(-1, others, 0), q)
    keep = coins[:, -1:] * rest.gather(-1, x) < p.gather(-1, x)
    repaired = inverse_cdf(normalised((p - rest).clamp(min=0), p), repair)
    return torch.where(keep, x, repaired[:, None]).squeeze(-1)


# Making the first tokens: (q (B, V), u (B, k)) -> tokens (B, k)


def draw_independent(q: Tensor, u: Tensor) -> Tensor:
    return inverse_cdf(q[:, None].expand(-1, u.shape[1], -1).contiguous(), u)


def draw_distinct(q: Tensor, u: Tensor) -> Tensor:
    tokens = []
    for i in range(u.shape[1]):
        tokens.append(inverse_cdf(q, u[:, i])[:, None])
        q = q.scatter(-1, tokens[-1], 0)
    return torch.cat(tokens, dim=1)


def draw_greedy(q: Tensor, u: Tensor) -> Tensor:
    top = q.topk(u.shape[1] - 1, -1).indices
    return torch.cat((top, inverse_cdf(q.scatter(-1, top, 0), u[:, -1])[:, None]), dim=1)


@dataclass(frozen=True)
class Rule:
    """How the first tokens of the chains are drawn and judged, and how later ones are judged.

    Later tokens of the living chains are independent, since each chain goes on by itself.
    """

    propose: Callable[[Tensor, Tensor], Tensor]
    first: Callable[..., Tensor]
    later: Callable[..., Tensor]
    distinct: bool = False  # k different tokens are needed


RULES = {
    "k-seq": Rule(draw_independent, k_seq, k_seq),
    "recursive": Rule(draw_independent, recursive, recursive),
    "distinct": Rule(draw_distinct, partial(recursive, distinct=True), k_seq, distinct=True),
    "greedy": Rule(draw_greedy, greedy, k_seq, distinct=True),
}


def verify(
    p: Tensor, q: Tensor, drafts: Tensor, coins: Tensor, repair: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Number of tokens kept (B,), the chain that holds them (B,), and the token (B,) that follows them.

    `coins` (B, L, k) and `repair` (B, L + 1) are uniform in [0, 1). A token is kept when a living chain has it: the
    membership that optimal transport maximises, so a repair that a chain happened to foresee counts as well.
    """
    B, k, L = drafts.shape
    row = torch.arange(B, device=drafts.device)
    chain, kept, token = torch.zeros_like(row), torch.zeros_like(row), torch.zeros_like(row)
    alive = torch.ones(B, k, dtype=torch.bool, device=drafts.device)
    for i in range(L):
        going = alive.any(-1)
        choose = rule.later if i else rule.first
        chosen = choose(p[row, chain, i], q[row, chain, i], drafts[:, :, i], alive, coins[:, i], repair[:, i])
        token = torch.where(going, chosen, token)
        alive = alive & (drafts[:, :, i] == chosen[:, None])
        kept = kept + alive.any(-1)
        chain = torch.where(alive.any(-1), alive.int().argmax(-1), chain)
    return kept, chain, torch.where(alive.any(-1), inverse_cdf(p[row, chain, L], repair[:, L]), token)


# The sampler


@torch.inference_mode()
def sample_multi_draft(
    model: nn.Module,
    draft: nn.Module,
    n: int,
    *,
    k: int = 4,
    depth: int = 4,
    rule: str | Rule = "k-seq",
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """Draw `n` samples of `model` with `k` chains of `depth` guesses per round; `filters` apply to both networks.

    `rule` is one of RULES. Rows advance at their own pace. `trace.drafted` counts positions that the rule decided on,
    `trace.accepted` those where a chain had the output, so their ratio is the acceptance of optimal_transport.py over
    the prefixes that were visited.
    """
    rule = check_drafts(model, draft, k, depth, rule)
    canvas, first = new_canvas(model, n, cond, prompt, spare=depth + 1, **filters)
    N, device = model.length, canvas.device
    draft.check(canvas[:, :first], cond)
    noise = uniform_noise(n, N + depth + 1, generator, device, numbers=2 * k + 1)
    canvas = canvas.repeat(k, 1)  # chain c of image i is row c n + i
    cond = None if cond is None else cond.repeat(k)
    # the chains of one image are equally long
    target_cache, draft_cache = (net.new_cache(k * n, N + depth + 1, ragged(n)) for net in (model, draft))
    target_lacks = draft_lacks = first  # rows before the next position that a cache has not seen
    row = torch.arange(n, device=device)
    length = torch.full((n,), first, device=device)
    trace = Trace()
    while (active := length < N).any():
        rows = int(active.sum())
        window = length[:, None] + torch.arange(depth + 1, device=device)  # positions that this round may fill
        u = noise[row[:, None], window]  # (n, L + 1, 2k + 1)
        q = []
        for i in range(depth):
            new = draft_lacks + 1 if i == 0 else 1
            logits = draft.logits(canvas, cond, cache=draft_cache, n=new)[:, -1].view(k, n, -1).transpose(0, 1)
            trace.count("draft", rows, k * new)
            q.append(probabilities(logits, **filters))
            if i == 0 and rule.distinct:
                q[0] = spread(q[0], logits)
            tokens = rule.propose(q[0][:, 0], u[:, 0, :k]) if i == 0 else inverse_cdf(q[i], u[:, i, :k])
            canvas.scatter_(1, window[:, i : i + 1].repeat(k, 1), tokens.T.reshape(-1, 1))
        logits = model.logits(canvas, cond, cache=target_cache, n=target_lacks + depth + 1)[:, -depth - 1 :]
        trace.count("target", rows, k * (target_lacks + depth + 1))
        p = probabilities(logits, **filters).unflatten(0, (k, n)).transpose(0, 1)  # (n, k, L + 1, V)
        drafts = canvas.gather(1, window[:, :depth].repeat(k, 1)).view(k, n, depth).transpose(0, 1)
        kept, chain, token = verify(p, torch.stack(q, 2), drafts, u[:, :-1, k : 2 * k], u[..., -1], rule)
        survivor = chain * n + row
        canvas = canvas[survivor].scatter(1, (length + kept)[:, None], token[:, None]).repeat(k, 1)
        room = (N - length).clamp(max=depth)  # guesses beyond the end of the image do not count
        trace.accepted += int(kept.minimum(room).sum())
        trace.drafted += int((kept + 1).minimum(room).sum())
        length = (length + kept + 1).clamp(max=N)
        for cache in (target_cache, draft_cache):
            halves = torch.arange(cache.k.shape[1] // (k * n), device=device) * k * n  # two if guided, else one
            cache.reorder((halves[:, None] + survivor.repeat(k)).flatten())
        target_cache.truncate(length)
        draft_cache.truncate(length - 1)  # after full acceptance it has not seen the last guess: feed two next time
        target_lacks, draft_lacks = 0, 1
    return finished(canvas[:n], N, trace)


def spread(q: Tensor, logits: Tensor) -> Tensor:
    """A millionth of the unfiltered distribution mixed into q, so that k different tokens can always be drawn.

    Any q is allowed as long as drawing and judging use the same one.
    """
    return normalised(q + 1e-6 * (probabilities(logits) + 1e-6))


def check_drafts(model: nn.Module, draft: nn.Module, k: int, depth: int, rule: str | Rule) -> Rule:
    check_pair(model, draft, 1)
    if not isinstance(rule, Rule) and rule not in RULES:
        raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
    rule = rule if isinstance(rule, Rule) else RULES[rule]
    if k < 1:
        raise ValueError(f"k is {k}; at least one draft is needed")
    if rule.distinct and k > model.vocab_size:
        raise ValueError(f"k is {k}, but there are only {model.vocab_size} different tokens to draft")
    if not 1 <= depth <= model.length:
        raise ValueError(f"depth is {depth}; draft between 1 and {model.length} tokens per chain")
    return rule
