"""Sampling from flows, against Gaussians whose flow is known in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.flows.solvers import integrate, time_grid
from minimal.samplers.flow import guided_velocity, sample_flow, sample_flow_map
from minimal.samplers.trace import Trace

MEANS, DEVIATION = torch.tensor([[0.3, -0.2], [-0.2, 0.1], [0.1, 0.1]], dtype=torch.float64), 0.1


class Bell(nn.Module):
    """The exact field from N(0, 1) to N(mean, deviation²), one mean per label; with a span, the exact average."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))  # gives the model a dtype and a device

    def forward(self, x, t, cond=None, span=None):
        mean, t = MEANS[torch.full((len(x),), 2) if cond is None else cond], t[:, None]

        def spread(t):
            return (t**2 * DEVIATION**2 + (1 - t) ** 2).sqrt()

        if span is None:
            return mean + (t * DEVIATION**2 - (1 - t)) / spread(t) ** 2 * (x - t * mean)
        r = t + span[:, None]
        return (r * mean + spread(r) / spread(t) * (x - t * mean) - x) / (r - t)


def bell(model=FlowMatching):
    return model((2,), num_classes=2, net=Bell()).eval()


def small(model=FlowMatching):
    model = model((1, 4, 4), num_classes=3, width=16, depth=2).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n):
    return torch.randn(n, 2, generator=seeded()).double()


LABELS = torch.arange(24) % 2


def test_following_the_field_of_a_gaussian_scales_and_moves_the_noise():
    images = sample_flow(bell(), 24, cond=LABELS, num_steps=100, solver="rk4", generator=seeded()).images
    torch.testing.assert_close(images, MEANS[LABELS] + DEVIATION * noise(24), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_exact_flow_map_arrives_in_any_number_of_steps(num_steps):
    images = sample_flow_map(bell(MeanFlow), 24, cond=LABELS, num_steps=num_steps, generator=seeded()).images
    torch.testing.assert_close(images, MEANS[LABELS] + DEVIATION * noise(24), atol=1e-12, rtol=0)


def test_without_labels_the_null_class_is_drawn():
    images = sample_flow(bell(), 24, num_steps=100, solver="rk4", generator=seeded()).images
    torch.testing.assert_close(images, MEANS[2] + DEVIATION * noise(24), atol=1e-5, rtol=0)


@given(scale=st.floats(0, 2))
def test_guidance_between_equal_bells_draws_from_the_tilted_product(scale):
    """p_c^w p_null^(1-w) of two Gaussians of one width is a Gaussian at null + w (c − null)."""
    field = guided_velocity(bell(), LABELS, scale)
    with torch.no_grad():
        x = integrate(field, noise(24), time_grid(60), "rk4")
    centre = MEANS[2] + scale * (MEANS[LABELS] - MEANS[2])
    torch.testing.assert_close(x, centre + DEVIATION * noise(24), atol=1e-4, rtol=0)


def test_guidance_of_one_is_the_conditional_field_bit_for_bit():
    model, cond = small(), torch.tensor([0, 1, 2, 0])
    x, t = torch.randn(4, 1, 4, 4, dtype=torch.float64), 0.4
    conditional = model.velocity(x, torch.full((4,), t, dtype=torch.float64), cond)
    assert torch.equal(guided_velocity(model, cond, 1.0)(x, t), conditional)
    torch.testing.assert_close(guided_velocity(model, cond, 1.0 + 1e-12)(x, t), conditional)  # the doubled batch


def test_guidance_mixes_the_two_fields_linearly():
    model, cond = small(), torch.tensor([0, 1, 2, 0])
    x, t = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    conditional, null = model.velocity(x, t, cond), model.velocity(x, t)
    torch.testing.assert_close(guided_velocity(model, cond, 3.0)(x, 0.4), null + 3 * (conditional - null))


@pytest.mark.parametrize("solver, calls", [("euler", 7), ("midpoint", 14), ("heun", 14), ("rk4", 28)])
def test_the_trace_counts_every_pass(solver, calls):
    trace = sample_flow(small(), 5, num_steps=7, solver=solver).trace
    assert trace.forwards == {"velocity": calls} and trace.rows == {"velocity": 5 * calls}
    assert sample_flow_map(small(MeanFlow), 5, num_steps=3).trace.forwards == {"average velocity": 3}


def test_guidance_doubles_the_work_and_not_the_waiting():
    trace, cond = Trace(), torch.zeros(5, dtype=torch.long)
    guided_velocity(small(), cond, 2.0, trace)(torch.randn(5, 1, 4, 4, dtype=torch.float64), 0.0)
    assert (trace.forwards["velocity"], trace.rows["velocity"], trace.positions["velocity"]) == (1, 5, 10)


@pytest.mark.parametrize("sample, model", [(sample_flow, FlowMatching), (sample_flow_map, MeanFlow)])
def test_one_seed_one_image_whatever_the_batch(sample, model):
    model, options = small(model), {"num_steps": 4}
    many = sample(model, 6, generator=seeded(3), **options).images
    assert torch.equal(many, sample(model, 6, generator=seeded(3), **options).images)
    torch.testing.assert_close(many[:2], sample(model, 2, generator=seeded(3), **options).images)
    assert not torch.allclose(many, sample(model, 6, generator=seeded(4), **options).images)


def test_images_lie_in_the_range_of_images():
    images = sample_flow(small(), 50, num_steps=2).images
    assert images.shape == (50, 1, 4, 4) and images.abs().max() <= 1


def test_a_mean_flow_is_also_a_flow():
    exact = bell(MeanFlow)
    exact.net.forward = lambda x, t, cond=None, span=None: Bell.forward(exact.net, x, t, cond)  # r = t: the velocity
    images = sample_flow(exact, 24, cond=LABELS, num_steps=100, solver="rk4", generator=seeded()).images
    torch.testing.assert_close(images, MEANS[LABELS] + DEVIATION * noise(24), atol=1e-5, rtol=0)


BAD = {
    "no samples": ({"n": 0}, "at least 1"),
    "no steps": ({"num_steps": 0}, "num_steps >= 1"),
    "an unknown solver": ({"solver": "dopri5"}, "unknown solver"),
    "a label too many": ({"cond": torch.zeros(3, dtype=torch.long)}, "labels"),
    "a label out of range": ({"cond": torch.tensor([0, 4])}, "labels run from 0 to 4"),
    "guidance without labels": ({"guidance_scale": 2.0}, "guidance needs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sample_flow(small(), **({"n": 2, "num_steps": 2} | change))


def test_sampling_with_dropout_on_is_refused():
    with pytest.raises(ValueError, match="model.eval()"):
        sample_flow(small().train(), 2)
    with pytest.raises(ValueError, match="model.eval()"):
        sample_flow_map(small(MeanFlow).train(), 2)
