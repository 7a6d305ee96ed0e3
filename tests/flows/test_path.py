"""The path: its two ends, its derivative, and four views that are one."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.flows.path import VIEWS, Path


class Circle(Path):
    """α = sin, σ = cos of a quarter turn: the variance-preserving path."""

    def coefficients(self, t):
        angle = t * math.pi / 2
        return angle.sin(), angle.cos(), math.pi / 2 * angle.cos(), -math.pi / 2 * angle.sin()


def samples(*shape, seed=0):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def view(path, name, x0, x1, t):
    """The view by its definition, from both ends of the path."""
    sigma = path.coefficients(torch.as_tensor(t, dtype=x0.dtype).view(-1, 1))[1]
    return {"data": x1, "noise": x0, "velocity": path.velocity(x0, x1, t), "score": -x0 / sigma}[name]


def test_the_straight_line_runs_from_noise_to_data():
    x0, x1 = samples(4, 3)
    assert torch.equal(Path().point(x0, x1, 0.0), x0)
    assert torch.equal(Path().point(x0, x1, 1.0), x1)
    assert torch.equal(Path().velocity(x0, x1, 0.3), x1 - x0)


def test_times_belong_to_rows():
    x0, x1 = samples(3, 1, 2, 2)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    point = Path().point(x0, x1, t)
    for row in range(3):
        torch.testing.assert_close(point[row], t[row] * x1[row] + (1 - t[row]) * x0[row])


@pytest.mark.parametrize("path", [Path(), Circle()])
@given(t=st.floats(0.05, 0.95))
def test_the_velocity_is_the_derivative_of_the_point(path, t):
    x0, x1 = samples(4, 3)
    step = 1e-6
    difference = (path.point(x0, x1, t + step) - path.point(x0, x1, t - step)) / (2 * step)
    torch.testing.assert_close(path.velocity(x0, x1, t), difference, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("path", [Path(), Circle()])
@pytest.mark.parametrize("source, target", list(permutations(VIEWS, 2)))
def test_every_view_gives_every_other_and_comes_back(path, source, target):
    x0, x1 = samples(7, 3)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    x_t, value = path.point(x0, x1, t), view(path, source, x0, x1, t)
    converted = path.convert(value, x_t, t, source, target)
    torch.testing.assert_close(converted, view(path, target, x0, x1, t))
    torch.testing.assert_close(path.convert(converted, x_t, t, target, source), value)


def test_the_straight_line_has_the_formulas_of_its_docstring():
    x_t, v = samples(5, 2)
    t = 0.3
    torch.testing.assert_close(Path().convert(v, x_t, t, "velocity", "data"), x_t + (1 - t) * v)
    torch.testing.assert_close(Path().convert(v, x_t, t, "velocity", "noise"), x_t - t * v)


def test_the_score_is_the_gradient_of_the_log_density():
    mean, deviation, t = 1.5, 0.4, torch.tensor(0.6, dtype=torch.float64)
    spread = (t**2 * deviation**2 + (1 - t) ** 2).sqrt()
    x_t = samples(50, 1)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(torch.distributions.Normal(t * mean, spread).log_prob(x_t).sum(), x_t)
    data = mean + t * deviation**2 / spread**2 * (x_t - t * mean)  # E[x1 | x_t] of a Gaussian
    torch.testing.assert_close(Path().convert(data.detach(), x_t.detach(), t, "data", "score"), gradient)


@given(t=st.floats(0.05, 0.95), scale=st.floats(0, 5))
def test_guidance_commutes_with_conversion(t, scale):
    (x_t, noise), (null_noise, _) = samples(4, 3), samples(4, 3, seed=1)

    def velocity(noise):
        return Path().convert(noise, x_t, t, "noise", "velocity")

    guided = torch.lerp(velocity(null_noise), velocity(noise), scale)
    torch.testing.assert_close(velocity(torch.lerp(null_noise, noise, scale)), guided)


def test_an_unknown_view_is_refused():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="unknown view 'epsilon'"):
        Path().convert(x, x, 0.5, "epsilon", "data")
