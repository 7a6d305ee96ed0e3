"""The model without context: one histogram per position, with or without the label. Every other model must beat it.

    p(x_j = v | c) = (count of v at position j in class c + a) / (count of class c + a V)

What a transformer gains over this line is what it learned from the *other* tokens. A target that hardly beats it is
easy to draft for and converges at once under Jacobi iteration, and a speed-up on it means nothing.
"""

import torch
from torch import Tensor, nn


class Histogram(nn.Module):
    """Counted from `tokens` (M, N) and, if given, `labels` (M,).

    `pseudo_count` a smooths cells that were never seen.
    """

    def __init__(
        self,
        tokens: Tensor,
        vocab_size: int,
        labels: Tensor | None = None,
        num_classes: int = 0,
        pseudo_count: float = 0.1,
    ):
        super().__init__()
        self.vocab_size, self.length, self.num_classes = vocab_size, tokens.shape[1], num_classes
        counts = torch.zeros(num_classes + 1, self.length, vocab_size)
        position, one = torch.arange(self.length).expand_as(tokens), torch.ones(tokens.shape)
        if labels is not None:
            counts.index_put_((labels[:, None].expand_as(tokens), position, tokens), one, accumulate=True)
        null = torch.full_like(tokens, num_classes)  # the null class counts everything
        tables = counts.index_put_((null, position, tokens), one, accumulate=True) + pseudo_count
        self.table = nn.Parameter(tables.log() - tables.sum(-1, keepdim=True).log(), requires_grad=False)

    def logits(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, M, V), whatever the tokens are."""
        cond = torch.full((len(tokens),), len(self.table) - 1) if cond is None else cond
        return self.table[cond, : tokens.shape[1]]

    def logprob(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Log-likelihood (B,) in nats."""
        return self.logits(tokens, cond).gather(-1, tokens[..., None]).squeeze(-1).sum(-1)
