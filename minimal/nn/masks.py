"""Who may attend to whom: every attention mask of the course from a handful of predicates.

Each token has a *position* in its sequence and an integer *level*: its step in the order in which a model generates
(raster: the position itself; next-scale: the index of the scale; masked: one level for all). A mask is a predicate of
(query, key) that answers "may this query see this key?". Predicates combine with `&`, `|` and `~`:

    raster            not_after                          levels = positions
    next scale        not_after                          levels = index of the scale
    streaming         not_after & (window(64) | sink(4))
    prefix LM         not_after | prefix(16)
    tree of drafts    ancestor(matrix)

Masks are boolean, True where attention is allowed, shaped (..., queries, keys) as scaled_dot_product_attention wants.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where tokens stand: `level` and `position`, long tensors that broadcast against each other."""

    level: Tensor
    position: Tensor


@dataclass(frozen=True)
class Mask:
    """A predicate `rule(query, key) -> bool`, evaluated on the places of queries and keys."""

    rule: Callable[[Place, Place], Tensor]

    def __call__(self, query: Tensor, key: Tensor, levels: Tensor | None = None) -> Tensor:
        """Mask (..., Nq, Nk) for positions `query` (..., Nq) and `key` (..., Nk).

        `levels` (N,) defaults to the positions.
        """
        query, key = query[..., :, None], key[..., None, :]
        level = (lambda position: position) if levels is None else (lambda position: levels[position])
        allowed = self.rule(Place(level(query), query), Place(level(key), key))
        return allowed.expand(torch.broadcast_shapes(query.shape, key.shape))

    def square(self, levels: Tensor) -> Tensor:
        """The whole mask (N, N) of a sequence with the given `levels` (N,)."""
        positions = torch.arange(len(levels), device=levels.device)
        return self(positions, positions, levels)

    def __and__(self, other: "Mask") -> "Mask":
        return Mask(lambda q, k: self.rule(q, k) & other.rule(q, k))

    def __or__(self, other: "Mask") -> "Mask":
        return Mask(lambda q, k: self.rule(q, k) | other.rule(q, k))

    def __invert__(self) -> "Mask":
        return Mask(lambda q, k: ~self.rule(q, k))


not_after = Mask(lambda q, k: k.level <= q.level)
before = Mask(lambda q, k: k.level < q.level)
same = Mask(lambda q, k: k.level == q.level)


def window(n: int) -> Mask:
    """Keys fewer than `n` positions back (the query itself counts as zero back)."""
    return Mask(lambda q, k: q.position - k.position < n)


def prefix(n: int) -> Mask:
    """The first `n` keys, for everybody."""
    return Mask(lambda q, k: k.position < n)


sink = prefix  # the same predicate; as an attention sink (2309.17453) it is combined with `&` a causal mask


def ancestor(matrix: Tensor) -> Mask:
    """Key j for query i where `matrix[i, j]` (N, N, bool): the branches of a tree do not see each other."""
    if matrix.dtype != torch.bool or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"ancestor needs a square boolean matrix, got {matrix.dtype} {tuple(matrix.shape)}")
    return Mask(lambda q, k: matrix[q.position, k.position])
