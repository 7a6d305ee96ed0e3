"""Ancestral sampling: equal with and without a cache, equal in any batch, and distributed as the model says."""

import pytest
import torch
from tiny import markov_bench, seeded, tiny_gpt

from minimal.ar.scale import NextScale
from minimal.nn.cache import SlidingKVCache
from minimal.samplers.cached import bounds, decode, sample_cached, sample_uncached
from minimal.samplers.logits import probabilities, uniform_noise
from minimal.statistics import chi_square, enumerate_joint, sequence_index

SAMPLERS = [sample_cached, sample_uncached]


def test_with_and_without_a_cache_the_samples_are_equal(task):
    model, n, options = task
    cached = sample_cached(model, n, generator=seeded(1), **options)
    uncached = sample_uncached(model, n, generator=seeded(1), **options)
    assert torch.equal(cached.tokens, uncached.tokens)
    assert cached.tokens.shape == (n, model.length) and cached.tokens.dtype == torch.long


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_token_is_where_the_cumulative_distribution_passes_the_noise(sampler, task):
    model, n, options = task
    filters = {name: value for name, value in options.items() if name not in ("cond", "prompt")}
    tokens = sampler(model, n, generator=seeded(2), **options).tokens
    p = probabilities(model.logits(tokens, options.get("cond")), **filters)
    u, end = uniform_noise(n, model.length, seeded(2)), p.cumsum(-1).gather(-1, tokens[..., None]).squeeze(-1)
    prompt = options.get("prompt", tokens[:, :0])
    assert torch.equal(tokens[:, : prompt.shape[1]], prompt)
    drawn = slice(prompt.shape[1], None)
    assert (u < end + 1e-9)[:, drawn].all()
    assert (u >= end - p.gather(-1, tokens[..., None]).squeeze(-1) - 1e-9)[:, drawn].all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_the_batch_it_was_drawn_in(sampler):
    model, cond = tiny_gpt(), torch.arange(20) % 4
    many = sampler(model, 20, cond=cond, generator=seeded(3)).tokens
    for n in (1, 7):
        assert torch.equal(sampler(model, n, cond=cond[:n], generator=seeded(3)).tokens, many[:n])
    assert len(many.unique(dim=0)) == 20  # no two alike, so the comparison means something


def test_the_same_seed_gives_the_same_sample_and_the_global_generator_is_left_alone():
    model, state = tiny_gpt(), torch.get_rng_state()
    first, again, other = (sample_cached(model, 4, generator=seeded(seed)).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_seed_decides():
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(sample_cached(tiny_gpt(), 4).tokens)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_greedy_decoding_takes_the_most_likely_token_whatever_the_seed():
    model = tiny_gpt()
    tokens = sample_cached(model, 3, temperature=0, generator=seeded(0)).tokens
    assert torch.equal(model.logits(tokens).argmax(-1), tokens)
    assert torch.equal(tokens, sample_cached(model, 3, temperature=0, generator=seeded(1)).tokens)


def test_a_complete_prompt_comes_back_unchanged_and_costs_nothing():
    model = tiny_gpt()
    prompt = torch.randint(5, (2, 12), generator=seeded(0))
    sample = sample_cached(model, 2, prompt=prompt)
    assert torch.equal(sample.tokens, prompt) and not sample.trace.forwards


def test_a_sliding_cache_samples_too():
    model = tiny_gpt()
    sliding = decode(model, 4, model.new_cache(4, kind=SlidingKVCache), generator=seeded(1))
    assert torch.equal(sliding.tokens, sample_cached(model, 4, generator=seeded(1)).tokens)


def test_the_trace_counts_one_position_per_forward_with_a_cache_and_the_whole_prefix_without():
    model, n, N = tiny_gpt(), 3, 12
    cached, uncached = (sampler(model, n, generator=seeded(0)).trace for sampler in SAMPLERS)
    assert cached.forwards["target"] == uncached.forwards["target"] == N
    assert cached.rows["target"] == n * N
    assert cached.positions["target"] == n * N
    assert uncached.positions["target"] == n * N * (N + 1) // 2
    assert cached.seconds > 0 and cached.drafted == 0
    prompted = sample_cached(model, n, prompt=torch.zeros(n, 5, dtype=torch.long)).trace
    assert prompted.forwards["target"] == N - 5 and prompted.positions["target"] == n * N  # the prompt in one pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_sample_tokens_of_the_vocabulary(dtype):
    tokens = sample_cached(tiny_gpt(dtype=dtype), 50, top_p=0.9, generator=seeded(0)).tokens
    assert 0 <= tokens.min() and tokens.max() < 5 and len(tokens.unique(dim=0)) > 10


def test_a_model_can_be_trained_on_its_own_samples():
    model = tiny_gpt().requires_grad_(True)
    for sampler in SAMPLERS:
        tokens = sampler(model, 4, generator=seeded(0)).tokens
        model.loss(tokens)[0].backward()
        assert model.embedding.weight.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 2}], ids=["plain", "filtered"])
def test_samples_follow_the_joint_distribution_of_all_sequences(options):
    model = tiny_gpt(dtype=torch.float32, vocab_size=3, length=4, grid_width=2, dim=8)
    joint = enumerate_joint(lambda tokens: probabilities(model.logits(tokens), **options).log(), 4)
    generator = seeded(1)
    tokens = torch.cat([sample_cached(model, 25_000, generator=generator, **options).tokens for _ in range(4)])
    counts = sequence_index(tokens, 3).bincount(minlength=81)
    assert chi_square(counts, joint).p_value > 0.01
    other = enumerate_joint(lambda tokens: probabilities(model.logits(tokens) / 1.05, **options).log(), 4)
    assert chi_square(counts, other).p_value < 1e-6  # a temperature five per cent off would be noticed


# Bad input


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "n, options, message",
    [
        (0, {}, "asked for 0 samples|at least 1"),
        (2, {"cond": torch.tensor([0, 4])}, "labels run from 0 to 4"),
        (2, {"cond": torch.tensor([0])}, r"labels must be long \(2,\)"),
        (2, {"cond": torch.tensor([0.0, 1.0])}, "labels must be long"),
        (2, {"prompt": torch.zeros(3, 4, dtype=torch.long)}, "2 samples from 3 prompts"),
        (2, {"prompt": torch.zeros(2, 13, dtype=torch.long)}, "longer than the context of 12"),
        (2, {"prompt": torch.full((2, 3), 5)}, "tokens run from 5 to 5"),
        (2, {"prompt": torch.zeros(2, 3)}, "tokens must be long"),
        (2, {"prompt": torch.zeros(2, dtype=torch.long)}, "tokens must be long"),
        (2, {"temperature": -1}, "temperature is -1"),
        (2, {"top_k": 0}, "top_k is 0"),
        (2, {"top_p": 2}, "top_p is 2"),
        (2, {"min_p": -1}, "min_p is -1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(sampler, n, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(tiny_gpt(), n, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_in_training_mode_is_refused(sampler):
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sampler(tiny_gpt().train(), 2)


# Levels of several tokens, and tokens that are forced


def test_the_bounds_of_levels_come_from_the_model():
    assert bounds(NextScale(5, 4, (1, 2, 3))) == [0, 1, 5, 14]
    assert bounds(tiny_gpt(length=3)) == [0, 1, 2, 3]
    assert bounds(markov_bench(0, length=2)) == [0, 1, 2]  # no `levels` at all


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_forced_tokens_are_kept_and_the_others_follow_from_them(sampler):
    model, free = tiny_gpt(), torch.tensor([True, False, True, True, False, True] * 2)
    plain = sampler(model, 3, generator=seeded(1)).tokens
    source = (plain + 1) % model.vocab_size
    forced = source.masked_fill(free, -1)
    tokens = sampler(model, 3, forced=forced, generator=seeded(1)).tokens
    assert torch.equal(tokens[:, ~free], source[:, ~free])
    assert torch.equal(tokens[:, :1], plain[:, :1]) and not torch.equal(tokens[:, free], plain[:, free])
    p, u = model.logits(tokens).softmax(-1), uniform_noise(3, model.length, seeded(1))
    below = p.cumsum(-1).gather(-1, tokens[..., None]).squeeze(-1)  # what is free is drawn given what was forced
    assert (u < below + 1e-9)[:, free].all()
    assert (u >= below - p.gather(-1, tokens[..., None]).squeeze(-1) - 1e-9)[:, free].all()


def test_forcing_nothing_and_forcing_everything():
    model = tiny_gpt()
    plain = sample_cached(model, 2, generator=seeded(1)).tokens
    assert torch.equal(sample_cached(model, 2, forced=torch.full_like(plain, -1), generator=seeded(1)).tokens, plain)
    assert torch.equal(sample_cached(model, 2, forced=plain.flip(1)).tokens, plain.flip(1))


def test_forced_tokens_of_another_size_or_vocabulary_are_refused():
    model = tiny_gpt()
    with pytest.raises(ValueError, match=r"forced must be \(2, 12\), -1 where free; got \(2, 11\)"):
        sample_cached(model, 2, forced=torch.full((2, 11), -1))
    with pytest.raises(ValueError, match="tokens run from 9 to 9"):
        sample_cached(model, 2, forced=torch.full((2, 12), 9))


def test_a_prompt_may_end_inside_a_level():
    model = NextScale(5, 4, (1, 2), dim=16, layers=1, heads=2).eval()
    tokens = sample_cached(model, 2, generator=seeded(1)).tokens
    assert torch.equal(sample_cached(model, 2, prompt=tokens[:, :3], generator=seeded(1)).tokens, tokens)
