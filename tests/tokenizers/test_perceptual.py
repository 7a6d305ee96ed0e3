"""Perceptual distance: zero only where the network sees no difference, blind to gain, frozen but differentiable."""

import pytest
import torch
from torch import nn

from minimal import checkpoints, data
from minimal.judge import Judge
from minimal.tokenizers.perceptual import PerceptualDistance, sharpness, stages_of, unit


def distance(seed: int = 0) -> PerceptualDistance:
    torch.manual_seed(seed)
    return PerceptualDistance(Judge(3, channels=3, image_size=16, width=8).trunk)


def pair(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(2, n, 3, 16, 16) * 2 - 1)


def test_an_image_is_at_distance_zero_from_itself_and_the_order_does_not_matter():
    apart, (x, y) = distance(), pair()
    assert torch.equal(apart(x, x), torch.zeros(5))
    assert torch.equal(apart(x, y), apart(y, x))
    assert (apart(x, y) > 0).all()


def test_it_is_the_formula_of_the_docstring():
    apart, (x, y) = distance(), pair()
    expected = torch.zeros(5)
    assert apart.stages == (1, 3, 7)  # 16 x 16, 8 x 8, and 4 x 4 after the last normalisation
    for stage in apart.stages:
        a, b = apart.trunk[: stage + 1](x), apart.trunk[: stage + 1](y)
        cosine = torch.cosine_similarity(a, b, dim=1)  # |u - v|² = 2 - 2 cos for vectors of length one
        expected += (2 - 2 * cosine).mean((1, 2))
    torch.testing.assert_close(apart(x, y), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(apart.per_stage(x, y).sum(1), apart(x, y))


def test_every_image_is_measured_alone():
    apart, (x, y) = distance(), pair()
    torch.testing.assert_close(apart(x[2:3], y[2:3]), apart(x, y)[2:3])


def test_unit_features_have_length_one_and_forget_gain():
    features = torch.randn(2, 7, 3, 3)
    torch.testing.assert_close(unit(features).norm(dim=1), torch.ones(2, 3, 3))
    torch.testing.assert_close(unit(5 * features), unit(features))


def test_dark_features_have_a_finite_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit(features).sum().backward()
    assert features.grad.isfinite().all()


def test_the_gradient_reaches_the_image_but_not_the_network():
    apart, (x, y) = distance(), pair()
    x.requires_grad_()
    apart(x, y).sum().backward()
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in apart.parameters())


def test_it_stays_in_eval_mode_inside_a_module_that_trains():
    apart, (x, y) = distance(), pair()
    outer = nn.ModuleList([apart, nn.Dropout()]).train()
    assert outer[1].training and not any(module.training for module in apart.modules())
    assert torch.equal(apart(x, y), apart(x, y))


def test_the_gradient_is_that_of_finite_differences():
    apart, (x, y) = distance().double(), pair(1)
    x, y = x.double().requires_grad_(), y.double()
    [slope] = torch.autograd.grad(apart(x, y).sum(), x)
    step = torch.randn_like(x)
    change = (apart(x + 1e-5 * step, y) - apart(x - 1e-5 * step, y)).sum() / 2e-5
    torch.testing.assert_close(change, (slope * step).sum(), rtol=1e-5, atol=1e-8)


def test_stages_are_found_and_wrong_ones_explained():
    assert stages_of(Judge(16, channels=3, image_size=32).trunk) == (1, 3, 5, 9)
    with pytest.raises(ValueError, match="name its stages"):
        stages_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    for stages in ((), (2,), (-1,)):
        with pytest.raises(ValueError, match="places in a trunk of 2 layers"):
            PerceptualDistance(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), stages=stages)
    with pytest.raises(ValueError, match="one shape"):
        distance()(torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_the_network_of_the_loss_is_not_the_judge():
    """Another seed: no two weights agree, though both know the shapes."""
    theirs, ours = checkpoints.load("judge_shapes"), checkpoints.load("perceptual_shapes")
    for a, b in zip(theirs.trunk.parameters(), ours.trunk.parameters()):
        assert not torch.equal(a, b)
    held_out = data.load("shapes", "validation", version="single")
    seen = ours.eval()(held_out.images[:200]).argmax(1)
    assert (seen == held_out.labels[:200]).double().mean() > 0.95


def test_sharpness_is_one_for_the_same_detail_and_falls_with_its_square():
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert sharpness(x, x) == 1
    assert sharpness(x / 2 + 0.3, x) == pytest.approx(1 / 4, rel=1e-4)  # half the contrast; brightness does not count
    assert sharpness(torch.zeros_like(x), x) == 0
