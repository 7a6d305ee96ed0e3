"""The network: what it gives before training, and what it depends on."""

import pytest
import torch
from torch import nn

from minimal.flows.velocity_net import VelocityNet


def network(**options):
    """Random weights everywhere, so that nothing is hidden by an output that starts at zero."""
    net = VelocityNet((1, 4, 4), num_classes=3, width=16, depth=2, cond_width=8, **options).double().eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def inputs(n=5):
    x, t = torch.randn(n, 1, 4, 4, dtype=torch.float64), torch.rand(n, dtype=torch.float64) * 0.9
    return x, t, torch.arange(n) % 3


def test_an_untrained_network_guesses_grey_data():
    net = VelocityNet((1, 4, 4)).double()
    x, t, _ = inputs()
    torch.testing.assert_close(net(x, t), -x / (1 - t).view(-1, 1, 1, 1))


def test_the_velocity_leads_to_the_guess_of_the_data():
    net = network()
    x, t, cond = inputs()
    c = net.labels(cond) + net.times[0](t)
    reached = x + (1 - t).view(-1, 1, 1, 1) * net(x, t, cond)
    torch.testing.assert_close(reached, net.mlp(x.flatten(1), c).view_as(x))


def test_the_velocity_stays_finite_at_the_data_end():
    x, _, cond = inputs()
    assert network()(x, torch.ones(5, dtype=torch.float64), cond).isfinite().all()


def test_no_label_is_the_null_class():
    net = network()
    x, t, cond = inputs()
    assert torch.equal(net(x, t), net(x, t, torch.full_like(cond, 3)))
    assert not torch.allclose(net(x, t), net(x, t, cond))


def test_both_times_matter_and_both_are_asked_for():
    net = network(num_times=2)
    x, t, cond = inputs()
    assert not torch.allclose(net(x, t, cond, t * 0), net(x, t, cond, t * 0 + 0.1))
    with pytest.raises(ValueError):
        net(x, t, cond)


def test_examples_do_not_see_each_other():
    net = network()
    x, t, cond = inputs()
    torch.testing.assert_close(net(x, t, cond)[2:3], net(x[2:3], t[2:3], cond[2:3]))


def test_every_weight_receives_a_gradient():
    net = network()
    net(*inputs()).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
