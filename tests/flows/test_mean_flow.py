"""Mean flow: the identity, its derivative, and flow matching as its limit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import column, gaussian, gaussian_map
from torch import nn

from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.flows.solvers import integrate, time_grid


def random_model(**options):
    model = MeanFlow((3,), num_classes=2, width=16, depth=2, **options).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def batch(n=6, dim=3):
    x, v = torch.randn(2, n, dim, dtype=torch.float64)
    t = torch.rand(n, dtype=torch.float64) * 0.6
    return x, v, t, t + 0.3


@given(t=st.floats(0.0, 0.9), share=st.floats(0.05, 1.0))
def test_the_average_velocity_of_a_gaussian_satisfies_the_identity(t, share):
    model, cond = gaussian_map(), torch.arange(6) % 3
    t = torch.full((6,), t, dtype=torch.float64)
    r = t + share * (1 - t)
    x = torch.randn(6, 2, dtype=torch.float64)
    v = gaussian().velocity(x, t, cond)
    u, target = model.identity(x, v, t, r, cond)
    torch.testing.assert_close(u, target, atol=1e-8, rtol=1e-8)


def test_a_wrong_sign_breaks_the_identity():
    model, (x, _, t, r) = gaussian_map(), batch(dim=2)
    v = gaussian().velocity(x, t)
    u, target = model.identity(x, v, t, r)
    assert (u - (2 * v - target)).abs().max() > 0.1  # v − (r − t) du/dt


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_derivative_along_the_trajectory_equals_a_finite_difference(dropout):
    """With dropout too: one mask for value and derivative, or its noise would be taken for a change in time."""
    model, (x, v, t, r), step = random_model(dropout=dropout), batch(), 1e-6

    def u(s):
        torch.manual_seed(0)
        return model.average_velocity(x + s * v, t + s, r)

    torch.manual_seed(0)
    _, target = model.identity(x, v, t, r)
    difference = (u(step) - u(-step)) / (2 * step)
    torch.testing.assert_close(target, v + column(r - t) * difference, atol=1e-5, rtol=1e-6)


def test_with_equal_times_the_target_is_the_velocity():
    x, v, t, _ = batch()
    model = random_model().eval()
    u, target = model.identity(x, v, t, t)
    assert torch.equal(target, v)
    torch.testing.assert_close(u, model.velocity(x, t))


def test_with_equal_times_only_the_loss_is_that_of_flow_matching():
    model, x1, cond = random_model().eval(), torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 2
    model.flow_share = 1.0
    t, r = model.sample_intervals(40, torch.Generator().manual_seed(3))
    assert torch.equal(t, r)
    model.sample_times = lambda n, generator: t  # the same times for both
    mean_flow, _ = model.loss(x1, cond, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    noise = torch.Generator().manual_seed(5)
    torch.rand(40, generator=noise)  # the draws that decide whether r = t
    flow, _ = FlowMatching.loss(model, x1, cond, generator=noise)
    torch.testing.assert_close(mean_flow, flow)


def test_no_gradient_flows_through_the_target():
    model, (x, v, t, r) = random_model(), batch()
    u, target = model.identity(x, v, t, r)
    assert u.requires_grad and not target.requires_grad
    (u - target).square().mean().backward()
    got = [p.grad.clone() for p in model.parameters()]
    expected = torch.autograd.grad((model.average_velocity(x, t, r) - target).square().mean(), model.parameters())
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs)


def test_a_step_over_the_whole_interval_equals_the_integral_of_the_velocity():
    x = torch.randn(6, 2, dtype=torch.float64)
    zero, one = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    crossed = x + gaussian_map().average_velocity(x, zero, one)
    field = gaussian()
    followed = integrate(lambda x, t: field.velocity(x, x.new_full((6,), t)), x, time_grid(200), "rk4")
    torch.testing.assert_close(crossed, followed, atol=1e-7, rtol=0)


@given(n=st.integers(1, 200), share=st.floats(0, 1))
def test_intervals_never_run_backwards(n, share):
    model = MeanFlow((2,), width=8, depth=1)
    model.flow_share = share
    t, r = model.sample_intervals(n)
    assert (t <= r).all() and (0 < t).all() and (r < 1).all()


def test_the_share_of_equal_times_is_as_asked():
    model = MeanFlow((2,), width=8, depth=1)
    t, r = model.sample_intervals(10000)
    assert (t == r).double().mean().item() == pytest.approx(0.75, abs=0.02)


def test_a_bad_batch_is_refused():
    model = MeanFlow((2,), num_classes=2, width=8, depth=1)
    with pytest.raises(ValueError, match="NaN or inf"):
        model.loss(torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="labels run from"):
        model.loss(torch.zeros(3, 2), torch.tensor([0, 1, 5]))
