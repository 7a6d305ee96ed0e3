"""What a sampler may be asked to do, so that each is tested on all of it."""

from typing import NamedTuple

import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal.samplers.guidance import Guided


class Task(NamedTuple):
    """`sample_x(model, n, generator=..., **options)`."""

    model: torch.nn.Module
    n: int
    options: dict


@pytest.fixture(params=["plain", "labels", "guided", "schedule", "prompt", "guided prompt", "greedy", "filtered"])
def task(request):
    """In float64, where the width of a batch or a block does not flip a token."""
    n, what = 6, request.param
    model, options = tiny_gpt(), {}
    if what != "plain" and what != "greedy":
        options["cond"] = torch.tensor([0, 1, 2, 3, 0, 1])
    if "guided" in what:
        model = Guided(model, 1.7)
    if what == "schedule":
        model = Guided(model, torch.linspace(0, 3, model.length))
    if "prompt" in what:
        options["prompt"] = torch.randint(model.vocab_size, (n, 5), generator=seeded(9))
    if what == "greedy":
        options["temperature"] = 0
    if what == "filtered":
        options |= {"temperature": 1.3, "top_k": 4, "top_p": 0.9, "min_p": 0.05}
    return Task(model, n, options)
