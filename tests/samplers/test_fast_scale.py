"""The fast next-scale sampler draws the tokens of the plain one, and does not do its work twice."""

import pytest
import torch
from tiny import seeded, wild

from minimal.ar.flex_scale import FlexScale
from minimal.ar.raster import RasterGPT
from minimal.ar.scale import NextScale
from minimal.samplers import fast_scale
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast_scale import sample_next_scale
from minimal.samplers.guidance import Guided, linear
from minimal.samplers.logits import probabilities
from minimal.samplers.trace import multiply_adds


def model_of(dtype=torch.float64, scales=(1, 2, 3, 5), **changes):
    """A random NextScale whose biases, gates and convolutions matter too."""
    torch.manual_seed(0)
    sizes = dict(codebook_size=11, code_dim=5, scales=scales, num_classes=3, dim=16, layers=2, heads=2)
    model = wild(NextScale(**sizes | changes), 0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(std=0.5)
    return model.to(dtype)


LABELS = torch.tensor([0, 2, 1, 1, 3])


@pytest.mark.parametrize("filters", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 6}, {"top_p": 0.8}])
@pytest.mark.parametrize("guidance_scale", [1.0, 0.0, 2.5])
def test_tokens_are_those_of_the_plain_guided_sampler(guidance_scale, filters):
    model = model_of()
    options = dict(cond=LABELS, **filters)
    plain = sample_cached(Guided(model, guidance_scale), 5, generator=seeded(1), **options)
    fast = sample_next_scale(model, 5, guidance_scale=guidance_scale, generator=seeded(1), **options)
    assert torch.equal(fast.tokens, plain.tokens)
    assert fast.trace.forwards == plain.trace.forwards and fast.trace.positions == plain.trace.positions


@pytest.mark.parametrize("cond", [None, LABELS])
def test_without_guidance_tokens_are_those_of_the_bare_model(cond):
    model = model_of()
    plain = sample_cached(model, 5, cond=cond, generator=seeded(1))
    assert torch.equal(sample_next_scale(model, 5, cond=cond, generator=seeded(1)).tokens, plain.tokens)


def test_every_scale_may_have_a_strength_of_its_own():
    model = model_of()
    strength = torch.tensor([1.0, 0.5, 3.0, 2.0])
    plain = sample_cached(Guided(model, strength[model.levels]), 5, cond=LABELS, generator=seeded(1))
    fast = sample_next_scale(model, 5, cond=LABELS, guidance_scale=strength, generator=seeded(1))
    assert torch.equal(fast.tokens, plain.tokens)
    ramp = sample_cached(Guided(model, linear(model.levels, 3.0)), 5, cond=LABELS, generator=seeded(1))
    assert not torch.equal(ramp.tokens, plain.tokens)  # strengths matter here
    fast = sample_next_scale(model, 5, cond=LABELS, guidance_scale=torch.linspace(1, 3, 4), generator=seeded(1))
    assert torch.equal(fast.tokens, ramp.tokens)


def test_in_single_precision_only_near_ties_differ(monkeypatch):
    """Where the first token differs, its noise lies at an edge of the distribution; behind it all may differ."""
    model, n = model_of(torch.float32), 200
    cond = torch.arange(n) % 3
    plain = sample_cached(Guided(model, 2.0), n, cond=cond, generator=seeded(1)).tokens
    fast = sample_next_scale(model, n, cond=cond, guidance_scale=2.0, generator=seeded(1)).tokens
    differs = (plain != fast).any(1)
    assert differs.float().mean() < 0.02
    noise = torch.rand(n, model.length, generator=seeded(1))
    cumulative = probabilities(Guided(model, 2.0).logits(plain, cond)).cumsum(-1)
    for i in differs.nonzero().flatten():
        j = (plain[i] != fast[i]).nonzero()[0, 0]
        assert (cumulative[i, j] - noise[i, j]).abs().min() < 1e-5


def test_a_sample_does_not_depend_on_its_batch_nor_on_the_size_of_the_parts(monkeypatch):
    model = model_of()
    options = dict(guidance_scale=2.0)
    five = sample_next_scale(model, 5, cond=LABELS, generator=seeded(1), **options).tokens
    two = sample_next_scale(model, 2, cond=LABELS[:2], generator=seeded(1), **options).tokens
    assert torch.equal(five[:2], two)
    for rows in (1, 7, 10_000):
        monkeypatch.setattr(fast_scale, "ROWS", rows)
        assert torch.equal(sample_next_scale(model, 5, cond=LABELS, generator=seeded(1), **options).tokens, five)


def test_the_model_is_left_as_it_was():
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sample_next_scale(model, 5, cond=LABELS, guidance_scale=2.0, generator=seeded(1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_head_runs_on_half_of_the_rows():
    model = model_of()
    plain = multiply_adds(lambda: sample_cached(Guided(model, 2.0), 5, cond=LABELS))
    fast = multiply_adds(lambda: sample_next_scale(model, 5, cond=LABELS, guidance_scale=2.0))
    alone = multiply_adds(lambda: sample_next_scale(model, 5, cond=LABELS))
    assert plain - fast >= 5 * model.length * model.head.weight.numel()
    assert alone < 0.7 * fast  # and no null half where there is nothing to mix


def test_bad_input_is_a_clear_error():
    model = model_of()
    with pytest.raises(ValueError, match=r"a number or \(4,\)"):
        sample_next_scale(model, 2, cond=LABELS[:2], guidance_scale=torch.ones(3))
    with pytest.raises(ValueError, match="needs labels"):
        sample_next_scale(model, 2, guidance_scale=2.0)
    with pytest.raises(ValueError, match="labels must be long"):
        sample_next_scale(model, 2, cond=LABELS, guidance_scale=2.0)
    with pytest.raises(ValueError, match="temperature"):
        sample_next_scale(model, 2, cond=LABELS[:2], temperature=-1)
    with pytest.raises(ValueError, match="model.eval"):
        sample_next_scale(model_of().train(), 2)
    for other in (RasterGPT(5, 4), FlexScale(5, 4, 3, dim=16)):
        with pytest.raises(ValueError, match="sample_cached takes any model"):
            sample_next_scale(other.eval(), 1)
