"""Solvers: their order, their cost, their grids."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.flows.solvers import SOLVERS, integrate, time_grid, trajectory

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
A = torch.tensor([[-0.5, 2.0], [-2.0, -0.3]], dtype=torch.float64)
START = torch.tensor([[1.0, 0.5]], dtype=torch.float64)


def turning(x, t):
    """dx/dt = (1 + t) A x, whose solution at t = 1 is exp(1.5 A) x: linear, and explicit in time."""
    return (1 + t) * x @ A.T


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_error_falls_with_the_order_of_the_solver(solver):
    exact = START @ torch.linalg.matrix_exp(1.5 * A).T
    errors = [(integrate(turning, START, time_grid(n), solver) - exact).norm().item() for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_asks_for_the_velocity_as_often_as_promised(solver):
    times = []

    def counted(x, t):
        times.append(t)
        return turning(x, t)

    integrate(counted, START, time_grid(5), solver)
    assert len(times) == 5 * CALLS[solver]
    assert max(times) < 1 or solver in ("heun", "rk4")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_velocity_is_followed_exactly(solver):
    x = integrate(lambda x, t: torch.full_like(x, 3.0), START, [0.0, 0.2, 1.0], solver)
    torch.testing.assert_close(x, START + 3)


def test_time_may_run_backwards():
    there = integrate(turning, START, time_grid(100), "rk4")
    torch.testing.assert_close(integrate(turning, there, time_grid(100)[::-1], "rk4"), START)


def test_the_trajectory_has_one_state_per_time():
    states = list(trajectory(turning, START, time_grid(4), "heun"))
    assert len(states) == 5 and torch.equal(states[0], START)
    assert torch.equal(states[-1], integrate(turning, START, time_grid(4), "heun"))


@given(t=st.floats(0, 0.9), share=st.floats(0.01, 1))
def test_an_euler_step_is_a_ddim_step(t, share):
    """With v = (d − x)/(1 − t), Euler mixes the point and the data guess d in the proportions of DDIM."""
    after = t + share * (1 - t)
    x, d = torch.randn(2, 6, dtype=torch.float64)
    step = integrate(lambda x, t: (d - x) / (1 - t), x, [t, after])
    torch.testing.assert_close(step, x * (1 - after) / (1 - t) + d * (after - t) / (1 - t))


@given(n=st.integers(1, 60), shift=st.floats(0.1, 10))
def test_a_grid_rises_from_noise_to_data(n, shift):
    times = time_grid(n, shift)
    assert len(times) == n + 1 and times[0] == 0 and times[-1] == 1
    assert all(a < b for a, b in zip(times, times[1:]))


def test_without_shift_the_grid_is_uniform():
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]


@given(a=st.floats(0.2, 5), b=st.floats(0.2, 5))
def test_two_shifts_are_one_by_their_product(a, b):
    once = [t / (t + b * (1 - t)) for t in time_grid(8, a)]
    assert once == pytest.approx(time_grid(8, a * b))


@pytest.mark.parametrize("bad", [{"num_steps": 0}, {"num_steps": 4, "shift": 0.0}])
def test_a_grid_without_steps_or_with_a_shift_of_zero_is_refused(bad):
    with pytest.raises(ValueError, match="num_steps >= 1 and shift > 0"):
        time_grid(**bad)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="unknown solver 'dopri5'.*rk4"):
        integrate(turning, START, time_grid(2), "dopri5")
