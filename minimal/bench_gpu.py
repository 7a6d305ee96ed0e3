"""`minimal bench gpu`: a decode step, eager and as a captured graph, against what memory allows (id `cuda-graphs`).

Cases, for batches of 1 and 16, of a random model whose greedy tokens hang on no rounding:

    dynamic cache        the ordinary loop: shapes grow, the host launches every kernel
    static cache         the step of cuda_graph.py, launched by the host
    graph                the same step, captured once and replayed
    fast                 the same for `FastRaster`: fewer operators
    bfloat16             the same with half the bytes

The roofline is the time in which the memory can deliver the weights and, on average over the sample, the filled part
of the cache, at the copy bandwidth measured here. Every case must draw the tokens of the first one; bfloat16 may differ
in near-ties, which are counted. On a CPU there are no graphs, and the table says so.
"""

import copy
from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from minimal.ar.raster import RasterGPT
from minimal.roofline import bytes_per_step, copy_bandwidth
from minimal.samplers.cached import sample_cached
from minimal.samplers.cuda_graph import StaticDecoder
from minimal.samplers.fast import FastRaster

# 8.9 M parameters for a CPU; for a GPU 86 M, since a smaller model would live in its cache and not in its memory
SIZE = {"cpu": dict(dim=256, layers=8, heads=8, hidden=1024), "cuda": dict(dim=768, layers=12, heads=12, hidden=2048)}
VOCAB, TOKENS = 1024, 256
Race = Callable[..., dict[str, float]]


def gpu(race: Race, device: str = "cpu", rounds: int = 5) -> None:
    """Print tokens per second and the share of the roofline; `race` is that of bench.py."""
    kind = torch.device(device).type
    model = random_model(kind).to(device)
    bandwidth = copy_bandwidth(device)
    name = torch.cuda.get_device_name(device) if kind == "cuda" else "CPU, one thread"
    weights = bytes_per_step(model).weights / 1e6
    print(f"\n{name}: {bandwidth / 1e9:.1f} GB/s copied; {weights:.0f} MB of weights in float32")
    if kind != "cuda":
        print("no graph rows: a CUDA graph is a list of GPU kernels, and this device runs none")
    for batch in (1, 16):
        cases = jobs(model, batch)
        for line in check(model, cases):
            print(f"batch {batch}, {line}")
        seconds = race({title: draw for title, (_, draw) in cases.items()}, rounds, device)
        base = seconds["dynamic cache"]
        print(f"\n{f'{kind}, batch {batch}':32s} tokens/s   x dynamic cache   of the roofline")
        for title, (net, _) in cases.items():
            share = least_seconds(net, batch, bandwidth) / seconds[title]
            print(f"{title:32s} {batch * TOKENS / seconds[title]:8.0f}   {base / seconds[title]:15.2f}   {share:15.0%}")


def random_model(kind: str) -> RasterGPT:
    """Logits far apart, so that a greedy token does not hang on the last bit."""
    torch.manual_seed(0)
    model = RasterGPT(VOCAB, TOKENS, **SIZE["cuda" if kind == "cuda" else "cpu"]).eval()
    nn.init.normal_(model.head.weight, std=0.2)
    return model


def jobs(model: RasterGPT, batch: int) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each case: the model whose bytes it reads, and a call that returns greedy tokens (batch, N)."""
    fast, half = FastRaster(model), copy.deepcopy(model).bfloat16()
    cases = {"dynamic cache": (model, lambda: sample_cached(model, batch, temperature=0).tokens)}
    for title, net in (("static cache", model), ("static cache, fast", fast), ("static cache, bfloat16", half)):
        decoder = StaticDecoder(net, batch, conditional=False, temperature=0)
        cases[title] = net, partial(tokens_of, decoder, None)
        if decoder.graph:
            cases[title.replace("static cache", "graph")] = net, partial(tokens_of, decoder, decoder.graph)
    return cases


def tokens_of(decoder: StaticDecoder, graph: torch.cuda.CUDAGraph | None) -> Tensor:
    decoder.graph = graph
    return decoder.sample().tokens


def check(model: RasterGPT, cases: dict[str, tuple[nn.Module, Callable[[], Tensor]]], gap: float = 1e-4) -> list[str]:
    """One line for each case. RuntimeError if a float32 case draws a token that is no near-tie of the model's choice.

    Two greedy decoders part for good behind a near-tie, so not strings are compared but choices, each after its own
    past.
    """
    lines = []
    for title, (net, draw) in cases.items():
        lack = lacks(model, draw())
        half = next(net.parameters()).dtype == torch.bfloat16
        if not half and (lack > gap).any():
            raise RuntimeError(f"{title}: {int((lack > gap).sum())} tokens are not the model's greedy choice")
        lines.append(f"{title}: {int((lack > 0).sum())} of {lack.numel()} choices differ, by at most {lack.max():.2g}")
    return lines


@torch.inference_mode()
def lacks(model: RasterGPT, tokens: Tensor) -> Tensor:
    """How far (B, N) the logit of each token stays below the largest one, by `model`; 0 for its greedy choice."""
    logits = model.logits(tokens).float()
    return logits.amax(-1) - logits.gather(-1, tokens[..., None]).squeeze(-1)


def least_seconds(model: nn.Module, batch: int, bandwidth: float) -> float:
    """The time to read what a sample of `TOKENS` steps must read."""
    return TOKENS * mean(bytes_per_step(model, batch, t).total for t in range(1, TOKENS + 1)) / bandwidth
