"""From logits to tokens: what each filter keeps, and draws that are right up to the edges of the noise."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import seeded

from minimal.samplers.logits import filter_logits, inverse_cdf, probabilities, sample_logits, uniform_noise
from minimal.statistics import chi_square

BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1, and the largest number that torch.rand returns

distinct_numbers = st.lists(st.integers(-160, 160), min_size=2, max_size=10, unique=True)
logits_of_distinct_tokens = distinct_numbers.map(lambda numbers: torch.tensor(numbers, dtype=torch.float32) / 20)


def kept(logits):
    return logits > -torch.inf


# Filters


def test_temperature_divides_logits():
    logits = torch.randn(3, 7, generator=seeded(0))
    torch.testing.assert_close(probabilities(logits, temperature=0.7), (logits / 0.7).softmax(-1))
    assert torch.equal(probabilities(logits), logits.softmax(-1))


def test_temperature_zero_puts_everything_on_the_argmax_and_ties_go_to_the_lowest_token():
    logits = torch.tensor([[1.0, 3.0, 2.0], [2.0, 0.0, 2.0], [5.0, 5.0, 5.0]])
    assert torch.equal(probabilities(logits, temperature=0), torch.tensor([[0, 1, 0], [1, 0, 0], [1, 0, 0]]).float())
    assert sample_logits(logits, temperature=0, generator=seeded(0)).tolist() == [1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-20])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(probabilities(logits, temperature=temperature), torch.tensor([[0.0, 1.0, 0.0]]))


@given(logits_of_distinct_tokens, st.integers(1, 12))
def test_top_k_keeps_the_k_largest_with_their_ratios(logits, k):
    p, q = logits.softmax(-1), probabilities(logits, top_k=k)
    largest = torch.zeros(len(logits)).index_fill(0, logits.argsort(descending=True)[:k], 1.0)
    torch.testing.assert_close(q, p * largest / (p * largest).sum())


def test_top_k_keeps_all_that_tie_with_the_last():
    assert kept(filter_logits(torch.tensor([1.0, 2.0, 2.0, 0.0]), top_k=1)).tolist() == [False, True, True, False]


@given(logits_of_distinct_tokens)
def test_a_filter_wide_open_changes_no_bit(logits):
    V = len(logits)
    for options in ({"top_k": V}, {"top_k": V + 3}, {"top_p": 1.0}, {"min_p": 0.0}, {"temperature": 1.0}):
        assert torch.equal(filter_logits(logits, **options), logits)


@given(logits_of_distinct_tokens, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(logits, top_p):
    p, keep = logits.double().softmax(-1), kept(filter_logits(logits, top_p=top_p))
    assert p[keep].sum() >= top_p - 1e-6
    assert p[keep].sum() - p[keep].min() <= top_p + 1e-6  # without the least likely of them it is too little
    assert keep.all() or p[keep].min() > p[~keep].max()


@given(logits_of_distinct_tokens, st.floats(0.01, 1))
def test_min_p_keeps_what_is_not_too_far_below_the_best(logits, min_p):
    p = logits.double().softmax(-1)
    clear = (p / p.max() - min_p).abs() > 1e-6  # not on the edge itself
    keep = kept(filter_logits(logits, min_p=min_p))
    assert torch.equal(keep[clear], (p >= min_p * p.max())[clear])


@given(logits_of_distinct_tokens)
def test_the_tightest_filters_are_greedy(logits):
    greedy = probabilities(logits, temperature=0)
    for options in ({"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(probabilities(logits, **options), greedy)


@given(logits_of_distinct_tokens, st.floats(0.3, 3), st.integers(1, 8), st.floats(0.1, 1), st.floats(0, 1))
def test_filters_apply_in_the_stated_order(logits, temperature, top_k, top_p, min_p):
    step_by_step = logits
    for option in ({"temperature": temperature}, {"top_k": top_k}, {"top_p": top_p}, {"min_p": min_p}):
        step_by_step = filter_logits(step_by_step, **option)
    at_once = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.equal(at_once, step_by_step)
    assert kept(at_once).any()  # something is always left


def test_filters_work_row_by_row_and_leave_their_input_alone():
    logits = torch.randn(4, 5, 9, generator=seeded(0))
    before = logits.clone()
    for options in ({"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 0}, {"temperature": 0.5}):
        rows = torch.stack([filter_logits(row, **options) for row in logits.flatten(0, 1)]).view_as(logits)
        assert torch.equal(filter_logits(logits, **options), rows)
        assert torch.equal(logits, before)


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 7}, {"temperature": 0.7}])
def test_low_precision_logits_are_filtered_in_float32(options):
    logits = torch.linspace(3, -3, 4000).bfloat16()
    p = probabilities(logits, **options)
    assert p.dtype == torch.float32
    assert torch.equal(p, probabilities(logits.float(), **options))
    assert probabilities(logits.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "option, value",
    [("temperature", -1.0), ("temperature", float("nan"))]
    + [("top_k", 0), ("top_k", -3), ("top_p", 0.0), ("top_p", 1.1), ("top_p", float("nan"))]
    + [("min_p", -0.1), ("min_p", 1.5), ("min_p", float("nan"))],
)
def test_filters_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; give"):
        filter_logits(torch.zeros(3), **{option: value})


# Draws


def test_a_token_owns_an_interval_closed_below_and_open_above():
    p = torch.tensor([0.25, 0.25, 0.5])
    u = torch.tensor([0.0, 0.2, 0.25, 0.49, 0.5, 0.75, BELOW_ONE])
    assert inverse_cdf(p.expand(len(u), 3).contiguous(), u).tolist() == [0, 0, 1, 1, 2, 2, 2]


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10)), min_size=1, max_size=12).filter(any)
noise = st.one_of(st.sampled_from([0.0, 2.0**-24, 0.5, BELOW_ONE, 1 - 2.0**-53]), st.floats(0, BELOW_ONE))


@example([1.0, 2.0, 0.0], 1 - 2.0**-53, torch.float32)  # as float32 this u is 1
@example([0.0, 1.0], 0.0, torch.float32)
@given(weights, noise, st.sampled_from([torch.float32, torch.float64]))
def test_a_token_of_probability_zero_is_never_drawn(p, u, dtype):
    p, u = torch.tensor(p, dtype=dtype), torch.tensor(u, dtype=torch.float64)
    token = inverse_cdf(p, u)
    assert 0 <= token < len(p) and p[token] > 0
    cumulative = p.double().cumsum(0) / p.double().sum()  # and it is the token whose interval holds u
    assert cumulative[token] >= u - 1e-6 and cumulative[token] - p[token].double() / p.double().sum() <= u + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_noise_stays_on_the_last_possible_token_of_long_distributions(dtype):
    p = torch.rand(500, 1000, dtype=dtype, generator=seeded(0)).softmax(-1)
    p[:, 700:] = 0
    assert (inverse_cdf(p, torch.full((500,), BELOW_ONE)) < 700).all()
    p[:, :300] = 0
    assert (inverse_cdf(p, torch.zeros(500)) == 300).all()


@given(weights, noise, noise)
def test_more_noise_never_gives_an_earlier_token(p, u, v):
    low, high = sorted((u, v))
    tokens = inverse_cdf(torch.tensor([p, p]), torch.tensor([low, high], dtype=torch.float64))
    assert tokens[0] <= tokens[1]


def test_tokens_follow_their_distribution():
    p = torch.randn(50, generator=seeded(1)).mul(1.5).softmax(-1)
    u = uniform_noise(1, 100_000, seeded(2))[0]
    counts = inverse_cdf(p.expand(len(u), 50).contiguous(), u).bincount(minlength=50)
    assert chi_square(counts, p).p_value > 0.01
    assert chi_square(counts.roll(1), p).p_value < 1e-6  # the test can fail


def test_sample_logits_draws_from_the_filtered_distribution():
    logits = torch.randn(20, generator=seeded(3)).mul(2)
    tokens = sample_logits(logits.expand(100, 500, 20), temperature=1.4, top_k=9, generator=seeded(4))
    assert tokens.shape == (100, 500)
    counts = tokens.flatten().bincount(minlength=20)
    assert chi_square(counts, probabilities(logits, temperature=1.4, top_k=9)).p_value > 0.01
    again = sample_logits(logits.expand(100, 500, 20), temperature=1.4, top_k=9, generator=seeded(4))
    assert torch.equal(tokens, again)


def test_the_noise_of_an_image_does_not_depend_on_the_number_of_images():
    many = uniform_noise(50, 13, seeded(0))
    assert many.shape == (50, 13) and many.min() >= 0 and many.max() < 1
    for n in (1, 2, 17):
        assert torch.equal(uniform_noise(n, 13, seeded(0)), many[:n])
    assert not torch.equal(uniform_noise(50, 13, seeded(1)), many)
