"""Models small enough to enumerate or to run twice: a Markov table, tiny transformers, a stack of two blocks."""

import numpy as np
import torch
from torch import nn

from minimal.ar.raster import RasterGPT
from minimal.nn.blocks import Block
from minimal.nn.cache import KVCache
from minimal.nn.masks import not_after
from minimal.nn.rope import rotary
from minimal.nn.token_model import TokenModel
from minimal.statistics import sequence_index


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def close(dtype):
    """Tolerances for two ways to compute one thing."""
    return {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}


def wild(model, seed, std=0.3):
    """Give every matrix large random weights, so that predictions depend on the context and no two are alike."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std, generator=seeded(seed))
            seed += 1
    return model.eval().requires_grad_(False)


def learn_by_heart(model, steps=60):
    """Train on one random sequence per class; return the last loss."""
    tokens = torch.randint(model.vocab_size, (4, model.length), generator=seeded(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _ = model.loss(tokens, torch.arange(4))
        loss.backward()
        optimizer.step()
    return loss.item()


def tiny_gpt(seed=0, dtype=torch.float64, **changes):
    """A RasterGPT of two narrow layers with two query heads on one key-value head, random and in eval mode."""
    sizes = dict(vocab_size=5, length=12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2, kv_heads=1, hidden=16)
    return wild(RasterGPT(**(sizes | changes)), 100 * seed).to(dtype)


class Stack(nn.Module):
    """Two blocks on vectors x (B, N, 16) at positions 0 .. N - 1, under any mask, with any cache."""

    def __init__(self, kv_heads=1, seed=0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(16, 4, kv_heads, hidden=16) for _ in range(2))
        wild(self, seed)

    def forward(self, x, mask=not_after, levels=None, cache=None):
        n = x.shape[1]
        query = torch.arange(n) if cache is None else cache.positions(n)
        key = query if cache is None else cache.key_positions(n)
        rotation, allowed = rotary(query[..., None], head_dim=4), mask(query, key, levels)
        if query.ndim == 2:
            rotation, allowed = rotation[:, None], allowed[:, None]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, allowed, cache, layer)
        if cache is not None:
            cache.advance(n)
        return x

    def new_cache(self, batch, capacity, kind=KVCache, **options):
        attention = self.blocks[0].attention
        return kind(2, batch, attention.kv_heads, capacity, 4, dtype=attention.out.weight.dtype, **options)


class Markov(TokenModel):
    """A chain with the face of a token model: logits (C + 1, V + 1, V) by class, then by what stands before.

    Row 0 starts the chain, row 1 + v follows token v; the last class is the null class. Caches only count positions.
    """

    def __init__(self, table, length):
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)
        self.vocab_size, self.length, self.num_classes = table.shape[-1], length, len(table) - 1
        self.eval()

    def logits(self, tokens, cond=None, *, cache=None, n=None):
        before = torch.cat((torch.zeros_like(tokens[:, :1]), tokens + 1), dim=1)
        if cache is None:
            before = before[:, :-1]
        else:
            n = tokens.shape[1] - cache.length if n is None else n
            before = before.gather(1, cache.positions(n).expand(len(tokens), n))
            cache.advance(n)
        label = torch.full_like(before[:, :1], self.num_classes) if cond is None else cond[:, None]
        return self.table[label, before]

    def tree_logits(self, inputs, depth, ancestors, cache):
        return self.table[self.num_classes, inputs + 1]  # without labels: the parent is not asked, the node decides

    def new_cache(self, batch, capacity=None, kind=KVCache):
        return kind(1, batch, 1, capacity or self.length, 1)


def sequence_counts(sample, model, n, seed):
    """How often each sequence of `model` came (V^N,) in five samples, each `sample(n / 5, generator=)`; and these."""
    generator = seeded(seed)
    samples = [sample(n // 5, generator=generator) for _ in range(5)]
    tokens = torch.cat([each.tokens for each in samples])
    return sequence_index(tokens, model.vocab_size).bincount(minlength=model.vocab_size**model.length), samples


def markov_bench(seed, vocab_size=4, length=5, classes=0, dtype=torch.float32):
    """Rows from Dirichlet(0.6), mixed with 3 % of uniform: peaked, but every sequence is possible."""
    rows = np.random.default_rng(seed).dirichlet([0.6] * vocab_size, size=(classes + 1, vocab_size + 1))
    return Markov(torch.from_numpy(0.97 * rows + 0.03 / vocab_size).log().to(dtype), length)


def counting_chain(vocab_size, length):
    """x_i = x_{i-1} + 1 modulo V, from 0: nothing can be known before its predecessor."""
    follows = torch.cat((torch.zeros(1, dtype=torch.long), (torch.arange(vocab_size) + 1) % vocab_size))
    return Markov(40.0 * nn.functional.one_hot(follows, vocab_size)[None].double(), length)
