"""iFSQ: one slope makes normal latents uniform, and what that is worth depends on the width of the bins."""

import math

import pytest
import torch

from minimal.tokenizers.fsq import FSQ
from minimal.tokenizers.ifsq import IFSQ


def normal(n=400_000):
    """A standard normal without luck: its quantiles, (n, 1)."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]


def gap(quantizer):
    """How many bits the entropy of one level lacks to log2 L, on a standard normal."""
    share = quantizer.double().nearest(normal()).bincount(minlength=quantizer.vocab_size).double() / len(normal())
    return math.log2(quantizer.vocab_size) - torch.special.entr(share).sum().item() / math.log(2)


def kolmogorov(slope):
    """Largest distance between the distribution of the squashed normal and the uniform one."""
    z = normal().squeeze()
    uniform = (torch.arange(len(z), dtype=torch.float64) + 0.5) / len(z)
    return (torch.sigmoid(slope * z) - uniform).abs().max().item()


def test_slope_1_6_is_nearly_the_normal_distribution_function():
    assert kolmogorov(1.6) == pytest.approx(0.017, abs=5e-4)
    assert kolmogorov(2.0) == pytest.approx(0.044, abs=5e-4)
    assert kolmogorov(1.702) == pytest.approx(0.0095, abs=5e-4)


@pytest.mark.parametrize("levels", [3, 5, 7, 9, 17])
def test_with_equal_bins_the_entropy_gap_is_at_most_two_fifths(levels):
    assert gap(IFSQ((levels,), "equal")) <= 0.4 * gap(FSQ((levels,), "equal"))


@pytest.mark.parametrize("levels", [3, 5, 7, 9, 17])
def test_with_endpoint_bins_the_gap_grows_instead(levels):
    """The published rounding starves its outer bins, and a uniform value makes that worse than tanh does."""
    assert gap(IFSQ((levels,), "endpoint")) > 2 * gap(FSQ((levels,), "endpoint"))


def test_the_entropies_of_seventeen_levels():
    bits = {(c, b): math.log2(17) - gap(c((17,), b)) for c in (FSQ, IFSQ) for b in ("endpoint", "equal")}
    expected = {(FSQ, "endpoint"): 4.058, (IFSQ, "endpoint"): 4.018, (FSQ, "equal"): 4.058, (IFSQ, "equal"): 4.078}
    for case, value in expected.items():
        assert bits[case] == pytest.approx(value, abs=2e-3), case


@pytest.mark.parametrize("levels", [3, 5, 17])
def test_endpoint_bins_are_the_published_formula(levels):
    """round(y h) / h with y = 2σ(1.6 z) − 1, h = (L − 1)/2; ours reaches 0.001 further, which moves borders."""
    z = normal(20_001)
    half = (levels - 1) / 2
    scaled = (2 * torch.sigmoid(1.6 * z) - 1) * half
    q = IFSQ((levels,), "endpoint").double()(z)[0]
    at_border = ((scaled % 1) - 0.5).abs() < 1.1e-3 * half
    assert at_border.double().mean() < 0.05
    torch.testing.assert_close(q[~at_border], scaled[~at_border].round() / half)


@pytest.mark.parametrize("bins", ["endpoint", "equal"])
@pytest.mark.parametrize("levels", [(5, 5), (9, 3), (17,)])
def test_slope_two_is_fsq(levels, bins):
    ours, z = IFSQ(levels, bins), 2 * torch.randn(1000, len(levels))
    assert not torch.equal(ours(z)[1], FSQ(levels, bins)(z)[1])
    ours.slope = 2.0
    for a, b in zip(ours(z), FSQ(levels, bins)(z)):
        assert torch.equal(a, b)


def test_even_levels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        IFSQ((5, 4))
