"""`minimal bench batching`: requests of 16 to 256 characters in eight rows, static against continuous.

All requests wait at time 0. The model has the size of `pydoc_ar`; weights are random, since the time does not depend on
what they say. Beside each measured ratio stands that of the simulation with measured step costs, and that of theory.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from minimal.ar.raster import RasterGPT
from minimal.nn.paged_cache import PagedKVCache
from minimal.samplers.batching import sample_batched
from minimal.samplers.fast import FastRaster
from minimal.samplers.queueing import SimulatedEngine, saturated_gain, step_costs, workload
from minimal.samplers.scheduler import CONTINUOUS, SHRINKING, STATIC, Request, serve

SLOTS, REQUESTS, LONGEST = 8, 64, 256
VOCAB, LENGTH = 96, 288
Race = Callable[..., dict[str, float]]


def batching(race: Race, device: str = "cpu", rounds: int = 3) -> None:
    """Print tokens per second of each policy; `race` is that of bench.py."""
    model, requests = server(device)
    options = {
        "one by one": dict(slots=1),
        "static": dict(policy=STATIC),
        "static, padding left out": dict(policy=SHRINKING),
        "continuous": dict(policy=CONTINUOUS),
        "continuous, paged cache": dict(policy=CONTINUOUS, kind=PagedKVCache),
    }
    served = sample_batched(model, requests, slots=SLOTS, policy=SHRINKING)  # its steps have all widths
    fixed, per_row = step_costs(served)
    prefill = served.spent["prefill"] / len(requests)
    paper = SimulatedEngine(lambda rows: fixed + per_row * rows, lambda length: prefill)
    simulated = {
        name: serve(requests, paper, each.get("slots", SLOTS), each.get("policy", CONTINUOUS)).throughput
        for name, each in options.items()
        if "kind" not in each
    }
    seconds = race(
        {name: partial(sample_batched, model, requests, **{"slots": SLOTS} | each) for name, each in options.items()},
        rounds,
        device,
    )
    lengths = torch.tensor([request.new_tokens for request in requests])
    tokens = lengths.sum().item()
    print(f"\n{f'batching, {len(requests)} requests, {SLOTS} rows':32s} tokens/s   x static   simulated")
    for name, value in seconds.items():
        predicted = f"{simulated[name] / simulated['static']:9.2f}" if name in simulated else f"{'-':>9s}"
        print(f"{name:32s} {tokens / value:8.0f}   {seconds['static'] / value:8.2f}   {predicted}")
    print(
        f"in theory, with requests without end: {saturated_gain(lengths, SLOTS):.2f} x static; "
        f"a step of 8 rows takes {(fixed + 8 * per_row) / (fixed + per_row):.2f} times as long as one of 1"
    )


@torch.no_grad()
def server(device: str = "cpu") -> tuple[nn.Module, list[Request]]:
    torch.manual_seed(0)
    model = RasterGPT(VOCAB, LENGTH, dim=96, layers=8, heads=4).eval().to(device)
    nn.init.normal_(model.head.weight, std=0.2)
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, LONGEST + 1, (REQUESTS,), generator=source)
    return FastRaster(model), workload(lengths, prompt=32, generator=source)
