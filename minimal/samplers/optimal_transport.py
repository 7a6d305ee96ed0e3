"""One of k drafts: how often can it be kept? (Optimal MDSD, 2502.18779, id `optimal-mdsd`; SpecTr, 2310.15141.)

A draft model q offers k tokens, the set s with probability Q(s). The output y must follow the target p and should lie
in s as often as possible. That is an optimal transport problem with the membership cost 1[y not in s]:

    maximise sum_s sum_{y in s} pi(s, y)     with   sum_y pi(s, y) <= Q(s),   sum_s pi(s, y) <= p(y),   pi >= 0

It is also a maximal flow, source -> sets -> tokens -> sink. A cut that leaves the tokens H on the source's side severs
these tokens, P(H) = sum of p over H, and every set that is not inside H, 1 - Q(H) with Q(H) = chance that *all* drafts
lie in H. The largest flow is the smallest cut:

    alpha* = 1 + min over H of ( P(H) - Q(H) )

Three schemes make the drafts: "independent" (k draws from q), "distinct" (k draws without replacement) and "greedy"
(the k - 1 most likely tokens of q, and one draw from the rest). For the first two the best H is a prefix of the tokens
sorted by q / p, so V candidates are enough; for the third there is a closed form. What rules without a linear program
reach stands below: K-SEQ and recursive rejection.

Shapes: p and q (..., V) with V tokens. A set of tokens is a number in 0 .. 2^V - 1 whose bit x says whether it has x.
"""

import math

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor

SCHEMES = ("independent", "distinct", "greedy")
LIMIT = 2**18  # sets or tuples of drafts that may be listed
TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def normalised(weights: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Weights (..., V) divided by their sum; where that is zero, `otherwise`."""
    total = weights.sum(-1, keepdim=True)
    if otherwise is None:
        return weights / total
    return torch.where(total > 0, weights / total.clamp(min=torch.finfo(weights.dtype).tiny), otherwise)


# The optimum, by brute force


def draft_sets(q: Tensor, k: int, scheme: str = "independent") -> Tensor:
    """Probability Q(s) of every set of drafts, (2^V,), float64, for one q (V,)."""
    check_scheme(q, k, scheme)
    V, q = len(q), q.double()
    if 2**V > LIMIT:
        raise ValueError(f"{V} tokens have 2^{V} subsets, too many to list; use optimal_acceptance")
    if scheme == "independent":
        if V**k > LIMIT:
            raise ValueError(f"{V}^{k} tuples of drafts are too many to list; use optimal_acceptance")
        drawn = torch.cartesian_prod(*[torch.arange(V)] * k).view(-1, k)
        chance = q[drawn].prod(-1)
    elif scheme == "distinct":
        drawn, chance = distinct_sets(q, k)
    else:
        top = q.topk(k - 1).indices
        drawn = torch.cat((top.expand(V, -1), torch.arange(V)[:, None]), dim=1)
        chance = normalised(q.index_fill(0, top, 0))
    member = torch.zeros(len(drawn), V, dtype=torch.long).scatter(1, drawn, 1)
    return torch.zeros(2**V, dtype=torch.float64).index_add(0, member @ 2 ** torch.arange(V), chance)


def distinct_sets(q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All sets (C, k) of k tokens, and the chance (..., C) to draw each from q (..., V) without replacement.

    Set by set: the last draw was one of its tokens, taken from what the draws before had left in the urn.
    """
    V, device = q.shape[-1], q.device
    if V > 62 or math.comb(V, k) > LIMIT:
        raise ValueError(f"{k} of {V} tokens give too many sets to list; take fewer drafts or a smaller vocabulary")
    sets, chance = torch.arange(V, device=device)[:, None], q
    for size in range(2, k + 1):
        number = (2**sets).sum(-1)  # a set as a number: bit x for token x
        outside = torch.ones(len(sets), V, dtype=q.dtype, device=device).scatter(1, sets, 0)
        per_urn = chance / (q @ outside.mT).clamp(min=torch.finfo(q.dtype).tiny)
        sets = torch.combinations(torch.arange(V, device=device), size)
        before = (2**sets).sum(-1, keepdim=True) - 2**sets  # (C, size): the set without each of its tokens
        order = number.argsort()
        chance = (per_urn[..., order[torch.searchsorted(number[order], before)]] * q[..., sets]).sum(-1)
    return sets, chance


def smallest_cut(p: Tensor, sets: Tensor) -> tuple[float, int]:
    """alpha* of one p (V,) and the law of `sets` (2^V,) by trying every H, and the best H."""
    mass, inside = torch.zeros_like(sets), sets.clone()
    for x in range(len(p)):  # sums over subsets, one token at a time: H with x gets what H without x has
        mass.view(-1, 2, 2**x)[:, 1] += p[x]
        inside.view(-1, 2, 2**x)[:, 1] += inside.view(-1, 2, 2**x)[:, 0]
    gap, H = (mass - inside).min(0)
    return 1 + gap.item(), int(H)


def best_coupling(p: Tensor, sets: Tensor) -> Tensor:
    """An optimal joint law (2^V, V) of draft set and output, by linear programming: its marginals are `sets` and p.

    Row s, normalised, is how to choose the output once the drafts are s. What the program leaves open (outputs outside
    the set) is filled in independently.
    """
    V, sets = len(p), sets.double()
    s, y = (torch.arange(len(sets))[:, None] >> torch.arange(V) & 1).nonzero(as_tuple=True)  # y is in s
    s, y = s[sets[s] > 0], y[sets[s] > 0]
    rows = np.concatenate((s.numpy(), len(sets) + y.numpy()))
    columns = np.tile(np.arange(len(s)), 2)
    margins = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(sets) + V, len(s)))
    bounds = torch.cat((sets, p.double()))
    solution = linprog(-np.ones(len(s)), A_ub=margins, b_ub=bounds.numpy(), options=TIGHT)
    if not solution.success:
        raise ValueError(f"the linear program was not solved: {solution.message}")
    plan = torch.zeros(len(sets), V, dtype=torch.float64)
    plan[s, y] = torch.from_numpy(solution.x)
    left, lacking = (sets - plan.sum(1)).clamp(min=0), (p.double() - plan.sum(0)).clamp(min=0)
    return plan + left[:, None] * normalised(lacking, torch.zeros_like(lacking))


def membership(plan: Tensor) -> float:
    """How often the output of a coupling (2^V, V) is one of the drafts."""
    inside = torch.arange(len(plan))[:, None] >> torch.arange(plan.shape[1]) & 1
    return (plan * inside).sum().item()


# The optimum, fast


def optimal_acceptance(p: Tensor, q: Tensor, k: int, scheme: str = "independent") -> Tensor:
    """alpha* (...,) for target p and draft q (..., V): no rule keeps one of the k drafts more often."""
    check_scheme(q, k, scheme)
    if scheme == "greedy":
        top = q.topk(k - 1, -1).indices
        rest = normalised(q.scatter(-1, top, 0))
        return p.gather(-1, top).sum(-1) + torch.minimum(p.scatter(-1, top, 0), rest).sum(-1)
    order = (q / p).nan_to_num(0, posinf=torch.inf).argsort(-1, descending=True)  # H takes first what p cares least for
    p, q = p.gather(-1, order), q.gather(-1, order)
    if scheme == "independent":
        inside = q.cumsum(-1) ** k
    else:
        sets, chance = distinct_sets(q, k)
        inside = torch.zeros_like(q).index_add(-1, sets[:, -1], chance).cumsum(-1)  # a prefix that reaches its last
    return 1 + (p.cumsum(-1) - inside).amin(-1).clamp(max=0)  # at most 0: the empty set


def check_scheme(q: Tensor, k: int, scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"no scheme {scheme!r}; drafts are {', '.join(SCHEMES)}")
    if k < 1:
        raise ValueError(f"k is {k}; at least one draft is needed")
    if scheme != "independent" and ((possible := (q > 0).sum(-1)) < k).any():
        raise ValueError(
            f"k is {k}, but q gives only {possible.min()} tokens a chance: there are no {k} different drafts"
        )


# Rules without a linear program


def k_seq_scale(p: Tensor, q: Tensor, k: Tensor | int) -> Tensor:
    """The scale rho (..., 1) in [1, k] of K-SEQ for k drafts, a number or (...,).

    The drafts are taken in order, each is accepted with probability min(1, p / (rho q)), hence in all
    beta = sum min(q, p / rho) for one and 1 - (1 - beta)^k for k of them. A small rho accepts much, but no more can be
    handed out than p holds where min is attained by p: 1 - (1 - beta)^k <= rho beta. The best rho is where both agree;
    the left side falls with rho and the right side rises, so bisection finds it. Returned is the valid end.
    """
    k = torch.as_tensor(k, dtype=p.dtype, device=p.device)[..., None]
    low, high = torch.ones_like(p[..., :1]), torch.ones_like(p[..., :1]) * k.clamp(min=1)
    for _ in range(32):
        rho = (low + high) / 2
        beta = torch.minimum(q, p / rho).sum(-1, keepdim=True)
        valid = 1 - (1 - beta) ** k <= rho * beta
        low, high = torch.where(valid, low, rho), torch.where(valid, rho, high)
    return high


def k_seq_acceptance(p: Tensor, q: Tensor, k: Tensor | int) -> Tensor:
    """How often (...,) K-SEQ keeps one of k independent drafts: at least 1 - (1 - 1/k)^k of the optimum."""
    beta = torch.minimum(q, p / k_seq_scale(p, q, k)).sum(-1)
    return 1 - (1 - beta) ** k


def recursive_acceptance(p: Tensor, q: Tensor, k: int, distinct: bool = False) -> Tensor:
    """How often (...,) recursive rejection keeps one of k drafts: speculative sampling again and again.

    A refusal leaves the residual of p as the next target; distinct drafts also leave q without the refused token.
    """
    keep = torch.minimum(p, q).sum(-1)
    if k == 1:
        return keep
    after = normalised((p - q).clamp(min=0), p)
    if not distinct:
        return keep + (1 - keep) * recursive_acceptance(after, q, k - 1)
    for x in range(q.shape[-1]):
        refused = (q - p)[..., x].clamp(min=0)  # drawn, and then refused
        left = normalised(q.index_fill(-1, torch.tensor([x], device=q.device), 0), q)
        keep = keep + refused * recursive_acceptance(after, left, k - 1, True)
    return keep
