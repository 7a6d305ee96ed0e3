"""`minimal bench speculative`: guess and check against our own cached decoding, a text at a time.

The pair is a real one, since acceptance cannot be had from random weights: `pydoc_ar` of eight layers and `pydoc_draft`
of one continue texts of the validation split. A round of k guesses waits for k passes of the draft and one pass of the
target over k + 1 positions. With their seconds in passes of the target over one position, c and c_v(k), and E tokens
per round, speculation should be faster by

    E / (k c + c_v(k))

where the networks are all that takes time. What it is in truth stands beside it.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from minimal import checkpoints
from minimal.data import load
from minimal.nn.token_model import TokenModel
from minimal.recipes.text import windows
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.speculative import sample_speculative

GUESSES = (2, 4, 6, 8, 12)
TEXTS, PROMPT = 6, 32
Race = Callable[..., dict[str, float]]


def speculative(race: Race, device: str = "cpu", rounds: int = 3) -> None:
    """Print, for the plain modules and the fast step, greedy and at temperature 1, each k; `race` is bench.py's."""
    pair = tuple(checkpoints.load(name, device) for name in ("pydoc_ar", "pydoc_draft"))
    prompts = windows(load("pydoc", "validation").tokens)
    prompts = prompts[:: len(prompts) // TEXTS][:TEXTS, :PROMPT].to(device)
    for title, (target, draft) in (("plain modules", pair), ("fast step", tuple(map(FastRaster, pair)))):
        cost = costs(race, target, draft, rounds, device)
        for temperature in (0, 1):
            options = dict(prompts=prompts, temperature=temperature)
            cases = {"cached": partial(decode, sample_cached, target, **options)}
            for k in GUESSES:
                cases[f"k = {k}"] = partial(decode, sample_speculative, target, draft, k=k, **options)
            seconds = race(cases, rounds, device)
            report(f"{title}, temperature {temperature}", seconds, cases, cost)


def decode(sampler: Callable, *networks: nn.Module, prompts: Tensor, **options) -> Counter:
    """Continue each prompt (1, P) of `prompts` (T, P) alone, and count what it took."""
    counts = Counter()
    for i, prompt in enumerate(prompts.split(1)):
        sample = sampler(*networks, 1, prompt=prompt, generator=torch.Generator().manual_seed(i), **options)
        trace = sample.trace
        counts["tokens"] += sample.tokens.shape[1] - prompt.shape[1]
        counts.update(passes=trace.forwards["target"], drafted=trace.drafted, accepted=trace.accepted)
    return counts


def costs(race: Race, target: TokenModel, draft: TokenModel, rounds: int, device: str) -> dict[int, tuple]:
    """For each k: c, a pass of the draft, and c_v(k), a pass of the target over k + 1 positions, half way through.

    In passes of the target over one position. The first guess of a round runs the draft over two positions.
    """
    start = target.length // 2
    canvas = torch.zeros(1, target.length, dtype=torch.long, device=device)
    caches = {net: net.new_cache(1) for net in (target, draft)}

    @torch.inference_mode()
    def passes(net: TokenModel, *widths: int) -> None:
        for _ in range(20):
            caches[net].truncate(start)
            for n in widths:
                net.logits(canvas, cache=caches[net], n=n)

    with torch.inference_mode():
        for net, cache in caches.items():
            net.logits(canvas, cache=cache, n=start)
    cases = {"one": partial(passes, target, 1)}
    for k in GUESSES:
        cases |= {("draft", k): partial(passes, draft, 2, *[1] * (k - 1)), ("check", k): partial(passes, target, k + 1)}
    seconds = race(cases, 3 * rounds, device)
    return {k: (seconds["draft", k] / k / seconds["one"], seconds["check", k] / seconds["one"]) for k in GUESSES}


def report(title: str, seconds: dict[str, float], cases: dict[str, Callable[[], Counter]], cost: dict) -> None:
    print(f"\n{title:28s} tokens/s   x cached   predicted   tokens per pass   acceptance      c   c_v(k)")
    for name, value in seconds.items():
        counts = cases[name]()
        line = f"{name:28s} {counts['tokens'] / value:8.0f}   {seconds['cached'] / value:8.2f}"
        if counts["drafted"]:
            k = int(name.split()[-1])
            (c, check), per_pass = cost[k], counts["tokens"] / counts["passes"]
            line += f"   {per_pass / (k * c + check):9.2f}   {per_pass:15.2f}"
            line += f"   {counts['accepted'] / counts['drafted']:10.3f}   {c:.2f}   {check:6.2f}"
        print(line)
