"""Flow matching: the regression that it is, the field that it finds, and the distribution to which that field leads."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Mixture, gaussian
from torch import nn

from minimal.flows.flow_matching import FlowMatching
from minimal.flows.solvers import integrate, time_grid
from minimal.samplers.flow import sample_flow
from minimal.train import adamw

CENTRES = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [1.0, -1.0]], dtype=torch.float64)


class Fixed(nn.Module):
    """A network that says the same at every point and time, and remembers what it was asked."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, t, cond=None):
        self.asked = (x, t, cond)
        return torch.zeros_like(x) + self.value


def test_the_loss_is_the_squared_distance_to_the_velocity_of_the_line():
    x1 = torch.randn(6, 2)
    net = Fixed(0.5)
    loss, _ = FlowMatching((2,), net=net).loss(x1)
    x_t, t, _ = net.asked
    x0 = (x_t - t[:, None] * x1) / (1 - t[:, None])  # the noise that must have been drawn
    torch.testing.assert_close(loss, (0.5 - (x1 - x0)).square().mean(), rtol=1e-3, atol=1e-4)


def test_the_network_may_not_see_the_data_at_the_noise_end():
    net = Fixed(0.0)
    FlowMatching((2,), net=net, logit_normal=(-20.0, 0.1)).loss(torch.full((4000, 2), 50.0))
    x_t, t, _ = net.asked
    assert t.max() < 1e-6 and abs(x_t.mean()) < 0.1 and abs(x_t.std() - 1) < 0.1


def test_conditional_and_marginal_loss_have_the_same_gradient():
    """Three data points and a grid of x_t: regression on each line, against regression on their posterior mean."""
    t, model = 0.6, nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    axis = torch.linspace(-3, 3, 25, dtype=torch.float64)
    x_t = torch.cartesian_prod(axis, axis)
    x0 = (x_t[:, None] - t * CENTRES) / (1 - t)  # (points, 3, 2): the noise with which each data point is seen at x_t
    weight = torch.distributions.Normal(0, 1).log_prob(x0).sum(-1).exp()  # joint density of (x_t, x1), up to a constant
    target = CENTRES - x0
    marginal = (weight[..., None] * target).sum(1) / weight.sum(1, keepdim=True)

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters(), retain_graph=True)])

    v = model(x_t)
    conditional_loss = (weight * (v[:, None] - target).square().sum(-1)).sum()
    marginal_loss = (weight.sum(1) * (v - marginal).square().sum(-1)).sum()
    torch.testing.assert_close(gradient(conditional_loss), gradient(marginal_loss))
    assert conditional_loss > 1.05 * marginal_loss  # the losses differ, by the variance of the lines


def test_the_field_of_a_mixture_has_the_likelihood_of_the_mixture():
    """log p1(x) = log p0(x at t = 0) − ∫ div v dt, integrated backwards from data."""
    model = FlowMatching((2,), net=Mixture(CENTRES, 0.4))
    x = CENTRES.repeat(4, 1) + 0.4 * torch.randn(12, 2, dtype=torch.float64)

    def velocity_and_divergence(state, t):
        x = state[:, :2].requires_grad_()
        with torch.enable_grad():
            v = model.velocity(x, torch.full((len(x),), t, dtype=x.dtype))
            rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
        return torch.cat((v.detach(), sum(rows)[:, None]), dim=1)

    times = [1 - 1e-9 - t for t in time_grid(200)]  # v = 0 / 0 at exactly 1
    times[-1] = 0.0
    state = integrate(velocity_and_divergence, torch.cat((x, torch.zeros(12, 1).double()), dim=1), times, "rk4")
    log_noise = torch.distributions.Normal(0, 1).log_prob(state[:, :2]).sum(-1)
    likelihood = log_noise + state[:, 2]  # time ran backwards, so the integral has the other sign
    expected = model.net.log_density(x, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(likelihood, expected, atol=1e-3, rtol=0)


def test_no_field_has_a_lower_loss_than_the_conditional_expectation():
    model, x1 = gaussian(), torch.tensor([0.5, 0.5]) + 0.5 * torch.randn(20000, 2)
    net = model.net

    def loss(change):
        model.net = change
        return model.loss(x1.double(), generator=torch.Generator().manual_seed(0))[0].item()

    class Changed(nn.Module):
        def __init__(self, offset, slope):
            super().__init__()
            self.offset, self.slope = offset, slope

        def forward(self, x, t, cond=None):
            return net(x, t, cond) + self.offset + self.slope * x

    best = loss(net)
    assert all(loss(Changed(o, s)) > best + 1e-3 for o, s in [(0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)])


def test_a_tiny_model_learns_four_images_and_draws_them():
    torch.manual_seed(0)
    x1, cond = torch.randn(4, 1, 3, 3).sign(), torch.arange(4)
    model = FlowMatching((1, 3, 3), num_classes=4, width=32, depth=2)
    optimizer = adamw(model, 3e-3, weight_decay=0.0)
    for _ in range(250):
        loss, _ = model.loss(x1.repeat(16, 1, 1, 1), cond.repeat(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images = sample_flow(model.eval(), 4, cond=cond, num_steps=20, generator=torch.Generator().manual_seed(1)).images
    assert (images - x1).abs().max() < 0.3


@given(mean=st.floats(-2, 2), deviation=st.floats(0.1, 2))
def test_logit_normal_times_have_their_median_where_it_was_asked(mean, deviation):
    t = FlowMatching(logit_normal=(mean, deviation)).sample_times(4001)
    share_below = (t < 1 / (1 + math.exp(-mean))).double().mean()
    assert abs(share_below - 0.5) < 5 * 0.5 / 4001**0.5
    assert 0 < t.min() and t.max() < 1


def test_times_are_uniform_when_no_logit_normal_is_given():
    t = FlowMatching(logit_normal=None).sample_times(10000)
    assert (t.histc(10, 0, 1) - 1000).abs().max() < 150


def test_labels_are_dropped_in_training_only():
    net = Fixed(nn.Parameter(torch.zeros(())))
    model = FlowMatching((2,), num_classes=3, label_dropout=0.3, net=net)
    cond = torch.arange(5000) % 3
    model.train().loss(torch.zeros(5000, 2), cond)
    dropped = (net.asked[2] == 3).double().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.03)
    model.eval().loss(torch.zeros(5000, 2), cond)
    assert torch.equal(net.asked[2], cond)


def test_the_same_generator_gives_the_same_loss(generator):
    model, x1, cond = FlowMatching((2,), num_classes=3, width=8, depth=1), torch.randn(9, 2), torch.arange(9) % 3
    first = model.loss(x1, cond, generator=generator)[0]
    torch.manual_seed(1)
    again = model.loss(x1, cond, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(first, again)


def test_a_model_is_rebuilt_from_its_config():
    model = FlowMatching((2,), num_classes=3, width=8, depth=1, logit_normal=None)
    again = FlowMatching(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.logit_normal is None and again.shape == (2,)


BAD = {
    "another shape": (torch.zeros(3, 1, 8, 7), None, r"float \(B, 1, 8, 8\)"),
    "whole numbers": (torch.zeros(3, 1, 8, 8, dtype=torch.long), None, "float"),
    "not a number": (torch.full((3, 1, 8, 8), torch.nan), None, "NaN or inf"),
    "infinity": (torch.full((3, 1, 8, 8), torch.inf), None, "NaN or inf"),
    "a label too many": (torch.zeros(3, 1, 8, 8), torch.zeros(4, dtype=torch.long), "labels"),
    "a label out of range": (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 11]), "labels run from 0 to 11"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused(name):
    x1, cond, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        FlowMatching(num_classes=10, width=8, depth=1).loss(x1, cond)
