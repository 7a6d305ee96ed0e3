"""Batching changes when a token comes, never which: requests are served as if alone, once each, and nobody is lost."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import seeded, tiny_gpt, wild

from minimal import checkpoints
from minimal.ar.raster import RasterGPT
from minimal.nn.cache import StaticKVCache
from minimal.nn.paged_cache import PagedKVCache
from minimal.samplers.batching import NetworkEngine, sample_batched
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import uniform_noise
from minimal.samplers.scheduler import CONTINUOUS, SHRINKING, STATIC, Request, serve

POLICIES = {"static": STATIC, "shrinking": SHRINKING, "continuous": CONTINUOUS}
KINDS = {"static": StaticKVCache, "paged": partial(PagedKVCache, block=4)}


def some_requests(model, n, seed=0, spread=0.0):
    """Prompts and lengths of every size that fits; arrivals up to `spread` seconds."""
    source = seeded(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=source))

    requests = []
    for i in range(n):
        prompt = torch.randint(model.vocab_size, (draw(0, model.length // 2),), generator=source)
        new = draw(1, model.length - len(prompt) + 1)
        label = draw(0, model.num_classes) if model.num_classes else None
        requests.append(Request(prompt, new, draw(0, 1001) / 1000 * spread, seed=10 * seed + i, label=label))
    return requests


def alone(model, request, **filters):
    label = None if request.label is None else torch.tensor([request.label])
    options = dict(cond=label, prompt=request.prompt[None], generator=seeded(request.seed))
    return sample_cached(model, 1, **options, **filters).tokens[0, : len(request.prompt) + request.new_tokens]


def all_as_alone(model, requests, served, **filters):
    expected = (alone(model, request, **filters) for request in requests)
    return all(torch.equal(a, b) for a, b in zip(expected, served.tokens, strict=True))


# The same tokens as alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("filters", [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 3}], ids=str)
def test_every_request_gets_the_tokens_that_it_would_get_alone(policy, kind, filters):
    model = tiny_gpt()
    requests = some_requests(model, 11, spread=0.02)
    for slots in (1, 3, 11):
        options = dict(slots=slots, policy=POLICIES[policy], kind=KINDS[kind])
        assert all_as_alone(model, requests, sample_batched(model, requests, **options, **filters), **filters)


def test_neighbours_and_order_do_not_matter():
    model = tiny_gpt()
    requests = some_requests(model, 8)
    tokens = sample_batched(model, requests, slots=3).tokens
    backwards = sample_batched(model, requests[::-1], slots=2).tokens[::-1]
    assert all(torch.equal(a, b) for a, b in zip(tokens, backwards, strict=True))
    other = replace(requests[3], seed=999)
    changed = sample_batched(model, [*requests[:3], other, *requests[4:]], slots=3).tokens
    assert [i for i in range(8) if not torch.equal(tokens[i], changed[i])] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["static", "continuous"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filters", [{"temperature": 0}, {}], ids=["greedy", "sampled"])
def test_digits_are_drawn_as_alone(policy, kind, filters):
    model = checkpoints.load("digits_ar").double()
    requests = some_requests(model, 10, seed=1, spread=0.1)
    served = sample_batched(model, requests, slots=4, policy=POLICIES[policy], kind=KINDS[kind], **filters)
    assert all_as_alone(model, requests, served, **filters)


@pytest.mark.slow
def test_the_fast_step_serves_the_same_tokens():
    model = wild(RasterGPT(96, 288, dim=96, layers=8, heads=4), 0, std=0.1).double()
    source = seeded(0)
    lengths = torch.randint(16, 65, (10,), generator=source).tolist()
    requests = [
        Request(torch.randint(96, (3 * i,), generator=source), new, seed=i, arrival=0.01 * i)
        for i, new in enumerate(lengths)
    ]
    served = sample_batched(FastRaster(model), requests, slots=4, kind=PagedKVCache)
    assert all_as_alone(model, requests, served)


class SharedNoise(NetworkEngine):
    """One generator for everybody: a request's numbers depend on when it came."""

    source = seeded(0)

    def prefill(self, row, request):
        seconds = super().prefill(row, request)
        self.noise[row] = uniform_noise(1, self.model.length, self.source)[0]
        return seconds


class ForgetfulMove(NetworkEngine):
    """Moves the cache and leaves the noise behind."""

    def move(self, source, row):
        noise = self.noise[row].clone()
        seconds = super().move(source, row)
        self.noise[row] = noise
        return seconds


class StaleRows(NetworkEngine):
    """Moves everything but what the cache holds."""

    def move(self, source, row):
        k, v = self.cache.k.clone(), self.cache.v.clone()
        seconds = super().move(source, row)
        self.cache.k.copy_(k)
        self.cache.v.copy_(v)
        return seconds


@pytest.mark.parametrize("broken", [SharedNoise, ForgetfulMove, StaleRows])
def test_an_engine_that_forgets_something_is_found_out(broken):
    model = tiny_gpt()
    requests = some_requests(model, 11, seed=2)
    with torch.inference_mode():
        assert all_as_alone(model, requests, serve(requests, NetworkEngine(model, 4), 4, SHRINKING))
        assert not all_as_alone(model, requests, serve(requests, broken(model, 4), 4, SHRINKING))  # this one moves most


@pytest.mark.parametrize("policy", POLICIES)
def test_the_trace_counts_prompts_and_rows(policy):
    model = tiny_gpt()
    requests = some_requests(model, 9)
    served = sample_batched(model, requests, slots=4, policy=POLICIES[policy])
    prompts = [len(request.prompt) for request in requests if len(request.prompt)]
    rows = sum(len(step.rows) for step in served.steps)
    trace = served.trace
    assert trace.forwards["target"] == len(prompts) + len(served.steps)
    assert trace.positions["target"] == sum(prompts) + rows
    assert not any(tokens.is_inference() for tokens in served.tokens)


# Memory


def test_a_small_pool_serves_many_rows_and_gives_every_block_back():
    model = tiny_gpt()
    prompt = torch.zeros(2, dtype=torch.long)
    requests = [Request(prompt, 2, seed=i) for i in range(9)]  # four positions each, of twelve
    engine = NetworkEngine(model, 3, partial(PagedKVCache, block=4, blocks=3))
    with torch.inference_mode():
        served = serve(requests, engine, 3)
    assert all_as_alone(model, requests, served)
    assert engine.cache.used == 0
    with pytest.raises(ValueError, match="all 2 blocks of 4 positions are taken"):
        sample_batched(model, requests, slots=3, kind=partial(PagedKVCache, block=4, blocks=2))


# Bad input


def bad(**changes):
    return [replace(Request(torch.zeros(2, dtype=torch.long), 3), **changes)]


@pytest.mark.parametrize(
    "requests, options, message",
    [
        ([], {}, "no requests"),
        (bad(), {"slots": 0}, "slots is 0; at least one"),
        (bad(new_tokens=0), {}, "request 0 asks for 0 new tokens"),
        (bad(arrival=-1.0), {}, "request 0 arrives at -1.0"),
        (bad(arrival=float("nan")), {}, "request 0 arrives at nan"),
        (bad(arrival=float("inf")), {}, "request 0 arrives at inf"),
        (bad(new_tokens=11), {}, r"request 0 needs 2 \+ 11 positions, and the context has 12"),
        (bad(prompt=torch.zeros(13, dtype=torch.long)), {}, "13 tokens are longer than the context of 12"),
        (bad(prompt=torch.tensor([5])), {}, "the vocabulary from 0 to 4"),
        (bad(prompt=torch.zeros(2)), {}, "tokens must be long"),
        (bad(label=7), {}, "7"),
        (bad(), {"temperature": -1}, "temperature is -1"),
        (bad(), {"top_p": 0}, "top_p is 0"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(requests, options, message):
    with pytest.raises(ValueError, match=message):
        sample_batched(tiny_gpt(), requests, **options)


def test_guided_models_and_captions_are_refused():
    for model in (Guided(tiny_gpt(), 1.5), tiny_gpt(num_classes=9, cond_length=3)):
        with pytest.raises(ValueError, match="without guidance and captions"):
            sample_batched(model, bad())


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sample_batched(tiny_gpt().train(), bad())
