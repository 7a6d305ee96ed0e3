"""One test for every model of Part 2: a likelihood is a sum over levels, however the levels are batched."""

import pytest
import torch
from tiny import seeded, wild

from minimal.ar.any_order import AnyOrderGPT
from minimal.ar.axial import AxialTransformer
from minimal.ar.flex_scale import FlexScale
from minimal.ar.masked import MaskedTransformer
from minimal.ar.neighbour import NextNeighbour
from minimal.ar.raster import RasterGPT
from minimal.ar.scale import NextScale
from minimal.samplers.cached import bounds, sample_cached
from minimal.samplers.guidance import Guided

SIZE = dict(num_classes=3, dim=16, heads=2)
SHUFFLED = torch.randperm(16, generator=seeded(0))
MODELS = {
    "raster": lambda: RasterGPT(7, 16, grid_width=4, layers=2, **SIZE),
    "axial": lambda: AxialTransformer(7, (4, 4), pairs=1, **SIZE),
    "neighbour": lambda: NextNeighbour(7, (4, 4), layers=1, **SIZE),
    "scale": lambda: NextScale(7, 5, (1, 2, 4), layers=2, **SIZE),
    "flexible scale": lambda: FlexScale(7, 5, 4, layers=2, **SIZE).with_scales((1, 3, 4)),
    "any order": lambda: AnyOrderGPT(7, 16, grid_width=4, layers=2, **SIZE).in_order(SHUFFLED),
}
STEPS = {"raster": 16, "axial": 16, "neighbour": 7, "scale": 3, "flexible scale": 3, "any order": 16}
LABELS = torch.tensor([0, 2, 1])


def made(name):
    torch.manual_seed(0)
    return wild(MODELS[name](), 0).double()


def tokens_of(model):
    return torch.randint(model.vocab_size, (3, model.length), generator=seeded(1))


def by_steps(model, tokens, labels, group):
    """log p (B,) as a sum over forwards through a cache, each over `group` levels."""
    cache, total, ends = model.new_cache(len(tokens)), 0.0, bounds(model)[1:]
    for end in sorted({*ends[group - 1 :: group], ends[-1]}):
        logp = model.logits(tokens[:, :end], labels, cache=cache).log_softmax(-1)
        new = tokens[:, end - logp.shape[1] : end]
        total = total + logp.gather(-1, new[..., None]).sum((1, 2))
    return total


@pytest.mark.parametrize("name", MODELS)
def test_the_likelihood_is_the_same_however_levels_are_batched(name):
    model = made(name)
    tokens = tokens_of(model)
    whole = model.logprob(tokens, LABELS)
    assert len(bounds(model)) - 1 == STEPS[name]
    for group in (1, 2, 3, STEPS[name]):
        torch.testing.assert_close(by_steps(model, tokens, LABELS, group), whole, rtol=0, atol=1e-10)
    alone = torch.cat([model.logprob(tokens[i : i + 1], LABELS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_no_token_is_told_by_its_own_level_or_later_ones(name):
    model = made(name)
    tokens, levels = tokens_of(model), model.levels
    logits = model.logits(tokens, LABELS)
    for j in range(0, model.length, 3):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, LABELS) - logits).abs().amax((0, 2)) > 0
        assert not changed[levels <= levels[j]].any() and (changed.any() or levels[j] == levels[-1])


@pytest.mark.parametrize("name", MODELS)
def test_a_sampler_makes_one_forward_per_level(name):
    model = made(name)
    sample = sample_cached(Guided(model, 2.0), 3, cond=LABELS, generator=seeded(2))
    assert sample.trace.forwards == {"target": STEPS[name]}
    assert sample.trace.positions == {"target": 3 * model.length}


def test_a_masked_model_has_a_chain_rule_for_every_order_and_they_disagree():
    torch.manual_seed(0)
    model = wild(MaskedTransformer(7, 16, grid_width=4, layers=2, **SIZE), 0).double()
    tokens = tokens_of(model)
    orders = [torch.arange(16), SHUFFLED]
    for order in orders:
        whole, canvas, total = model.logprob(tokens, LABELS, order), torch.full_like(tokens, model.mask), 0.0
        for j in order.tolist():
            total = total + model.logits(canvas, LABELS)[:, j].log_softmax(-1).gather(-1, tokens[:, j, None]).squeeze(1)
            canvas[:, j] = tokens[:, j]
        torch.testing.assert_close(total, whole, rtol=0, atol=1e-10)
    raster, shuffled = (model.logprob(tokens, LABELS, order) for order in orders)
    assert (raster - shuffled).abs().min() > 1e-3
