"""Is this sampler exact? Distributions small enough to write down, and the tests that compare samples with them.

A model over N tokens of V values has V^N sequences. For a tiny model all their probabilities fit in one tensor, the
joint. A sampler is then right if its counts follow the joint, which a chi-square test decides. Row r of the joint is
the r-th sequence in lexicographic order, r = Σ_i x_i · V^(N−1−i).

    total variation = ½ Σ_x |p(x) − q(x)|,      chi-square = Σ_x (count_x − n p(x))² / (n p(x))

Shapes: tokens long (B, N); the joint (V^N,), float64, sums to 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

LIMIT = 2**20  # sequences that an enumeration may have


def all_sequences(vocab: int, length: int) -> Tensor:
    """Every sequence, long (V^N, N), in lexicographic order."""
    if vocab < 1 or length < 1 or vocab**length > LIMIT:
        raise ValueError(f"{vocab}^{length} sequences cannot be enumerated (1 to {LIMIT}); take a smaller model")
    return torch.arange(vocab**length)[:, None] // _powers(vocab, length) % vocab


def sequence_index(tokens: Tensor, vocab: int) -> Tensor:
    """Rows (B,) of the sequences `tokens` (B, N) in the order of `all_sequences`."""
    if tokens.ndim != 2 or tokens.dtype != torch.long:
        raise ValueError(f"tokens are long (B, N), got {tokens.dtype} {tuple(tokens.shape)}")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= vocab):
        raise ValueError(f"tokens lie in 0..{vocab - 1}, got {tokens.min()}..{tokens.max()}")
    return (tokens * _powers(vocab, tokens.shape[1]).to(tokens.device)).sum(1)


def _powers(vocab: int, length: int) -> Tensor:
    return torch.tensor([vocab**i for i in reversed(range(length))])


@torch.no_grad()
def enumerate_joint(model: Callable[[Tensor], Tensor], length: int) -> Tensor:
    """Exact probabilities (V^N,) of all sequences of `length` tokens, in float64.

    model: something with `logits(tokens)`, or that function itself: tokens (B, N) -> logits (B, N, V), where row j
    depends on tokens before j only. With labels or a temperature: `lambda tokens: model.logits(tokens, cond) / 0.8`.
    """
    logits = getattr(model, "logits", model)
    vocab = logits(torch.zeros(1, length, dtype=torch.long)).shape[-1]

    def logprob(tokens: Tensor) -> Tensor:
        return logits(tokens).double().log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))

    joint = torch.cat([logprob(part) for part in all_sequences(vocab, length).split(4096)]).exp()
    if not torch.isclose(joint.sum(), joint.new_ones(())):
        raise ValueError(f"the joint sums to {joint.sum():.6f}, not 1: a row of the logits reads its own token")
    return joint


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the L1 distance of distributions (..., V), (...): how often the best coupling of the two must differ."""
    if p.shape != q.shape:
        raise ValueError(f"two distributions of one shape expected, got {tuple(p.shape)} and {tuple(q.shape)}")
    return (_distribution(p) - _distribution(q)).abs().sum(-1) / 2


def _distribution(p: Tensor) -> Tensor:
    p = p.double()
    if not ((p >= 0).all() and ((p.sum(-1) - 1).abs() < 1e-4).all()):  # NaN fails this as well
        raise ValueError("probabilities must be non-negative and sum to 1 along the last axis; normalise them first")
    return p


class ChiSquare(NamedTuple):
    statistic: float
    p_value: float


def chi_square(counts: Tensor, probabilities: Tensor) -> ChiSquare:
    """Do `counts` (K,) follow `probabilities` (K,)? A small p-value says no.

    The test needs about 5 expected counts per cell, so cells with fewer are merged, rarest first, until each group
    has 5. The grouping looks at the probabilities alone, never at the counts. A count in a cell of probability 0 is a
    proof, not a matter of statistics: its p-value is 0.
    """
    if counts.shape != probabilities.shape or counts.ndim != 1:
        shapes = f"{tuple(counts.shape)} and {tuple(probabilities.shape)}"
        raise ValueError(f"counts and probabilities are (K,), got {shapes}")
    if counts.is_floating_point() or (counts < 0).any() or not counts.sum():
        raise ValueError("counts are non-negative integers, at least one of them positive; they are not frequencies")
    p = _distribution(probabilities)
    if counts[p == 0].any():
        return ChiSquare(float("inf"), 0.0)
    groups = merge_rare_cells(p / p.sum() * counts.sum())
    if groups.max() < 1:
        raise ValueError(f"{counts.sum()} samples leave a single group of 5 expected counts; draw more")
    expected = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add(0, groups, p / p.sum() * counts.sum())
    observed = torch.zeros_like(expected).index_add(0, groups, counts.double())
    return ChiSquare(*map(float, stats.chisquare(observed.numpy(), expected.numpy())))


def merge_rare_cells(expected: Tensor, least: float = 5.0) -> Tensor:
    """Group of each cell, long (K,): groups fill up from the rarest cell on, each to at least `least` counts."""
    groups, group, filled = torch.zeros(len(expected), dtype=torch.long), 0, 0.0
    left = expected.sum().item()
    for cell in expected.argsort().tolist():
        groups[cell] = group
        filled += expected[cell].item()
        if filled >= least and left - filled >= least:  # the last group takes a remainder that is too small to stand
            group, left, filled = group + 1, left - filled, 0.0
    return groups


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Mean of independent `values` (N,) and its confidence interval, by Student's t."""
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"an interval needs at least 2 finite values (N,), got {tuple(values.shape)}")
    if not 0 < level < 1:
        raise ValueError(f"level is a probability between 0 and 1, got {level}")
    values = values.double()
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    reach = error * stats.t.ppf((1 + level) / 2, len(values) - 1)
    return Interval(mean, mean - reach, mean + reach)
