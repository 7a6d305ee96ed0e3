"""The best of k drafts: linear program, smallest cut and formula agree; simple rules stay below, as far as promised."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.samplers.optimal_transport import (
    SCHEMES,
    best_coupling,
    draft_sets,
    k_seq_acceptance,
    k_seq_scale,
    membership,
    normalised,
    optimal_acceptance,
    recursive_acceptance,
    smallest_cut,
)
from minimal.statistics import total_variation


def dirichlet(shape, seed, alpha=0.5):
    """Random distributions, float64; the last axis of `shape` is the vocabulary."""
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.full(shape[-1:], alpha, dtype=torch.float64)).sample(shape[:-1])


def pairs(count, V, seed, related):
    """Target and draft, (count, V) each: unrelated, or with a draft that is half the target."""
    p, q = dirichlet((count, V), seed), dirichlet((count, V), seed + 1000)
    return p, (p + q) / 2 if related else q


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def close(a, b, atol=1e-9):
    assert abs(float(a) - float(b)) < atol, (float(a), float(b))


# The optimum


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("related", [False, True], ids=["unrelated", "related"])
@pytest.mark.parametrize("V", [2, 3, 5, 8])
def test_the_linear_program_the_smallest_cut_and_the_formula_agree(scheme, related, V):
    for k in range(1, min(V, 4) + 1):
        for p, q in zip(*pairs(5, V, 10 * V + k, related)):
            sets = draft_sets(q, k, scheme)
            cut = smallest_cut(p, sets)[0]
            close(membership(best_coupling(p, sets)), cut)
            close(optimal_acceptance(p, q, k, scheme), cut)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "p, q",
    [
        ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7]),
        ([0.0, 1.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]),
        ([0.4, 0.0, 0.0, 0.6], [0.5, 0.5, 0.0, 0.0]),
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]),
        ([0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]),
    ],
    ids=["disjoint", "point target", "zeros in both", "equal and uniform", "ties"],
)
def test_they_agree_where_probabilities_are_zero_or_tied(scheme, p, q):
    p, q = exact(p), exact(q)
    for k in (1, 2):
        sets = draft_sets(q, k, scheme)
        cut, _ = smallest_cut(p, sets)
        close(membership(best_coupling(p, sets)), cut)
        close(optimal_acceptance(p, q, k, scheme), cut)


@given(st.integers(2, 8), st.integers(1, 3), st.sampled_from(SCHEMES), st.integers(0, 999))
def test_the_best_coupling_has_the_right_margins(V, k, scheme, seed):
    p, q = dirichlet((2, V), seed, alpha=0.3)
    k = min(k, V)
    sets = draft_sets(q + 1e-6, k, scheme) if scheme != "independent" else draft_sets(q, k, scheme)
    sets = sets / sets.sum()
    plan = best_coupling(p, sets)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), sets, rtol=0, atol=1e-9)
    torch.testing.assert_close(plan.sum(0), p, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_other_set_of_tokens_gives_a_smaller_cut_than_the_one_returned(scheme):
    p, q = dirichlet((2, 5), 3)
    sets = draft_sets(q, 2, scheme)
    value, best = smallest_cut(p, sets)
    values = []
    for H in range(32):
        P = sum(p[x] for x in range(5) if H >> x & 1)
        Q = sum(sets[s] for s in range(32) if s & ~H == 0)  # s lies in H
        values.append(float(1 + P - Q))
    close(value, min(values), 1e-12)
    close(value, values[best], 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_with_one_draft_the_optimum_is_one_minus_total_variation(scheme):
    p, q = pairs(50, 6, 1, related=False)
    torch.testing.assert_close(optimal_acceptance(p, q, 1, scheme), 1 - total_variation(p, q), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_drafts_are_never_worse_and_all_different_tokens_together_are_certain(scheme):
    p, q = pairs(100, 5, 2, related=False)
    values = torch.stack([optimal_acceptance(p, q, k, scheme) for k in range(1, 6)])
    assert (values.diff(dim=0) > -1e-12).all() and (values <= 1 + 1e-12).all()
    if scheme == "independent":
        assert (values[-1] < 1).any()
    else:
        torch.testing.assert_close(values[-1], torch.ones(100, dtype=torch.float64))


def test_drawing_without_replacement_is_at_least_as_good_as_with_it_and_strictly_so_at_times():
    p, q = pairs(300, 6, 4, related=True)
    for k in (2, 3):
        gain = optimal_acceptance(p, q, k, "distinct") - optimal_acceptance(p, q, k)
        assert (gain > -1e-12).all() and gain.max() > 0.05


def test_the_law_of_the_drafts_is_that_of_an_urn():
    q = exact([0.5, 0.3, 0.2])
    independent, distinct, greedy = (draft_sets(q, 2, scheme) for scheme in SCHEMES)
    a, b, c = 0b001, 0b010, 0b100
    for sets in (independent, distinct, greedy):
        close(sets.sum(), 1, 1e-12)
    close(independent[a], 0.25, 1e-12)
    close(independent[a | b], 2 * 0.5 * 0.3, 1e-12)
    close(distinct[a], 0, 1e-12)
    close(distinct[a | b], 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7, 1e-12)
    close(distinct[b | c], 0.3 * 0.2 / 0.7 + 0.2 * 0.3 / 0.8, 1e-12)
    close(greedy[a | b], 0.3 / 0.5, 1e-12)
    close(greedy[a | c], 0.2 / 0.5, 1e-12)


def test_the_formula_serves_vocabularies_that_no_program_could():
    p, q = pairs(20, 5000, 5, related=True)
    for k in (2, 8, 64):
        optimum, k_seq = optimal_acceptance(p, q, k), k_seq_acceptance(p, q, k)
        assert (k_seq <= optimum + 1e-9).all()
        assert (optimum <= torch.minimum(p, k * q).sum(-1) + 1e-12).all()  # a token is offered k q times at most
    assert optimal_acceptance(p, q, 64, "greedy").shape == (20,)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_batches_of_any_shape_are_computed_row_by_row(scheme):
    p, q = pairs(6, 5, 6, related=False)
    together = optimal_acceptance(p.view(2, 3, 5), q.view(2, 3, 5), 2, scheme)
    assert together.shape == (2, 3)
    for value, a, b in zip(together.flatten(), p, q):
        close(optimal_acceptance(a, b, 2, scheme), value, 1e-12)


# K-SEQ


@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_k_seq_keeps_its_guarantee_on_a_thousand_random_instances(k):
    torch.manual_seed(k)
    worst = 1.0
    for V in (2, 3, 5, 8, 17):
        for alpha in (0.1, 0.5):
            p, q = dirichlet((50, V), 7 * V + k, alpha), dirichlet((50, V), 8 * V + k, alpha)
            for q in (q, (p + q) / 2):
                got, optimum = k_seq_acceptance(p, q, k), optimal_acceptance(p, q, k)
                assert (got <= optimum + 1e-9).all()
                assert (got >= (1 - (1 - 1 / k) ** k) * optimum - 1e-9).all()
                assert (got >= 1 - total_variation(p, q) - 1e-9).all()  # never worse than one draft
                worst = min(worst, (got / optimum.clamp(min=1e-12))[optimum > 1e-9].min().item())
    assert worst < 0.95  # the instances were not all easy


@pytest.mark.parametrize("k", [1, 2, 5])
def test_what_k_seq_hands_out_and_what_it_repairs_add_up_to_the_target(k):
    p, q = pairs(500, 7, 9, related=False)
    rho = k_seq_scale(p, q, k)
    handed_out = torch.minimum(q, p / rho)
    beta = handed_out.sum(-1, keepdim=True)
    accepted = 1 - (1 - beta) ** k
    left = p - handed_out * accepted / beta
    assert left.min() > -1e-12 and (rho >= 1).all() and (rho <= k).all()
    torch.testing.assert_close(left.sum(-1, keepdim=True), 1 - accepted, rtol=0, atol=1e-12)
    torch.testing.assert_close(left, (p - rho * q).clamp(min=0), rtol=0, atol=1e-8)  # the inflated draft
    torch.testing.assert_close(accepted, torch.minimum(p, rho * q).sum(-1, keepdim=True), rtol=0, atol=1e-8)


def test_a_smaller_scale_would_hand_out_more_than_there_is():
    p, q = pairs(200, 6, 11, related=True)
    rho = 1 + 0.9 * (k_seq_scale(p, q, 3) - 1)
    handed_out = torch.minimum(q, p / rho)
    beta = handed_out.sum(-1, keepdim=True)
    left = p - handed_out * (1 - (1 - beta) ** 3) / beta
    assert (left.amin(-1) < -1e-6).all()


def test_one_number_of_drafts_per_row_may_be_given():
    p, q = pairs(4, 6, 12, related=False)
    k = torch.tensor([1, 2, 3, 4])
    for i in range(4):
        close(k_seq_acceptance(p, q, k)[i], k_seq_acceptance(p[i], q[i], i + 1), 1e-12)


def test_a_perfect_draft_is_always_kept_and_a_useless_one_never():
    p, q = exact([0.6, 0.4, 0.0]), exact([0.0, 0.0, 1.0])
    for k in (1, 2, 5):
        for rule in (optimal_acceptance, k_seq_acceptance, recursive_acceptance):
            close(rule(p, p, k), 1, 1e-9)
            close(rule(p, q, k), 0, 1e-9)


# Recursive rejection


def test_recursive_rejection_stays_below_the_optimum_of_its_scheme():
    for related in (False, True):
        p, q = pairs(200, 6, 13, related)
        one = 1 - total_variation(p, q)
        for distinct, scheme in ((False, "independent"), (True, "distinct")):
            for k in (1, 2, 3):
                got = recursive_acceptance(p, q, k, distinct)
                assert (got <= optimal_acceptance(p, q, k, scheme) + 1e-9).all()
                assert (got >= one - 1e-9).all()


def test_with_independent_drafts_the_refusals_multiply():
    p, q = pairs(100, 6, 14, related=False)
    refused = torch.ones(100, dtype=torch.float64)
    target = p
    for k in (1, 2, 3):
        refused = refused * total_variation(target, q)
        target = normalised((target - q).clamp(min=0))
        torch.testing.assert_close(recursive_acceptance(p, q, k), 1 - refused, rtol=0, atol=1e-12)


def test_with_all_tokens_as_distinct_drafts_recursive_rejection_ends_at_one_of_them_too():
    p, q = pairs(100, 4, 15, related=False)
    got = recursive_acceptance(p, q, 4, distinct=True)
    torch.testing.assert_close(got, torch.ones(100, dtype=torch.float64), rtol=0, atol=1e-9)


def test_weights_that_vanish_are_replaced():
    fallback = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    got = normalised(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), fallback)
    torch.testing.assert_close(got, torch.tensor([[0.5, 0.5], [0.25, 0.75]]))


# Bad input


@pytest.mark.parametrize("call", [draft_sets, lambda q, k, s: optimal_acceptance(q, q, k, s)], ids=["sets", "formula"])
@pytest.mark.parametrize(
    "k, scheme, message",
    [
        (0, "independent", "k is 0; at least one draft"),
        (-1, "greedy", "k is -1"),
        (2, "lucky", "no scheme 'lucky'; drafts are independent, distinct, greedy"),
        (3, "distinct", "k is 3, but q gives only 2 tokens a chance"),
        (3, "greedy", "k is 3, but q gives only 2 tokens a chance"),
    ],
)
def test_impossible_drafts_are_refused(call, k, scheme, message):
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([0.5, 0.5, 0.0, 0.0]), k, scheme)


def test_what_cannot_be_listed_is_refused_with_advice():
    q = torch.full((70,), 1 / 70)
    with pytest.raises(ValueError, match="use optimal_acceptance"):
        draft_sets(q, 2)
    with pytest.raises(ValueError, match="too many sets to list"):
        optimal_acceptance(q, q, 2, "distinct")
    with pytest.raises(ValueError, match="too many sets to list"):
        optimal_acceptance(q[:50], q[:50], 8, "distinct")
    with pytest.raises(ValueError, match=r"8\^7 tuples of drafts are too many"):
        draft_sets(q[:8], 7)
    assert math.isclose(float(optimal_acceptance(q, q, 4)), 1, abs_tol=1e-6)
