"""The KL autoencoder: an exact divergence that counts whole images, tokens of unit variance, a theory to agree with."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from minimal import checkpoints
from minimal.data import load
from minimal.metrics import psnr
from minimal.tokenizers.kl import DiagonalGaussian, KLTokenizer, active_units
from minimal.train import EMA, fit


def tiny(**options):
    torch.manual_seed(0)
    return KLTokenizer(**dict(image_shape=(3, 8, 4), dim=5, widths=(8, 8)) | options)


def images(n=2, shape=(3, 8, 4)):
    return torch.rand(n, *shape) * 2 - 1


def test_the_standard_normal_costs_nothing_and_every_other_costs_something():
    assert not DiagonalGaussian(torch.zeros(2, 3, 8)).kl().any()
    kl = DiagonalGaussian(torch.randn(50, 8)).kl()
    assert kl.shape == (50, 4) and (kl > 0).all()


def test_the_divergence_is_that_of_torch():
    moments = torch.randn(20, 7, 6, dtype=torch.float64) * 2
    region = DiagonalGaussian(moments)
    expected = kl_divergence(Normal(region.mean, region.std), Normal(0.0, 1.0))
    torch.testing.assert_close(region.kl(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(region.mean, moments[..., :3])
    torch.testing.assert_close(region.std.square().log(), moments[..., 3:])


def test_the_divergence_is_the_mean_log_ratio_of_draws(generator):
    region = DiagonalGaussian(torch.tensor([0.7, -1.5, 0.4, -2.0]).repeat(200_000, 1))
    z = region.sample(generator)
    ratio = Normal(region.mean, region.std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    torch.testing.assert_close(ratio.mean(0), region.kl()[0], rtol=0.01, atol=0)


def test_the_divergence_of_almost_nothing_is_not_lost_in_rounding():
    """var − 1 − log var is about ε²/2 at log var = ε; computed as written, float32 gives 0 or noise."""
    kl = DiagonalGaussian(torch.tensor([0.0, 1e-4])).kl()
    torch.testing.assert_close(kl, torch.tensor([2.5e-9]), rtol=0.01, atol=0)


def test_draws_have_the_mean_and_the_width(generator):
    region = DiagonalGaussian(torch.tensor([2.0, -1.0, math.log(0.25), math.log(9.0)]).repeat(100_000, 1))
    z = region.sample(generator)
    torch.testing.assert_close(z.mean(0), torch.tensor([2.0, -1.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 3.0]), rtol=0.02, atol=0)
    assert torch.equal(region.sample(torch.Generator().manual_seed(3)), region.sample(torch.Generator().manual_seed(3)))


def test_a_draw_carries_the_gradient_to_mean_and_width():
    moments = torch.tensor([[0.3, -1.0]], requires_grad=True)
    z = DiagonalGaussian(moments).sample()
    z.sum().backward()
    torch.testing.assert_close(moments.grad, torch.tensor([[1.0, (z.item() - 0.3) / 2]]))


def test_extreme_widths_stay_finite():
    region = DiagonalGaussian(torch.tensor([0.0, 0.0, -1e9, 1e9]))
    assert region.std.isfinite().all() and region.kl().isfinite().all() and region.std[0] > 0


@pytest.mark.parametrize("cells", [(8, 4), (16, 8)])
def test_the_divergence_is_summed_over_an_image_and_averaged_over_the_batch(cells):
    """A mean over cells and channels would be the same number with a weight that is N · D times smaller."""
    model, x = tiny(image_shape=(3, *cells), weight=0.5), images(6, (3, *cells))
    torch.manual_seed(4)
    loss, logs = model.loss(x)
    region = model.posterior(x)
    whole = kl_divergence(Normal(region.mean, region.std), Normal(0.0, 1.0)).flatten(1).sum(1)  # (6,)
    torch.testing.assert_close(logs["kl"], whole.mean())
    torch.manual_seed(4)
    mse = (model.paint(region.sample()) - x).square().mean()
    torch.testing.assert_close(logs["mse"], mse)
    torch.testing.assert_close(loss, mse + 0.5 * whole.mean())
    per_image = [model.loss(x[i : i + 1])[1]["kl"] for i in range(6)]
    torch.testing.assert_close(torch.stack(per_image).mean(), whole.mean())


def test_the_divergence_is_computed_in_float32_under_autocast():
    model, x = tiny(), images()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.latents(x).dtype == torch.bfloat16
        region = model.posterior(x)
        _, logs = model.loss(x)
    moments = torch.cat((region.mean, region.logvar), -1)
    assert region.kl().dtype == logs["kl"].dtype == torch.float32
    torch.testing.assert_close(logs["kl"], DiagonalGaussian(moments.double()).kl().sum((1, 2)).mean().float())
    torch.testing.assert_close(model.loss(x)[1]["kl"], logs["kl"], rtol=0.05, atol=0)


def test_tokens_are_the_middle_and_always_the_same():
    model, x = tiny().eval(), images()
    tokens = model.encode(x)
    assert tokens.shape == (2, model.length, 5) == (2, 8, 5) and tokens.is_floating_point()
    assert torch.equal(tokens, model.encode(x)) and torch.equal(tokens, model.posterior(x).mean)
    assert torch.equal(model.decode(tokens), model.decode(model.encode(x)))
    assert model.decode(tokens).shape == x.shape
    assert model.vocab_size is None and not model.levels.any() and model.levels.shape == (8,)


def test_draws_scatter_around_the_middle(generator):
    model, x = tiny().eval(), images(1)
    model.quantizer.scale.fill_(2.0)
    drawn = model.sample(x.expand(20_000, -1, -1, -1), generator)
    torch.testing.assert_close(drawn.mean(0), model.encode(x)[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), model.posterior(x).std[0] / 2, rtol=0.03, atol=0)


def test_calibrated_tokens_have_unit_variance_and_paint_the_same_pictures():
    model, x = tiny().eval(), images(700)
    model.encoder[-1].bias.data[:5] += torch.tensor([3.0, 0.0, -2.0, 0.0, 1.0])
    before, codes = model.decode(model.encode(x)), model.embed(model.encode(x))
    model.calibrate(x)
    tokens = model.encode(x)
    torch.testing.assert_close(tokens.mean((0, 1)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(model.embed(tokens), codes)
    torch.testing.assert_close(model.decode(tokens), before)
    ratio = tokens.std((0, 1)) / codes.std((0, 1))
    torch.testing.assert_close(ratio, ratio[0].expand(5))  # one scale: channels keep their proportions
    model.calibrate(x)
    torch.testing.assert_close(model.encode(x), tokens)  # calibrating twice is calibrating once


def test_the_scale_survives_a_checkpoint(tmp_path):
    model, x = tiny().eval(), images(50)
    model.calibrate(x)
    checkpoints.save(model, tmp_path / "kl.safetensors")
    loaded = checkpoints.load(tmp_path / "kl.safetensors")
    assert loaded.weight == model.weight
    torch.testing.assert_close(loaded.encode(x), model.encode(x), rtol=0, atol=0.01)  # float16


def test_collapsed_latents_have_no_scale():
    model = tiny()
    torch.nn.init.zeros_(model.encoder[-1].weight)
    with pytest.raises(ValueError, match="collapsed"):
        model.calibrate(images(20))


def test_upto_shows_the_mean_of_the_latents_behind():
    model = tiny().eval()
    model.calibrate(images(50))
    tokens = torch.randn(1, 8, 5)
    cut = tokens.clone()
    cut[:, 4:] = 0  # the mean of calibrated tokens
    torch.testing.assert_close(model.decode(tokens, upto=4), model.decode(cut))
    assert torch.equal(model.decode(tokens, upto=8), model.decode(tokens))


def test_active_units_are_those_that_differ_between_images(generator):
    means = torch.randn(1000, 2, 3, generator=generator) * torch.tensor([[1.0, 0.2, 0.05], [0.0, 0.11, 0.09]]) + 7
    assert active_units(means) == 3


class Linear(torch.nn.Module):
    """The autoencoder with linear maps, whose best weights are known: moments (..., 2D) are W x and constants."""

    def __init__(self, pixels, dim, weight):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(pixels, dim, bias=False), torch.nn.Linear(dim, pixels, bias=False)
        self.logvar, self.weight = torch.nn.Parameter(torch.zeros(dim)), weight

    def posterior(self, x):
        mean = self.encoder(x)
        return DiagonalGaussian(torch.cat((mean, self.logvar.expand_as(mean)), -1))

    def paint(self, z):
        return self.decoder(z)

    latents = None
    loss = KLTokenizer.loss


@pytest.mark.slow
def test_linear_maps_find_the_principal_components_worth_their_price():
    """Known optimum (arXiv 1911.02469): with pixel noise s² = weight · P / 2 a component of variance λ > s² costs
    ½ log(λ / s²) nats and leaves the error s², a smaller one is silent and leaves λ. A wrong sum would move s²."""
    variance = torch.tensor([9.0, 4.0, 1.0, 0.5, 0.01, 0.01])
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    x = torch.randn(20_000, 6)
    x = torch.linalg.svd(x - x.mean(0), full_matrices=False).U * len(x) ** 0.5  # covariance I, exactly
    x = x * variance.sqrt() @ basis.T
    noise = 0.7  # between the third and the fourth
    model = Linear(6, 4, weight=2 * noise / 6)
    fit(
        model,
        (x,),
        torch.optim.Adam(model.parameters(), 0.01),
        steps=3000,
        batch_size=500,
        ema=EMA(model, 0.99),
        progress=False,
    )
    region = model.posterior(x)
    kept = variance[variance > noise]
    assert active_units(region.mean) == len(kept) == 3
    nats = region.kl().sum(-1).mean().item()
    assert nats == pytest.approx(((kept / noise).log() / 2).sum().item(), rel=0.03)
    error = F.mse_loss(model.paint(region.sample()), x).item() * 6
    assert error == pytest.approx(variance.clamp(max=noise).sum().item(), rel=0.03)


@pytest.mark.slow
def test_it_overfits_eight_images():
    torch.manual_seed(0)
    model, x = KLTokenizer((1, 8, 8), dim=4, widths=(16, 16)), images(8, (1, 8, 8))
    fit(model, (x,), torch.optim.Adam(model.parameters(), 3e-3), steps=400, batch_size=8, progress=False)
    assert (model.decode(model.encode(x)) - x).square().mean() < 0.1 * x.var()


@pytest.mark.slow
def test_the_shipped_tokenizer_has_tokens_of_unit_variance_and_the_quality_of_its_header():
    model, x = checkpoints.load("shapes_kl"), load("shapes", "validation", version="scene").images[:200]
    with torch.inference_mode():
        tokens, nats = model.encode(x), model.posterior(x).kl().flatten(1).sum(1).mean().item()
        shown = model.decode(tokens).clamp(-1, 1)
    assert tokens.shape == (200, 64, 4) and tokens.isfinite().all()
    torch.testing.assert_close(tokens.mean((0, 1)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(tokens.std(), torch.tensor(1.0), rtol=0, atol=0.05)
    metrics = checkpoints.header("shapes_kl")["metrics"]
    assert psnr(shown, x).mean().item() == pytest.approx(metrics["validation_psnr"], abs=0.5)
    assert nats == pytest.approx(metrics["validation_kl_nats"], rel=0.05)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 1, 8, 4), "expected images of shape"),
        (torch.full((2, 3, 8, 4), 1.5), "in \\[-1, 1\\]"),
        (torch.full((2, 3, 8, 4), torch.nan), "NaN"),
    ],
)
def test_bad_images_are_refused(x, message):
    model = tiny()
    for method in (model.encode, model.sample, model.loss, model.calibrate):
        with pytest.raises(ValueError, match=message):
            method(x)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(1, 9, 5), r"\(B, 8, 5\)"),
        (torch.zeros(8, 5), r"\(B, 8, 5\)"),
        (torch.zeros(1, 8, 4), r"\(\.\.\., 5\)"),
        (torch.zeros(1, 8, 5).long(), "floating"),
        (torch.full((1, 8, 5), torch.nan), "NaN or inf"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        tiny().decode(tokens)


@pytest.mark.parametrize("weight", [-1e-6, math.nan, math.inf])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        tiny(weight=weight)
