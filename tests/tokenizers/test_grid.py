"""The frame of all grid tokenizers, and the contract that each of them keeps, whatever its quantizer."""

import pytest
import torch
from leveled import same, unchanged
from torch import nn

from minimal.tokenizers.bsq import BSQTokenizer
from minimal.tokenizers.fsq import FSQTokenizer
from minimal.tokenizers.grid import GridTokenizer
from minimal.tokenizers.ifsq import IFSQTokenizer
from minimal.tokenizers.lfq import LFQTokenizer
from minimal.tokenizers.multiscale import MultiScaleTokenizer
from minimal.tokenizers.residual import ResidualTokenizer
from minimal.tokenizers.vq import VectorQuantizer, VQTokenizer
from minimal.train import fit

KINDS = {
    "vq": (VQTokenizer, dict(codebook_size=11, dim=5), 1),
    "fsq": (FSQTokenizer, dict(levels=(5, 3)), 1),
    "ifsq": (IFSQTokenizer, dict(levels=(5, 3)), 1),
    "lfq": (LFQTokenizer, dict(bits=5), 1),
    "bsq": (BSQTokenizer, dict(bits=5), 1),
    "residual": (ResidualTokenizer, dict(codebook_size=11, dim=5, depth=3), 3),
    "multiscale": (MultiScaleTokenizer, dict(codebook_size=11, dim=5, scales=(1, 2, 4)), 3),
}
LENGTHS = {"residual": 48, "multiscale": 21}  # of the others: 16 cells


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    build, options, _ = KINDS[kind]
    return build((3, 8, 8), widths=(8, 8), **options).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8) * 2 - 1


def test_images_become_whole_numbers_and_images_again(kind, model, images):
    tokens = model.encode(images)
    assert tokens.shape == (2, model.length) and model.length == LENGTHS.get(kind, 16)
    assert tokens.dtype == torch.long and 0 <= tokens.min() <= tokens.max() < model.vocab_size
    assert model.embed(tokens).shape == (2, model.length, model.quantizer.dim)
    assert model.decode(tokens).shape == images.shape


def test_training_and_the_tokens_paint_the_same_picture(model, images):
    shown, tokens, _ = model.quantizer(model.latents(images))
    assert torch.equal(tokens, model.encode(images))
    same(model.decode(tokens), model.paint(shown))


def test_levels_stand_in_order_from_zero(kind, model):
    assert model.levels.shape == (model.length,) and model.levels.dtype == torch.long
    assert model.levels.unique_consecutive().tolist() == list(range(KINDS[kind][2]))


def test_it_is_rebuilt_from_its_config(model, images):
    twin = type(model)(**model.config)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval().encode(images), model.encode(images))


def test_the_loss_is_one_number_that_reaches_all_weights(kind, model, images):
    if kind == "multiscale":  # a convolution that no scale uses rests
        model = MultiScaleTokenizer(**model.config | {"phis": 3})
    loss, logs = model.train().loss(images)
    loss.backward()
    same(loss.detach(), logs["mse"] + logs["aux_loss"])
    assert loss.ndim == 0 and logs["codes_in_batch"] <= model.vocab_size
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoding_learns_nothing_even_in_training_mode(model, images):
    with unchanged(model.train()):
        assert not model.encode(images).requires_grad


def test_bad_tokens_are_refused(model):
    n = model.length
    for tokens in (
        torch.full((1, n), model.vocab_size),
        torch.full((1, n), -1),
        torch.zeros(1, n),
        torch.ones(1, 7).long(),
    ):
        with pytest.raises(ValueError, match="tokens"):
            model.decode(tokens)


def test_bad_images_are_refused(model):
    shape, unit = "expected images of shape", r"in \[-1, 1\]"
    bad = [(torch.zeros(2, 1, 8, 8), shape), (torch.zeros(2, 3, 8, 4), shape)]
    bad += [(torch.full((2, 3, 8, 8), value), unit) for value in (1.5, torch.nan)]
    for x, message in bad:
        for method in (model.encode, model.loss):
            with pytest.raises(ValueError, match=message):
                method(x)


def test_upto_out_of_range_is_refused(kind, model):
    tokens = torch.zeros(1, model.length, dtype=torch.long)
    for upto in (-1, model.length + 1):
        with pytest.raises(ValueError, match=f"upto counts .*got {upto}"):
            model.decode(tokens, upto=upto)


# The frame


@pytest.mark.parametrize("patch, widths", [(1, (8,)), (2, (8,)), (2, (8, 8)), (4, (8, 8))])
def test_patches_and_widths_make_the_grid_coarser(patch, widths):
    model = GridTokenizer((3, 16, 8), VectorQuantizer(7, 4), widths, patch=patch)
    factor = patch * 2 ** (len(widths) - 1)
    assert model.grid == (16 // factor, 8 // factor) and model.length == model.grid[0] * model.grid[1]
    assert model.latents(torch.zeros(2, 3, 16, 8)).shape == (2, model.length, 4)


def test_folding_into_patches_and_back_changes_nothing():
    model = GridTokenizer((3, 8, 4), VectorQuantizer(7, 12), widths=(8,), patch=2)
    model.encoder = model.decoder = nn.Identity()
    x = torch.rand(2, 3, 8, 4)
    z = model.latents(x)  # (2, 8, 12): 4 x 2 cells in raster order
    assert torch.equal(model.paint(z), x)
    assert torch.equal(z[:, 5].unflatten(1, (3, 2, 2)), x[:, :, 4:6, 2:4])


def test_cells_of_which_nothing_is_known_show_the_mean_code():
    model, tokens = GridTokenizer((3, 8, 8), VectorQuantizer(7, 4), widths=(8, 8)).eval(), torch.randint(7, (2, 16))
    q = model.embed(tokens)
    q[:, 5:] = model.quantizer.codebook.mean(0)
    assert torch.equal(model.decode(tokens, upto=5), model.paint(q))


def test_an_image_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="grid 8 times coarser; 12 x 8 is not divisible by 8"):
        GridTokenizer((1, 12, 8), VectorQuantizer(7, 4), widths=(8, 8, 8), patch=2)


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("kind, share", [("residual", 0.05), ("multiscale", 0.15)], indirect=["kind"])
def test_every_level_helps_to_overfit_eight_images(kind, share):
    build, options, _ = KINDS[kind]
    sizes = options | dict(codebook_size=32, dim=4, widths=(16, 16), decay=0.9)
    model, x = build((1, 8, 8), **sizes), torch.rand(8, 1, 8, 8) * 2 - 1
    fit(model, (x,), torch.optim.Adam(model.parameters(), 3e-3), steps=500, batch_size=8, floor=1.0, progress=False)
    tokens = model.encode(x)
    errors = [(model.decode(tokens, upto=k) - x).square().mean() for k in (1, 2, 3)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < share * x.var()
