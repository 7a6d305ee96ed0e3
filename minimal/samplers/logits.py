"""From logits to a token: temperature, top-k, top-p (1904.09751), min-p (2407.01082), inverse CDF.

Order of operations: guidance first (see guidance.py), then temperature, top-k, top-p, min-p, softmax, draw. A token
is drawn as the inverse of its cumulative distribution at a uniform number `u`. That makes sampling a deterministic
function of (logits, u): two samplers that meet on the same noise must produce the same tokens, and tests can say so
exactly.
"""

import torch
from torch import Tensor


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Reshape next-token logits (..., V).

    Tokens that are ruled out get -inf. `temperature=0` keeps the argmax alone.
    """
    check_filters(temperature, top_k, top_p, min_p)
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)  # ties go to the lowest id, on every path
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits.sort(-1, descending=True)
        p = sorted_logits.softmax(-1)
        beyond = p.cumsum(-1) - p > top_p  # the mass *before* a token already exceeds top_p: the first is always kept
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    if min_p is not None:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
    return logits


def check_filters(temperature: float, top_k: int | None, top_p: float | None, min_p: float | None) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; give 0 for greedy decoding or a positive number")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; give at least 1, or None to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; give a number in (0, 1], or None to keep every token")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}; give a number in [0, 1], or None to keep every token")


def probabilities(logits: Tensor, **filters) -> Tensor:
    """Next-token distribution (..., V) after temperature and truncation, in float32 or better."""
    return filter_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), **filters).softmax(-1)


def inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Token at which the cumulative distribution of `p` (..., V) passes `u` (...) in [0, 1).

    `p` need not sum to one.
    """
    cumulative = p.cumsum(-1)
    total = cumulative[..., -1:]
    # u * total may round up to total itself, which no token passes; one step below is inside the last possible token
    target = torch.minimum(u[..., None].to(p.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def draw(logits: Tensor, u: Tensor, **filters) -> Tensor:
    """The token (...) that noise `u` (...) selects from `logits` (..., V) under `filters`; greedy needs no noise."""
    if filters.get("temperature") == 0:
        return logits.argmax(-1)
    return inverse_cdf(probabilities(logits, **filters), u)


def sample_logits(logits: Tensor, *, generator: torch.Generator | None = None, **filters) -> Tensor:
    """Draw one token (...) for every distribution in `logits` (..., V)."""
    u = torch.rand(logits.shape[:-1], generator=generator, device=generator.device if generator else logits.device)
    return draw(logits, u.to(logits.device), **filters)


def uniform_noise(
    n: int,
    length: int,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
    numbers: int | None = None,
) -> Tensor:
    """One number in [0, 1) per image and position, (n, length), or several, (n, length, numbers).

    Drawn up front and image by image: sample i is then the same whatever the batch size and whatever sampler uses it.
    (A generator on a CPU fills rows in order. One on a GPU promises only that equal calls give equal numbers.)
    """
    shape = (n, length) if numbers is None else (n, length, numbers)
    return torch.rand(shape, generator=generator, device=generator.device if generator else "cpu").to(device)
