"""What every autoregressive model over discrete tokens shares, whatever its order: likelihood, loss, checks, a cache.

A subclass says how a canvas of tokens becomes logits. Row j of `logits(tokens, cond)` is the distribution of token j
given the tokens of earlier *levels*; the chain rule does the rest:

    log p(x | c) = sum_j log p(x_j | tokens of a lower level, c)

`levels` (N,) counts the steps in which a sampler writes: tokens of one level are drawn together and independently.
Tokens lie in the order in which they are generated. Where that is not the order of the picture, the model has an
`order` (N,), the place of each token in the picture: `tokens[:, model.order]` on the way in, `tokens[:,
model.order.argsort()]` on the way out.

Shapes: tokens (B, N) long; cond (B,) labels, or (B, P) words of a caption; logits (B, N, V).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.blocks import Block, init_weights
from minimal.nn.cache import KVCache
from minimal.nn.labels import check_labels, drop_labels


class TokenModel(nn.Module):
    """The base of the models in `minimal/ar`.

    A subclass sets `vocab_size`, `length`, `num_classes`, `label_dropout`, `cond_length`, `levels` and `blocks`, and
    defines `logits`.
    """

    cond_length = 1
    label_dropout = 0.0

    def logits(
        self, tokens: Tensor, cond: Tensor | None = None, *, cache: KVCache | None = None, n: int | None = None
    ) -> Tensor:
        """Row j is p(x_j | earlier levels, cond), unnormalised. `tokens` (B, M) is a canvas of whole levels.

        Without a cache the result is (B, M, V). With one, only the rows it lacks are computed: positions cache.length
        to M - 1, or the next `n` of each row. `cond=None` means the null class.
        """
        raise NotImplementedError

    def add_trunk(
        self, dim: int, layers: int, heads: int, kv_heads: int | None, hidden: int | None, dropout: float
    ) -> None:
        """Blocks, a norm and a head, behind the embeddings that are there already; and the first weights of all."""
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, self.vocab_size, bias=False)
        init_weights(self, layers)
        nn.init.zeros_(self.head.weight)  # the first prediction is uniform

    def logprob(self, tokens: Tensor, cond: Tensor | None = None) -> Tensor:
        """Exact log-likelihood (B,) in nats."""
        self.check(tokens, cond)
        return log_probabilities(self.logits(tokens, cond), tokens).sum(-1)

    def loss(self, tokens: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None):
        """Cross-entropy in nats per token, and logs. Drops labels in training mode."""
        self.check(tokens, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        loss = cross_entropy(self.logits(tokens, cond), tokens)
        return loss, {"nats_per_token": loss.detach()}

    def told(self, cond: Tensor | None, tokens: Tensor) -> Tensor:
        """`cond`, or where it is None the null class for every row of `tokens`: (B,)."""
        return torch.full((len(tokens),), self.num_classes, device=tokens.device) if cond is None else cond

    def new_cache(self, batch: int, capacity: int | None = None, kind: type[KVCache] = KVCache) -> KVCache:
        """An empty cache for `batch` rows, by default as long as an example."""
        attention = self.blocks[0].attention
        weight = attention.out.weight
        options = dict(device=weight.device, dtype=weight.dtype)
        if self.cond_length > 1:
            if kind is not KVCache:
                raise ValueError(
                    f"captions need a KVCache; {kind.__name__} has no room in front of the picture. "
                    "Draw with sample_cached, or one caption at a time"
                )
            options["prefix"] = self.cond_length - 1
        return kind(len(self.blocks), batch, attention.kv_heads, capacity or self.length, attention.head_dim, **options)

    def check(self, tokens: Tensor, cond: Tensor | None = None) -> None:
        """Raise a ValueError that says what is wrong with a batch."""
        if tokens.dtype != torch.long or tokens.ndim != 2:
            raise ValueError(f"tokens must be long (B, N), got {tokens.dtype} {tuple(tokens.shape)}")
        if tokens.shape[1] > self.length:
            raise ValueError(
                f"{tokens.shape[1]} tokens are longer than the context of {self.length}; crop, or build a longer model"
            )
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            raise ValueError(
                f"tokens run from {tokens.min()} to {tokens.max()}, the vocabulary from 0 to {self.vocab_size - 1}"
            )
        check_labels(cond, len(tokens), self.num_classes, self.cond_length)


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p (B, M) that `logits` (B, M, V) give to `tokens` (B, M), in float32 or better."""
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over (B, M) of -log softmax(logits)[token], in float32 or better."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
