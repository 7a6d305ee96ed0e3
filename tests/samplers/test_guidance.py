"""Guidance changes what is sampled and not how: its formula, its limits, and the same samples from every sampler."""

import math

import pytest
import torch
from tiny import close, markov_bench, seeded, tiny_gpt, wild

from minimal.ar.any_subset import AnySubsetGPT, ranks
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.samplers.any_subset import sample_any_subset
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.cuda_graph import sample_static
from minimal.samplers.guidance import Guided, constant, cosine, interval, linear
from minimal.samplers.jacobi import sample_jacobi
from minimal.samplers.speculative import sample_speculative
from minimal.statistics import all_sequences, chi_square, enumerate_joint, sequence_index


def case(dtype=torch.float64):
    model = tiny_gpt(dtype=dtype)
    return model, torch.randint(5, (4, 12), generator=seeded(0)), torch.tensor([0, 1, 2, 0])


def halves(model, tokens, cond):
    """Conditional and null logits, computed in one batch as guidance does, since its width decides the last bit."""
    both = torch.cat((cond, torch.full_like(cond, model.num_classes)))
    return model.logits(tokens.repeat(2, 1), both).chunk(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scale_one_is_the_conditional_model_and_scale_zero_the_unconditional_one_bit_for_bit(dtype):
    model, tokens, cond = case(dtype)
    conditional, null = halves(model, tokens, cond)
    assert torch.equal(Guided(model, 1.0).logits(tokens, cond), conditional)
    assert torch.equal(Guided(model, 0.0).logits(tokens, cond), null)
    torch.testing.assert_close(null, model.logits(tokens))
    assert not torch.equal(conditional, null)


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0, -1.0])
def test_guidance_extrapolates_from_the_null_logits_through_the_conditional_ones(scale):
    model, tokens, cond = case()
    conditional, null = halves(model, tokens, cond)
    expected = null + scale * (conditional - null)
    torch.testing.assert_close(Guided(model, scale).logits(tokens, cond), expected, **close(torch.float64))


def test_a_schedule_gives_each_position_its_own_scale():
    model, tokens, cond = case()
    conditional, null = halves(model, tokens, cond)
    scale = torch.linspace(-1, 3, 12)
    guided = Guided(model, scale).logits(tokens, cond)
    for j in range(12):
        expected = null[:, j] + scale[j].double() * (conditional - null)[:, j]
        torch.testing.assert_close(guided[:, j], expected, **close(torch.float64))


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
def test_a_cached_schedule_counts_positions_from_the_start_of_the_sequence(kind):
    model, tokens, cond = case()
    guided = Guided(model, torch.linspace(-1, 3, 12))
    cache, full = guided.new_cache(4, kind=kind), guided.logits(tokens, cond)
    parts = [guided.logits(tokens, cond, cache=cache, n=n) for n in (1, 4, 7)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **close(torch.float64))


def test_a_length_per_row_serves_both_halves():
    model, tokens, cond = case()
    guided = Guided(model, torch.linspace(-1, 3, 12))
    cache, full = guided.new_cache(4, kind=StaticKVCache), guided.logits(tokens, cond)
    guided.logits(tokens, cond, cache=cache, n=8)
    lengths = [8, 3, 0, 5]
    cache.truncate(torch.tensor(lengths))
    got = guided.logits(tokens, cond, cache=cache, n=2)
    for b, length in enumerate(lengths):
        torch.testing.assert_close(got[b], full[b, length : length + 2], **close(torch.float64))


def test_each_step_samples_the_product_of_powers_renormalised():
    model, scale, label = markov_bench(3, vocab_size=3, length=2, classes=2, dtype=torch.float64), 2.5, 1
    p, null = model.table[label].softmax(-1), model.table[2].softmax(-1)
    tilted = p**scale * null ** (1 - scale)
    tilted = tilted / tilted.sum(-1, keepdim=True)
    closed_form = torch.stack([tilted[0, a] * tilted[1 + a, b] for a, b in all_sequences(3, 2).tolist()])

    guided = Guided(model, scale)
    joint = enumerate_joint(lambda tokens: guided.logits(tokens, torch.full((len(tokens),), label)), 2)
    torch.testing.assert_close(joint, closed_form, rtol=1e-10, atol=0)
    tokens = sample_cached(guided, 50_000, cond=torch.full((50_000,), label), generator=seeded(1)).tokens
    counts = sequence_index(tokens, 3).bincount(minlength=9)
    assert chi_square(counts, closed_form).p_value > 0.01
    assert chi_square(counts, enumerate_joint(model, 2)).p_value < 1e-6


@pytest.mark.parametrize("scale", [1.7, torch.linspace(0, 3, 12)], ids=["number", "schedule"])
def test_every_sampler_takes_guidance_and_meets_the_cached_one_on_the_same_noise(scale):
    model, cond = Guided(tiny_gpt(), scale), torch.tensor([0, 1, 2, 3, 1])
    expected = sample_cached(model, 5, cond=cond, generator=seeded(1)).tokens
    for sampler in (sample_uncached, sample_jacobi, sample_static):
        options = {"block": 5} if sampler is sample_jacobi else {}
        assert torch.equal(sampler(model, 5, cond=cond, generator=seeded(1), **options).tokens, expected)
    assert not torch.equal(sample_cached(model.model, 5, cond=cond, generator=seeded(1)).tokens, expected)

    greedy = sample_cached(model, 5, cond=cond, temperature=0).tokens
    for draft in (tiny_gpt(1), Guided(tiny_gpt(1), 1.3)):
        for n in (1, 5):
            fast = sample_speculative(model, draft, n, k=3, cond=cond[:n], temperature=0)
            assert torch.equal(fast.tokens, greedy[:n])


def test_the_tilt_of_whole_sequences_is_another_distribution_and_the_normalisers_are_the_difference():
    model, scale = markov_bench(3, vocab_size=3, length=4, classes=2, dtype=torch.float64), 2.5

    def joint(model, label):
        return enumerate_joint(lambda tokens: model.logits(tokens, torch.full((len(tokens),), label)), 4)

    stepwise, tilt = joint(Guided(model, scale), 1), joint(model, 1) ** scale * joint(model, 2) ** (1 - scale)
    tokens = all_sequences(3, 4)
    conditional, null = (model.logits(tokens, torch.full((81,), c)).softmax(-1) for c in (1, 2))
    normalisers = (conditional**scale * null ** (1 - scale)).sum(-1)  # (81, 4): Z_j(x_<j)
    torch.testing.assert_close(stepwise * normalisers.prod(-1), tilt, rtol=1e-9, atol=0)
    assert (stepwise - tilt / tilt.sum()).abs().sum() / 2 > 0.05


def test_a_guided_image_of_the_null_class_is_an_unguided_one():
    model, cond = tiny_gpt(), torch.full((4,), 3)
    guided = sample_cached(Guided(model, 3.0), 4, cond=cond, generator=seeded(0)).tokens
    assert torch.equal(guided, sample_cached(model, 4, generator=seeded(0)).tokens)


def test_an_any_subset_model_is_guided_where_it_is_asked():
    model = wild(AnySubsetGPT(5, 12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2), 7).double()
    tokens, cond = case()[1:]
    asked, levels = torch.tensor([[3, 9]]).expand(4, -1), ranks(tokens > 2)
    places = dict(asked=asked, levels=levels)
    conditional, null = model.logits(tokens, cond, **places), model.logits(tokens, **places)
    scale = torch.linspace(0, 3, 12)
    guided = Guided(model, scale).logits(tokens, cond, **places)
    expected = null + scale[asked][..., None] * (conditional - null)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-6)  # scales are float32
    options = dict(k=4, cond=cond, forced=torch.where(tokens > 2, tokens, -1))
    plain, same = (sample_any_subset(m, 4, generator=seeded(1), **options) for m in (model, Guided(model, 1.0)))
    assert torch.equal(plain.tokens, same.tokens)


def test_guidance_moves_with_its_model():
    guided = Guided(tiny_gpt().train(), 1.5)
    assert guided.training and not guided.eval().model.training
    assert not guided.state_dict().keys() - {"model." + name for name in guided.model.state_dict()}


# Schedules

RASTER, SCALES = torch.arange(5), torch.tensor([0, 1, 1, 2, 2, 2])


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_ramps_start_without_guidance_and_rise_to_the_scale(schedule):
    for levels in (RASTER, SCALES, torch.arange(64)):
        ramp = schedule(levels, 3.0)
        assert ramp.dtype == torch.float32 and ramp.shape == levels.shape
        assert ramp[0] == 1 and ramp[-1] == 3 and (ramp.diff() >= 0).all()
        assert all(len(ramp[levels == k].unique()) == 1 for k in levels.unique())  # tokens of a level share a scale


def test_schedules_are_their_formulas():
    assert constant(RASTER, 2.5).tolist() == [2.5] * 5
    assert linear(RASTER, 3.0).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    expected = [1 + 2 * (1 - math.cos(math.pi * r / 4)) / 2 for r in range(5)]
    torch.testing.assert_close(cosine(RASTER, 3.0), torch.tensor(expected))
    assert interval(RASTER, 3.0, 0.25, 0.5).tolist() == [1, 3, 3, 1, 1]
    assert interval(RASTER, 3.0, start=0.6).tolist() == [1, 1, 1, 3, 3]
    assert interval(RASTER, 3).tolist() == constant(RASTER, 3).tolist() == [3.0] * 5


def test_over_scales_the_ramp_is_that_of_var():
    t, last = 4.0, 2  # logits (1 + t_k) conditional - t_k null, t_k = t k / (K - 1)
    assert linear(SCALES, 1 + t).tolist() == [1 + t * k / last for k in SCALES.tolist()]


def test_a_single_level_and_levels_that_start_later_are_no_special_case():
    assert linear(torch.zeros(3, dtype=torch.long), 3.0).tolist() == [1, 1, 1]
    assert torch.equal(linear(RASTER + 7, 3.0), linear(RASTER, 3.0))


@pytest.mark.parametrize("schedule", [constant, linear, cosine, interval])
def test_scale_one_is_no_guidance_under_every_schedule_and_a_model_takes_it(schedule):
    model, tokens, cond = case()
    assert torch.equal(schedule(model.levels, 1.0), torch.ones(12))
    guided = Guided(model, schedule(model.levels, 2.0))
    conditional, null = halves(model, tokens, cond)
    expected = null + schedule(model.levels, 2.0).double()[:, None] * (conditional - null)
    torch.testing.assert_close(guided.logits(tokens, cond), expected, **close(torch.float64))


# Bad input


@pytest.mark.parametrize("start, stop", [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)])
def test_an_interval_lies_within_generation(start, stop):
    with pytest.raises(ValueError, match=f"got {start} and {stop}"):
        interval(RASTER, 2.0, start, stop)


@pytest.mark.parametrize("levels", [torch.ones(3), torch.zeros(2, 3, dtype=torch.long), torch.zeros(0).long()])
def test_a_schedule_needs_levels(levels):
    with pytest.raises(ValueError, match="levels are whole numbers"):
        linear(levels, 2.0)


def test_guidance_without_labels_is_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        Guided(tiny_gpt(num_classes=0), 2.0)
    with pytest.raises(ValueError, match="guidance needs labels"):
        sample_cached(Guided(tiny_gpt(), 2.0), 3)
    with pytest.raises(ValueError, match="labels run from 4 to 4"):
        sample_cached(Guided(tiny_gpt(), 2.0), 1, cond=torch.tensor([4]))


def test_a_schedule_has_one_scale_per_position():
    with pytest.raises(ValueError, match=r"must be a number or \(12,\), got \(11,\)"):
        Guided(tiny_gpt(), torch.ones(11))
