"""What the scheduler gains agrees with theory, and depends on lengths, slots and load alone."""

import itertools

import pytest
import torch
from tiny import seeded

from minimal.samplers.queueing import SimulatedEngine, saturated_gain, step_costs, workload
from minimal.samplers.scheduler import CONTINUOUS, SHRINKING, STATIC, serve


def uniform(n, low=16, high=256, seed=0):
    return torch.randint(low, high + 1, (n,), generator=seeded(seed))


def run(lengths, policy, slots=8, fixed=1.0, per_row=0.1, **arrivals):
    engine = SimulatedEngine(lambda rows: fixed + per_row * rows)
    return serve(workload(lengths, generator=seeded(1), **arrivals), engine, slots, policy)


def test_the_expected_longest_is_that_of_all_draws():
    lengths = torch.tensor([3, 1, 7, 7])
    draws = list(itertools.product(lengths.tolist(), repeat=3))
    mean = sum(map(max, draws)) / len(draws)
    assert saturated_gain(lengths, 3) == pytest.approx(mean / 4.5)
    assert saturated_gain(lengths, 1) == 1 and saturated_gain(torch.full((5,), 9), 8) == 1


@pytest.mark.parametrize("slots", [4, 8, 16])
@pytest.mark.parametrize("lengths", [uniform(600), uniform(600, 48, 64), torch.tensor([16] * 480 + [256] * 120)])
def test_saturated_throughput_gains_what_theory_says(lengths, slots):
    lengths = lengths[torch.randperm(600, generator=seeded(2))]
    gain = run(lengths, CONTINUOUS, slots).throughput / run(lengths, STATIC, slots).throughput
    assert gain == pytest.approx(saturated_gain(lengths, slots), rel=0.06)  # 600 requests end in a tail


def test_eight_slots_and_16_to_256_tokens_gain_at_least_one_half():
    for load in (float("inf"), 2.0):
        rate = load * run(uniform(600), CONTINUOUS).throughput / 136
        gain = run(uniform(600), CONTINUOUS, rate=rate).throughput / run(uniform(600), STATIC, rate=rate).throughput
        assert gain >= 1.5


def test_neither_model_nor_machine_occurs_in_the_gain():
    def gain(**cost):
        return run(uniform(600), CONTINUOUS, **cost).throughput / run(uniform(600), STATIC, **cost).throughput

    assert gain(per_row=0.02) == pytest.approx(gain(per_row=0.3), rel=0.01)
    assert gain(fixed=1.0) == pytest.approx(gain(fixed=5.0), rel=0.01)


@pytest.mark.parametrize("per_row", [0.02, 0.15, 0.3])
def test_a_static_batch_that_shrinks_loses_only_the_fixed_share(per_row):
    lengths = uniform(600)
    gain = run(lengths, CONTINUOUS, per_row=per_row).throughput / run(lengths, SHRINKING, per_row=per_row).throughput
    share = 1 / (1 + 8 * per_row)
    assert gain == pytest.approx(1 + share * (saturated_gain(lengths, 8) - 1), rel=0.03)


def test_at_half_load_throughput_is_equal_and_latency_is_not():
    lengths = uniform(600)
    rate = 0.5 * run(lengths, CONTINUOUS).throughput / lengths.double().mean().item()
    ours, static = (run(lengths, policy, rate=rate) for policy in (CONTINUOUS, STATIC))
    assert 0.99 < ours.throughput / static.throughput < 1.03
    assert static.latency.mean() > 1.5 * ours.latency.mean()


def test_the_costs_of_a_step_are_found_in_the_log():
    fixed, per_row = step_costs(run(uniform(50), SHRINKING, fixed=2.0, per_row=0.3))
    assert fixed == pytest.approx(2.0) and per_row == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"at least two widths, got \[1\]"):
        step_costs(run(uniform(5), CONTINUOUS, slots=1))


def test_arrivals_come_at_their_rate():
    requests = workload(torch.ones(4000), rate=5.0, prompt=32, generator=seeded(0))
    arrivals = torch.tensor([request.arrival for request in requests])
    gaps = arrivals.diff()
    assert gaps.min() >= 0 and gaps.mean() == pytest.approx(0.2, rel=0.05) and gaps.std() == pytest.approx(0.2, rel=0.1)
    prompts = {len(request.prompt) for request in requests}
    assert prompts == set(range(33)) and [request.seed for request in requests] == list(range(4000))
    assert {request.arrival for request in workload(torch.ones(3))} == {0.0}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="give a positive number of requests"):
        workload(torch.ones(3), rate=rate)


@pytest.mark.parametrize("lengths, slots", [([], 2), ([0.0, 1.0], 2), ([1.0], 0), ([[1.0]], 2)])
def test_lengths_that_say_nothing_are_refused(lengths, slots):
    with pytest.raises(ValueError, match="give positive lengths"):
        saturated_gain(torch.tensor(lengths), slots)
