"""Whatever comes, and in whatever order: requests are served once each, in one row at a time, and nobody is lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal.samplers.queueing import SimulatedEngine, workload
from minimal.samplers.scheduler import CONTINUOUS, SHRINKING, STATIC, Request, serve

POLICIES = {"static": STATIC, "shrinking": SHRINKING, "continuous": CONTINUOUS}
STEP = SimulatedEngine(lambda rows: 1.0)

times = st.floats(0, 60, allow_nan=False)
some = st.lists(st.tuples(st.integers(1, 20), times, st.integers(0, 5)), min_size=1, max_size=25)


@settings(max_examples=80)
@given(some, st.integers(1, 5), st.sampled_from(sorted(POLICIES)), st.sampled_from([0.0, 0.3]))
def test_every_request_is_served_once_in_one_row_at_a_time(sizes, slots, policy, move_seconds):
    policy = POLICIES[policy]
    requests = [Request(torch.zeros(P, dtype=torch.long), new, arrival) for new, arrival, P in sizes]
    engine = SimulatedEngine(lambda rows: 1 + 0.1 * rows, lambda length: 0.2 * length, move_seconds)
    served = serve(requests, engine, slots, policy)
    seen = {r: [] for r in range(len(requests))}
    for n, step in enumerate(served.steps):
        live = [r for r in step.rows if r is not None]
        assert live and len(step.rows) <= slots and len(set(live)) == len(live)
        assert not (policy.shrink and None in step.rows)
        for r in live:
            seen[r].append(n)
    for r, request in enumerate(requests):
        assert seen[r] == list(range(seen[r][0], seen[r][0] + request.new_tokens))  # once, and without a pause
        first, last = served.steps[seen[r][0]], served.steps[seen[r][-1]]
        assert request.arrival <= served.admitted[r] <= first.start
        assert served.first[r] == first.start + first.seconds and served.finished[r] == last.start + last.seconds
    order = sorted(range(len(requests)), key=lambda r: requests[r].arrival)
    assert served.admitted[order].diff().ge(0).all()  # first come, first served
    for before, after in zip(served.steps, served.steps[1:]):
        assert before.start + before.seconds <= after.start + 1e-9
    assert sum(served.spent.values()) <= served.finished.max() + 1e-6
    assert served.spent["prefill"] == pytest.approx(sum(0.2 * P for _, _, P in sizes))
    assert served.spent["step"] == pytest.approx(sum(step.seconds for step in served.steps))


@given(some, st.integers(1, 5))
def test_a_continuous_batch_leaves_no_row_empty_while_somebody_waits(sizes, slots):
    requests = [Request(torch.zeros(P, dtype=torch.long), new, arrival) for new, arrival, P in sizes]
    served = serve(requests, STEP, slots)
    for step in served.steps:
        if len(step.rows) < slots:
            assert not any(q.arrival <= step.start < t for q, t in zip(requests, served.admitted.tolist(), strict=True))


@given(some, st.integers(1, 5), st.sampled_from(["static", "shrinking"]))
def test_a_static_batch_is_closed_until_its_last_member_is_done(sizes, slots, policy):
    requests = [Request(torch.zeros(P, dtype=torch.long), new, arrival) for new, arrival, P in sizes]
    served = serve(requests, STEP, slots, POLICIES[policy])
    batches, members = [], set()
    for step in served.steps:
        live = {r for r in step.rows if r is not None}
        if not live <= members:
            assert not live & members
            batches.append(members := live)
    for batch, following in zip(batches, batches[1:]):
        assert max(served.finished[list(batch)]) <= min(served.admitted[list(following)])
        assert len(batch) == slots or all(requests[r].arrival > max(served.admitted[list(batch)]) for r in following)


@given(some, st.sampled_from(sorted(POLICIES)))
def test_one_slot_is_a_plain_queue(sizes, policy):
    requests = [Request(torch.zeros(0, dtype=torch.long), new, arrival) for new, arrival, _ in sizes]
    served = serve(requests, SimulatedEngine(lambda rows: 0.5), 1, POLICIES[policy])
    clock = 0.0
    for r in sorted(range(len(requests)), key=lambda r: requests[r].arrival):
        clock = max(clock, requests[r].arrival) + 0.5 * requests[r].new_tokens
        assert served.finished[r] == pytest.approx(clock)
        clock = served.finished[r].item()


def test_equal_lengths_leave_nothing_to_gain():
    requests = workload(torch.full((40,), 17))
    runs = [serve(requests, SimulatedEngine(lambda rows: 1 + 0.1 * rows), 8, p) for p in POLICIES.values()]
    assert len({len(run.steps) for run in runs}) == 1 and len({run.throughput for run in runs}) == 1
    assert all(torch.equal(run.finished, runs[0].finished) for run in runs)


def test_holes_are_closed_from_the_end():
    requests = [Request(torch.zeros(0, dtype=torch.long), new) for new in (1, 3, 1, 2)]
    steps = [step.rows for step in serve(requests, STEP, 4).steps]
    assert steps == [(0, 1, 2, 3), (3, 1), (1,)]
    steps = [step.rows for step in serve(requests, STEP, 4, STATIC).steps]
    assert steps == [(0, 1, 2, 3), (None, 1, None, 3), (None, 1, None, None)]
    assert serve(requests, STEP, 4, STATIC).padding == 5 / 12


def test_an_idle_server_waits_for_the_next_arrival():
    requests = [Request(torch.zeros(0, dtype=torch.long), 2, arrival) for arrival in (7.0, 20.0)]
    served = serve(requests, STEP, 4)
    assert served.finished.tolist() == [9.0, 22.0] and served.latency.tolist() == [2.0, 2.0]
    assert served.throughput == 4 / 15
