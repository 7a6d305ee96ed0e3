"""The yardsticks themselves: each against a closed form, an enumeration or a hand-made example."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal import metrics


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(n, mean, factor, seed=0):
    """n points whose sample mean is exactly `mean` (F,) and whose sample covariance is exactly factorᵀ factor."""
    x = noise(n, len(mean), seed=seed)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)  # columns orthonormal, centred: covariance one
    return x @ factor + mean


# Likelihood


def test_eight_fair_bits_per_pixel_are_eight_bits_per_dimension():
    assert metrics.bits_per_dim(64 * math.log(256), 64) == pytest.approx(8)
    torch.testing.assert_close(metrics.bits_per_dim(torch.tensor([0.0, 3 * math.log(2)]), 3), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("nats, dims", [(float("nan"), 3), (torch.tensor([1.0, math.inf]), 3), (1.0, 0)])
def test_bits_per_dim_refuses_what_is_no_likelihood(nats, dims):
    with pytest.raises(ValueError, match="nan|NaN|at least 1"):
        metrics.bits_per_dim(nats, dims)


# Context


class Looks(torch.nn.Module):
    """Probability `share` on the token before, the rest on token 0; a token model with the given sensitivity."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def logits(self, tokens, cond=None):
        last = torch.nn.functional.one_hot(tokens.roll(1, 1), 3).double()
        return (self.share * last + (1 - self.share) * torch.eye(3, dtype=torch.double)[0]).log()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_context_sensitivity_is_the_share_of_a_forecast_that_the_context_decides(share):
    tokens = torch.tensor([[1, 1, 1, 0], [2, 2, 2, 0]])
    assert metrics.context_sensitivity(Looks(share), tokens) == pytest.approx(share)


def test_context_sensitivity_exchanges_beginnings_but_not_labels():
    tokens, cond = torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([0, 1])

    class Labelled(Looks):
        def logits(self, tokens, cond):
            return super().logits(tokens) + 9 * cond[:, None, None] * torch.eye(3)[2]

    assert metrics.context_sensitivity(Labelled(0.5), tokens, cond) == 0
    with pytest.raises(ValueError, match="at least 2"):
        metrics.context_sensitivity(Looks(0.5), tokens[:1])


# Fréchet distance


def test_frechet_distance_of_axis_aligned_gaussians_is_the_closed_form():
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, -2.0]).double()
    std_a, std_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.5, 3.0]).double()
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    a, b = spread(50, mean_a, std_a.diag()), spread(80, mean_b, std_b.diag(), seed=1)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_distance_of_correlated_gaussians_equals_the_formula_with_a_matrix_square_root():
    from scipy.linalg import sqrtm

    factor_a, factor_b, mean = noise(5, 5, seed=2), noise(5, 5, seed=3), noise(5, seed=4)
    cov_a, cov_b = (factor_a.T @ factor_a).numpy(), (factor_b.T @ factor_b).numpy()
    expected = mean.square().sum().item() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    measured = metrics.frechet_distance(spread(40, mean, factor_a), spread(60, mean * 0, factor_b, seed=1))
    assert measured == pytest.approx(expected, rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_frechet_distance_is_symmetric_and_zero_only_from_a_set_to_itself(n, features, seed):
    a, b = noise(n, features, seed=seed), noise(n, features, seed=seed + 1) + 1  # fewer points than features too
    assert metrics.frechet_distance(a, a[torch.randperm(n)]) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a), rel=1e-9)
    assert metrics.frechet_distance(a, b) > 1e-3


def test_the_floor_compares_disjoint_sets():
    # One image of 2n is different: it is in exactly one of two disjoint sets, so every draw gives the same distance.
    n, c = 5, 3.0
    features = torch.zeros(2 * n, 1)
    features[4] = c
    assert metrics.frechet_floor(features, n) == pytest.approx(c**2 / n**2 + c**2 / n)


def test_the_floor_falls_with_the_number_of_images_and_repeats_with_the_seed():
    features = noise(1000, 8)
    floors = [metrics.frechet_floor(features, n, torch.Generator().manual_seed(0)) for n in (50, 200, 500)]
    assert floors[0] > 2 * floors[1] > 3 * floors[2] > 0
    assert floors[0] == metrics.frechet_floor(features, 50, torch.Generator().manual_seed(0))
    assert floors[0] != metrics.frechet_floor(features, 50, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="disjoint"):
        metrics.frechet_floor(features, 501)


def test_with_labels_the_floor_compares_sets_with_equal_shares_of_the_classes():
    # Images of one class are all alike, so two sets with the same classes are the same set.
    labels = torch.arange(4).repeat_interleave(torch.tensor([4, 8, 8, 12]))
    features = noise(4, 3)[labels]
    assert metrics.frechet_floor(features, 16, labels=labels) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_floor(features, 8, labels=labels) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_floor(features, 16, torch.Generator().manual_seed(0)) > 0.01


# Kernel distance


@pytest.mark.parametrize("p, q", [((0.5, 0.5), (0.5, 0.5)), ((0.5, 0.5), (0.25, 0.75)), ((1.0, 0.0), (0.0, 1.0))])
def test_kernel_distance_is_unbiased_over_all_samples_of_a_small_world(p, q):
    places = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    p, q = torch.tensor(p).double(), torch.tensor(q).double()
    kernel = (places @ places.T / 2 + 1) ** 3
    mean = 0.0
    for a in itertools.product((0, 1), repeat=2):  # every sample of 2 from p, every sample of 3 from q
        for b in itertools.product((0, 1), repeat=3):
            weight = p[list(a)].prod() * q[list(b)].prod()
            mean += weight.item() * metrics.kernel_distance(places[list(a)], places[list(b)])
    assert mean == pytest.approx(((p - q) @ kernel @ (p - q)).item(), abs=1e-9)


# Precision and recall


def test_a_set_has_full_precision_and_recall_against_itself():
    x = noise(100, 6)
    assert metrics.precision_recall(x, x.clone()) == (1.0, 1.0)
    copies = x.repeat(4, 1) + 1000  # with 3 neighbours at distance 0 the radius is 0, to the last bit
    assert metrics.precision_recall(copies, copies.flip(0)[:390]) == (1.0, 1.0)


def test_the_manifold_reaches_to_the_kth_neighbour():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii 1, 1, 1, 8 for k = 1 and 2, 1, 2, 9 for k = 2
    samples = torch.tensor([[-1.5], [1.5], [18.5], [30.0]])  # radii 3, 3, 11.5, 11.5 for k = 1
    assert metrics.precision_recall(real, samples, k=1).precision == 1 / 4
    assert metrics.precision_recall(real, samples, k=2).precision == 3 / 4
    assert metrics.precision_recall(real, samples, k=1).recall == 1.0
    assert metrics.precision_recall(real, samples + 100, k=1) == (0.0, 0.0)


def test_a_missing_mode_costs_recall_and_an_invented_one_precision():
    left, right = noise(200, 4), noise(200, 4, seed=1) + 50
    both = torch.cat([left, right])
    missing = metrics.precision_recall(both, left)
    assert missing.precision == 1.0 and missing.recall == 0.5
    invented = metrics.precision_recall(left, both)
    assert invented.precision == 0.5 and invented.recall == 1.0


def test_precision_recall_refuses_more_neighbours_than_points():
    with pytest.raises(ValueError, match="neighbours"):
        metrics.precision_recall(noise(3, 2), noise(9, 2))


@pytest.mark.parametrize("measure", [metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall])
def test_features_of_wrong_shape_or_with_nan_are_refused(measure):
    bad = noise(9, 3)
    bad[2, 1] = math.nan
    for a, b in [(noise(9, 3), noise(9, 4)), (noise(9), noise(9)), (noise(1, 3), noise(9, 3)), (noise(9, 3), bad)]:
        with pytest.raises(ValueError, match="features"):
            measure(a, b)


# Judges


def test_batches_change_nothing_and_keep_no_gradient():
    layer = torch.nn.Linear(4, 2)
    x = torch.randn(10, 4)
    parts = metrics.batched(layer, x, batch_size=3)
    assert not parts.requires_grad
    torch.testing.assert_close(parts, layer(x).detach())


def test_label_accuracy_counts_the_labels_that_the_judge_sees():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 0])
    assert metrics.label_accuracy(torch.nn.Identity(), images, labels) == 0.75
    with pytest.raises(ValueError, match="labels"):
        metrics.label_accuracy(torch.nn.Identity(), images, labels[:3])


# Image against image


def test_psnr_of_a_constant_error_is_the_closed_form_image_by_image():
    x = noise(3, 1, 8, 8).clamp(-1, 1)
    error = torch.tensor([0.02, 0.2, 0.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(metrics.psnr(x, x + error), torch.tensor([40.0, 20.0, math.inf]).double())
    torch.testing.assert_close(metrics.psnr(x, x + 0.1, data_range=1.0), torch.full((3,), 20.0).double())


def test_ssim_of_flat_images_is_its_luminance_term():
    a, b, c1 = 0.5, -0.25, (0.01 * 2) ** 2
    x, y = torch.full((2, 1, 8, 8), a), torch.full((2, 1, 8, 8), b)
    torch.testing.assert_close(metrics.ssim(x, y), torch.full((2,), (2 * a * b + c1) / (a * a + b * b + c1)).double())


def test_ssim_equals_the_formula_of_the_paper_written_out():
    x, y = noise(4, 3, 11, 9, seed=1).clamp(-1, 1), noise(4, 3, 11, 9, seed=2).clamp(-1, 1)
    y[0], y[1] = x[0], x[1] * 0.5
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    p, q = (z.unfold(2, 7, 1).unfold(3, 7, 1).flatten(4) for z in (x, y))  # (B, C, H - 6, W - 6, 49)
    cov = ((p - p.mean(-1, True)) * (q - q.mean(-1, True))).sum(-1) / 48
    luminance = (2 * p.mean(-1) * q.mean(-1) + c1) / (p.mean(-1) ** 2 + q.mean(-1) ** 2 + c1)
    structure = (2 * cov + c2) / (p.var(-1) + q.var(-1) + c2)
    torch.testing.assert_close(metrics.ssim(x, y), (luminance * structure).mean((1, 2, 3)))
    assert metrics.ssim(x, y)[0].item() == pytest.approx(1)


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_images_that_cannot_be_compared_are_refused(measure):
    x = torch.zeros(2, 1, 8, 8)
    for y in (x[:1], torch.zeros(2, 3, 8, 8), x + math.nan):
        with pytest.raises(ValueError):
            measure(x, y)
    with pytest.raises(ValueError, match="7 x 7"):
        metrics.ssim(torch.zeros(2, 1, 6, 6), torch.zeros(2, 1, 6, 6))


# Codebooks


def test_perplexity_counts_equally_frequent_codes():
    assert metrics.perplexity(torch.arange(8).repeat(3), 8) == pytest.approx(8)
    assert metrics.perplexity(torch.zeros(5, 2, dtype=torch.long), 8) == pytest.approx(1)
    assert metrics.perplexity(torch.tensor([0, 0, 1]), 4) == pytest.approx(3 / 2 ** (2 / 3))
    assert metrics.codebook_usage(torch.tensor([[0, 3], [3, 3]]), 8) == 0.25


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=60))
def test_perplexity_lies_between_one_and_the_number_of_used_codes(codes):
    indices = torch.tensor(codes)
    assert 1 - 1e-9 <= metrics.perplexity(indices, 16) <= metrics.codebook_usage(indices, 16) * 16 + 1e-9


@pytest.mark.parametrize("measure", [metrics.codebook_usage, metrics.perplexity])
@pytest.mark.parametrize("indices", [[8], [-1], [0.5], []])
def test_indices_outside_the_codebook_are_refused(measure, indices):
    with pytest.raises(ValueError, match="indices"):
        measure(torch.tensor(indices, dtype=torch.float if indices == [0.5] else torch.long), 8)
