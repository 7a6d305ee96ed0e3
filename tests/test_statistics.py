"""Exact joints and the tests that compare samples with them: checked against enumeration and against scipy."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from minimal import statistics


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def markov(transition):
    """logits(tokens) of a Markov chain: row 0 of `transition` (V + 1, V) starts it, row 1 + v follows token v."""

    def logits(tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1] + 1], 1)
        return transition[before]

    return logits


# Joints


@pytest.mark.parametrize("vocab, length", [(2, 1), (3, 4), (1, 3), (5, 2)])
def test_sequences_come_in_lexicographic_order_and_know_their_row(vocab, length):
    sequences = statistics.all_sequences(vocab, length)
    assert sequences.tolist() == [list(s) for s in itertools.product(range(vocab), repeat=length)]
    assert torch.equal(statistics.sequence_index(sequences, vocab), torch.arange(vocab**length))


def test_the_joint_of_a_markov_chain_is_the_product_of_its_transitions():
    transition = torch.randn(4, 3, generator=seeded(0))
    p = transition.double().softmax(-1)
    expected = [p[0, a] * p[1 + a, b] * p[1 + b, c] for a, b, c in itertools.product(range(3), repeat=3)]
    joint = statistics.enumerate_joint(markov(transition), 3)
    torch.testing.assert_close(joint, torch.stack(expected))
    assert joint.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_model_is_enumerated_through_its_logits():
    class Model:
        logits = staticmethod(markov(torch.randn(4, 3, generator=seeded(1))))

    assert torch.equal(statistics.enumerate_joint(Model(), 3), statistics.enumerate_joint(Model.logits, 3))


def test_a_model_that_reads_the_token_it_predicts_has_no_joint():
    def cheat(tokens):
        return 5.0 * torch.nn.functional.one_hot(tokens, 3)

    with pytest.raises(ValueError, match="reads its own"):
        statistics.enumerate_joint(cheat, 3)


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(ValueError, match="enumerated"):
        statistics.all_sequences(17, 64)
    with pytest.raises(ValueError, match="0..2"):
        statistics.sequence_index(torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match="long"):
        statistics.sequence_index(torch.tensor([0, 1]), 3)


# Total variation


def test_total_variation_of_two_coins_is_the_difference_of_their_heads():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.8, 0.2], [0.0, 1.0]])
    torch.testing.assert_close(statistics.total_variation(p, q), torch.tensor([0.3, 1.0]).double())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_total_variation_is_one_minus_the_overlap(size, seed):
    p, q = torch.rand(2, size, generator=seeded(seed), dtype=torch.float64).add(1e-6)
    p, q = p / p.sum(), q / q.sum()
    torch.testing.assert_close(statistics.total_variation(p, q), 1 - torch.minimum(p, q).sum())
    assert statistics.total_variation(p, p) == 0


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]])
def test_what_is_no_distribution_is_refused(p):
    with pytest.raises(ValueError, match="sum to 1"):
        statistics.total_variation(torch.tensor(p), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="sum to 1"):
        statistics.chi_square(torch.tensor([50, 50]), torch.tensor(p))
    with pytest.raises(ValueError, match="one shape"):
        statistics.total_variation(torch.ones(1), torch.tensor([0.5, 0.5]))


# Chi-square


def test_without_rare_cells_it_is_the_test_of_scipy():
    counts, p = torch.tensor([18, 25, 57]), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = stats.chisquare([18, 25, 57], [20, 30, 50])
    assert statistics.chi_square(counts, p) == pytest.approx((expected.statistic, expected.pvalue))


def test_rare_cells_are_merged_before_the_test_of_scipy():
    # 100 samples: expectations 1, 60, 2, 3, 34. The three rare ones make one group of 6.
    counts, p = torch.tensor([4, 55, 0, 6, 35]), torch.tensor([0.01, 0.6, 0.02, 0.03, 0.34], dtype=torch.float64)
    expected = stats.chisquare([10, 55, 35], [6, 60, 34])
    assert statistics.chi_square(counts, p) == pytest.approx((expected.statistic, expected.pvalue))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 40.0), min_size=1, max_size=30))
@example([3.0, 3.0, 3.0])  # the last one cannot stand alone
def test_every_group_expects_five_and_none_could_be_split_by_its_rarest_cells(expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    groups = statistics.merge_rare_cells(expected)
    assert groups.unique().tolist() == list(range(int(groups.max()) + 1))
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add(0, groups, expected)
    if expected.sum() >= 5:
        assert sums.min() >= 5 - 1e-9
    for group in range(len(sums) - 1):  # without its largest cell, a group would not have been full yet
        assert sums[group] - expected[groups == group].max() < 5 + 1e-9


def test_p_values_of_a_right_sampler_are_uniform_and_of_a_wrong_one_are_not():
    p = torch.rand(200, generator=seeded(0), dtype=torch.float64) ** 3  # many rare cells
    p = p / p.sum()
    wrong = 0.97 * p + 0.03 * p.flip(0)

    def p_values(sampler, rounds):
        draws = torch.multinomial(sampler, rounds * 4000, True, generator=seeded(1)).view(rounds, -1)
        return [statistics.chi_square(draw.bincount(minlength=200), p).p_value for draw in draws]

    assert stats.kstest(p_values(p, 300), "uniform").pvalue > 0.01
    assert stats.kstest(p_values(wrong, 300), "uniform").pvalue < 1e-6


def test_a_count_where_the_probability_is_zero_is_a_proof():
    p = torch.tensor([0.0, 0.5, 0.5])
    assert statistics.chi_square(torch.tensor([1, 500, 500]), p).p_value == 0.0
    assert statistics.chi_square(torch.tensor([0, 500, 500]), p).p_value > 0.99


@pytest.mark.parametrize("counts", [[0.5, 0.5], [-1, 101], [0, 0], [3, 3], [1, 2, 3]])
def test_counts_that_cannot_be_tested_are_refused(counts):
    with pytest.raises(ValueError, match="counts|draw more"):
        statistics.chi_square(torch.tensor(counts), torch.tensor([0.5, 0.5]))


# Intervals


def test_the_interval_is_that_of_student():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    expected = stats.t.interval(0.9, 3, loc=4.0, scale=stats.sem(values.numpy()))
    assert statistics.mean_interval(values, 0.9) == pytest.approx((4.0, *expected))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = torch.randn(2000, 4, generator=seeded(0)) + 3
    covered = sum(low <= 3 <= high for _, low, high in map(statistics.mean_interval, draws))
    assert stats.binomtest(covered, 2000, 0.95).pvalue > 0.01


@pytest.mark.parametrize("values", [torch.tensor([1.0]), torch.tensor([1.0, math.nan]), torch.ones(2, 2)])
def test_an_interval_needs_finite_values(values):
    with pytest.raises(ValueError, match="finite"):
        statistics.mean_interval(values)
