"""Lookahead decoding: Jacobi iteration as a source of phrases, and a judge beside it in the same pass (2402.02057).

Jacobi iteration often finds a phrase that is right but stands in the wrong place, and loses it there. So keep it. Each
pass computes a tree of nodes that hangs on the tokens which are already final:

    window       W columns of N - 1 guesses, the results of the last N - 1 passes; node (r, c) stands r + c places ahead
                 and sees row 0 up to its column, then its own column down to itself. What follows the last row is the
                 new iterate, which makes each column a phrase of N tokens. It goes into a pool under its first token.
    candidates   up to g phrases from the pool that begin with the last final token, each a chain of N - 1 guesses.

With the noise fixed, as in jacobi.py, a guess is right if and only if it is what the model draws at its place. The
longest right chain and the token drawn behind it are final: at least 1 and at most N tokens a pass, those of
`sample_cached` at every temperature. No second model, but (W + g) (N - 1) positions a pass in place of one.
"""

import functools

import torch
from torch import Tensor, nn

from minimal.nn.cache import ragged
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.trace import Sample, Trace


class Pool:
    """The latest `size` different phrases of each first token, latest first."""

    def __init__(self, size: int):
        self.size, self.phrases = size, {}

    def add(self, phrase: list[int]) -> None:
        first, *rest = phrase
        others = [known for known in self.behind(first) if known != rest]
        self.phrases[first] = [rest, *others][: self.size]

    def behind(self, token: int) -> list[list[int]]:
        """What stood behind `token`."""
        return self.phrases.get(token, [])


@functools.cache
def tree(W: int, N: int, g: int) -> tuple[Tensor, Tensor]:
    """Depth (m,) and ancestors (m, m) of the window, row by row, and of g chains behind node 0, the last final one."""
    row, column = torch.arange(N - 1).repeat_interleave(W), torch.arange(W).repeat(N - 1)
    first_row = (row == 0) & (column <= column[:, None])
    own_column = (column == column[:, None]) & (row <= row[:, None])
    chain = torch.ones(N - 1, N - 1, dtype=torch.bool).tril()
    ancestors = torch.block_diag(first_row | own_column, *[chain] * g)
    ancestors[:, 0] = True
    return torch.cat((row + column, torch.arange(1, N).repeat(g))), ancestors


def longest(candidates: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidate (B,) of (B, g, N - 1) goes right furthest, and how far (B,).

    `drawn` (B, g, N): what the model draws in place of each guess, and behind the last one.
    """
    right = (candidates == drawn[..., :-1]).cumprod(-1).sum(-1)
    return right.argmax(-1), right.amax(-1)


@torch.inference_mode()
def sample_lookahead(
    model: nn.Module,
    n: int,
    *,
    W: int = 5,
    N: int = 4,
    g: int = 5,
    cond: Tensor | None = None,
    prompt: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Sample:
    """The samples of `sample_cached` with the same generator: a window of W (N - 1) guesses, g candidates a pass.

    `model` needs `tree_logits`. Guesses are zeros at first. `trace.drafted` counts the tokens that candidates could
    have brought, `trace.accepted` those that they did.
    """
    if W < 1 or N < 2 or g < 1 or W + N - 2 > model.length:
        raise ValueError(
            f"W = {W}, N = {N}, g = {g}; give a window of W >= 1 columns, phrases of N >= 2 tokens, g >= 1 candidates, "
            f"and let the window reach at most {model.length} tokens ahead, W + N - 2"
        )
    canvas, first = new_canvas(model, n, cond, prompt, spare=W + N, **filters)
    end, M, device = model.length, N - 1, canvas.device
    noise = torch.cat((uniform_noise(n, end, generator, device), torch.zeros(n, W + N, device=device)), dim=1)
    cache = model.new_cache(n, end + (W + g) * M, ragged(n))
    image, ahead = torch.arange(n, device=device)[:, None], torch.arange(N, device=device)
    iterates = canvas[:, None].repeat(1, M, 1)  # (n, M, places): the last M passes, by place
    pools = [Pool(g) for _ in range(n)]
    trace = Trace()
    if first < end:  # the first token as in plain decoding: the tree needs one to hang on
        logits = model.logits(canvas[:, : first + 1], cond, cache=cache, n=first + 1)
        trace.count("target", n, first + 1)
        canvas[:, first] = draw(logits[:, -1], noise[:, first], **filters)
    length = torch.full((n,), min(first + 1, end), device=device)
    while (active := length < end).any():
        last = canvas.gather(1, length[:, None] - 1)
        found = [pool.behind(token) for pool, token in zip(pools, last.flatten().tolist())]
        most = max(1, *map(len, found))  # rows with fewer candidates try zeros, which does no harm
        candidates = torch.tensor([phrases + [[0] * M] * (most - len(phrases)) for phrases in found], device=device)
        depth, ancestors = (part.to(device) for part in tree(W, N, most))
        window = iterates[image, torch.arange(M * W, device=device) // W, length[:, None] - 1 + depth[: M * W]]
        window[:, :1] = last
        logits = model.tree_logits(torch.cat((window, candidates.flatten(1)), dim=1), depth, ancestors, cache)
        trace.count("target", int(active.sum()), len(depth))
        drawn = draw(logits, noise.gather(1, length[:, None] + depth), **filters)  # what follows each node

        new = drawn[:, (M - 1) * W : M * W]
        for pool, phrases in zip(pools, torch.cat((window, new), dim=1).view(n, N, W).mT.tolist()):
            for phrase in phrases:
                pool.add(phrase)
        places = length[:, None] - 1 + depth[(M - 1) * W : M * W] + 1
        newest = iterates[:, -1:].scatter(2, places[:, None], new[:, None])
        iterates = torch.cat((iterates[:, 1:], newest), dim=1)

        behind = drawn[:, M * W :].view(n, most, M)
        drawn = torch.cat((drawn[:, :1, None].expand(-1, most, -1), behind), dim=2)
        best, right = longest(candidates, drawn)
        canvas.scatter_(1, length[:, None] + ahead, drawn[image[:, 0], best])
        step = (right + 1).minimum(end - length)
        trace.drafted += sum(
            min(M, left - 1) for left, phrases in zip((end - length).tolist(), found) if left and phrases
        )
        trace.accepted += int((step - 1).clamp(min=0).sum())
        length = length + step
        branch = M * W + best[:, None] * M + ahead[:M]
        cache.keep(torch.cat((torch.zeros_like(last), branch), dim=1))
        cache.truncate(length)
    return finished(canvas, end, trace)
