"""Jacobi decoding of several blocks at once, and of what it threw away: the decoder of Jacobi Forcing (2512.14681).

Unknowns are solved in blocks of n, and up to K blocks are in flight. The first is read behind final tokens only. When a
share r of the newest block has come to rest, the next one enters and is iterated behind guesses that may still change;
nothing of it is final before all that stands in front of it is. What a pass wrote behind its first change is refused,
but is often right one or two places further on. A pool keeps it as phrases under their first token (rejection
recycling), and each pass also judges up to P phrases that begin with the last final token:

    nodes of a pass       the unknowns, a chain of up to K n; and P chains of g, all behind the last final token
    a guess is right      if and only if it is what the model draws at its place, with the noise fixed (see jacobi.py)
    final                 the longest right chain, and the token drawn behind it

So K, r and P decide how long it takes, never what comes out: the samples of `sample_cached`. With K = 1 and P = 0 this
is Jacobi decoding, block by block.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.jacobi import settled
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.lookahead import Pool, longest
from minimal.samplers.trace import Sample, Trace


@functools.cache
def tree(width: int, P: int, g: int) -> tuple[Tensor, Tensor]:
    """Depth (m,) and ancestors (m, m) of a chain of `width` nodes and P chains of g that hang on its first."""
    chains = [torch.ones(size, size, dtype=torch.bool).tril() for size in (width, *[g] * P)]
    ancestors = torch.block_diag(*chains)
    ancestors[:, 0] = True
    return torch.cat((torch.arange(width), torch.arange(1, g + 1).repeat(P))), ancestors


def branch(width: int, g: int, better: Tensor, best: Tensor) -> Tensor:
    """The nodes whose keys stay, in order of depth: the unknowns, or where that is `better` (B,) phrase `best` (B,)."""
    unknowns = F.pad(torch.arange(width, device=best.device), (0, max(0, g + 1 - width)))
    phrase = width + best[:, None] * g + torch.arange(g, device=best.device)
    nodes = unknowns.repeat(len(best), 1)
    nodes[:, 1 : g + 1] = torch.where(better[:, None], phrase, nodes[:, 1 : g + 1])
    return nodes


def recycle(pool: Pool, refused: list[int], g: int) -> None:
    """Put every stretch of g + 1 refused tokens into the pool; zeros are the guesses behind the last."""
    for i in range(len(refused) - 1):
        pool.add((refused[i : i + g + 1] + [0] * g)[: g + 1])


@torch.inference_mode()
def sample_multi_block(
    model: nn.Module,
    n: int,
    *,
    block: int = 16,
    K: int = 2,
    r: float = 0.85,
    P: int = 4,
    g: int = 4,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """The samples of `sample_cached` with the same generator.

    Up to `K` blocks of `block` tokens are in flight, a further one enters when a share `r` of the newest is at rest; up
    to `P` phrases of `g` guesses are judged in each pass. With `P` above 0 the model needs `tree_logits`.

    `trace.accepted` counts the tokens that were final beyond the first of their pass.
    """
    check_flight(model, block, K, r, P, g)
    canvas, first = new_canvas(model, n, cond, prompt, spare=K * block + g + 1, **filters)
    N, device = model.length, canvas.device
    noise = F.pad(uniform_noise(n, N, generator, device), (0, canvas.shape[1] - N))
    cache = model.new_cache(n, N + K * block + P * g, ragged(n))
    row, along = torch.arange(n, device=device), torch.arange(g + 1, device=device)
    place = torch.arange(canvas.shape[1], device=device)
    length = torch.full((n,), first, device=device)  # tokens that are final
    edge = length + block  # where the newest block ends
    lacks = first  # rows before the next position that the cache has not seen
    trace, pools = Trace(), [Pool(P) for _ in range(n)]
    while (active := length < N).any():
        width = int((edge.clamp(max=N) - length)[active].max())
        window = length[:, None] + torch.arange(width, device=device)
        before = canvas.clone()
        last = canvas.gather(1, (length - 1).clamp(min=0)[:, None])  # it exists when there are phrases
        phrases = [pool.behind(token) for pool, token in zip(pools, last[:, 0].tolist())]
        many = 0 if lacks else max(map(len, phrases))
        if many:
            candidates = torch.tensor([f + [[0] * g] * (many - len(f)) for f in phrases], device=device)
            depth, ancestors = (x.to(device) for x in tree(width, many, g))
            inputs = torch.cat((last, canvas.gather(1, window)[:, :-1], candidates.flatten(1)), dim=1)
            logits = model.tree_logits(inputs, depth, ancestors, cache)
        else:  # one chain: an ordinary pass
            depth = torch.arange(width, device=device)
            logits = model.logits(canvas, cond, cache=cache, n=lacks + width)[:, -width:]
        trace.count("target", int(active.sum()), lacks + len(depth))
        drawn = draw(logits, noise.gather(1, length[:, None] + depth), **filters)  # what follows each node

        old = canvas.gather(1, window)
        new = torch.where(window < edge[:, None], drawn[:, :width], old)
        canvas.scatter_(1, window, new)
        step = settled(old, new).minimum(edge - length)
        refused = [tokens[s:e] for tokens, s, e in zip(new.tolist(), step.tolist(), (edge - length).tolist())]
        if many:
            says = torch.cat((drawn[:, :1, None].expand(n, many, 1), drawn[:, width:].view(n, many, g)), dim=2)
            best, right = longest(candidates, says)
            better = right + 1 > step
            ahead = length[:, None] + along
            taken = better[:, None] & (along <= right[:, None])
            canvas.scatter_(1, ahead, torch.where(taken, says[row, best], canvas.gather(1, ahead)))
            cache.keep(branch(width, g, better, best))
            step = torch.where(better, right + 1, step)
        for pool, tokens in zip(pools, refused):
            recycle(pool, tokens, g)

        step = step.minimum(N - length)
        trace.accepted += int((step - 1).clamp(min=0).sum())
        length = length + step
        cache.truncate(length)
        lacks = 0
        at_rest = (canvas == before) | (place < length[:, None])
        newest = at_rest.gather(1, edge[:, None] - block + torch.arange(block, device=device)).cumprod(-1).sum(-1)
        edge = edge.maximum(first + ((length - first) // block + 1) * block)  # a block for the next unknown
        room = edge - length <= (K - 1) * block
        edge = edge + block * (room & (newest >= r * block))
    return finished(canvas, N, trace)


def check_flight(model: nn.Module, block: int, K: int, r: float, P: int, g: int) -> None:
    if not 1 <= block <= model.length:
        raise ValueError(f"block is {block}; solve for between 1 and {model.length} tokens at a time")
    if K < 1:
        raise ValueError(f"K is {K}; at least one block must be in flight")
    if not 0 <= r <= 1:
        raise ValueError(f"r is {r}; give the share of a block, in [0, 1], that is at rest when the next one enters")
    if P < 0 or g < 1:
        raise ValueError(f"P = {P}, g = {g}; give P >= 0 phrases a pass (0: no recycling) and g >= 1 guesses in each")
