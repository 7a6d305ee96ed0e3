"""Vector quantisation: nearest codes, gradients that pass straight through, a codebook that follows its vectors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.tokenizers.vq import VectorQuantizer, VQTokenizer


def tiny():
    torch.manual_seed(0)
    return VQTokenizer((3, 8, 4), codebook_size=11, dim=5, widths=(8, 8))


@given(rows=st.integers(1, 1200), codes=st.integers(1, 40), dim=st.integers(1, 9))
def test_the_chosen_code_is_the_nearest(rows, codes, dim):
    quantizer, z = VectorQuantizer(codes, dim).double(), torch.randn(rows, dim, dtype=torch.float64)
    distances = torch.cdist(z, quantizer.codebook)
    chosen = distances.gather(1, quantizer.nearest(z)[:, None]).squeeze(1)
    torch.testing.assert_close(chosen, distances.amin(1))


def test_the_gradient_passes_straight_through():
    quantizer = VectorQuantizer(7, 3).eval()
    z = torch.randn(5, 3, requires_grad=True)
    q, indices, _ = quantizer(z)
    weight = torch.randn(5, 3)
    (q * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    torch.testing.assert_close(q, quantizer.codebook[indices])


def test_codes_are_fixed_points():
    quantizer = VectorQuantizer(20, 4).eval()
    assert torch.equal(quantizer.nearest(quantizer.codebook), torch.arange(20))
    tokens = torch.randint(11, (2, 8))
    model = tiny()
    assert torch.equal(model.quantizer.nearest(model.embed(tokens).flatten(0, 1)).view(2, 8), tokens)


def test_fifty_updates_equal_the_reference_library():
    reference = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=4, codebook_size=32, decay=0.99, rotation_trick=False, commitment_weight=0.25, threshold_ema_dead_code=0
    )
    ours = VectorQuantizer(32, 4, decay=0.99, revive_below=0, kmeans_init=False)
    ours.codebook, ours.sums = reference.codebook.clone(), reference.codebook.clone()
    for _ in range(50):
        z = torch.randn(2, 40, 4)
        their_q, their_indices, their_loss = reference(z)
        q, indices, commitment_loss = ours(z)
        assert torch.equal(indices, their_indices)
        torch.testing.assert_close(q, their_q, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(commitment_loss, their_loss.squeeze(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.codebook, reference.codebook, rtol=1e-5, atol=1e-5)


def test_one_update_is_the_formula():
    quantizer = VectorQuantizer(2, 1, decay=0.9, revive_below=0, kmeans_init=False).double()
    quantizer.codebook, quantizer.sums = torch.tensor([[0.0], [10.0]]).double(), torch.tensor([[0.0], [10.0]]).double()
    quantizer(torch.tensor([[1.0], [2.0], [8.0]]).double())
    # 0.9 * 1 + 0.1 * (2, 1), and 0.9 * (0, 10) + 0.1 * (3, 8)
    counts, sums = torch.tensor([1.1, 1.0]), torch.tensor([0.3, 9.8])
    smoothed = (counts + 1e-5) / (2.1 + 2e-5) * 2.1
    torch.testing.assert_close(quantizer.codebook.squeeze().float(), sums / smoothed)


def test_dead_codes_move_onto_vectors_of_the_batch_and_living_ones_do_not():
    quantizer = VectorQuantizer(4, 2, decay=0.5, kmeans_init=False)
    quantizer.codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [90.0, 90.0], [99.0, 99.0]])
    quantizer.sums = quantizer.codebook.clone()
    z = torch.rand(100, 2)
    quantizer(z)
    moved = quantizer.codebook[2:]
    assert all((row == z).all(1).any() for row in moved)
    assert not any((row == z).all(1).any() for row in quantizer.codebook[:2])
    assert quantizer.codebook.isfinite().all()


def test_evaluation_changes_nothing():
    quantizer = VectorQuantizer(16, 2).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(40, 2))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_kmeans_finds_four_clusters():
    centres = torch.tensor([[-5.0, -5.0], [-5.0, 5.0], [5.0, -5.0], [5.0, 5.0]])
    rows = centres.repeat(100, 1) + 0.1 * torch.randn(400, 2)
    quantizer = VectorQuantizer(16, 2)
    quantizer.kmeans(rows)
    assert (rows - quantizer.codebook[quantizer.nearest(rows)]).norm(dim=1).mean() < 0.15


def test_a_batch_smaller_than_the_codebook_can_start_it():
    quantizer = VectorQuantizer(64, 2)
    quantizer(torch.randn(5, 2))
    assert quantizer.codebook.isfinite().all()


def test_tokens_and_images_keep_their_shapes():
    model, x = tiny().eval(), torch.rand(2, 3, 8, 4) * 2 - 1
    tokens = model.encode(x)
    assert tokens.shape == (2, model.length) == (2, 8) and tokens.dtype == torch.long
    assert model.embed(tokens).shape == (2, 8, 5)
    assert model.decode(tokens).shape == x.shape
    assert model.levels.shape == (8,)
    torch.testing.assert_close(model.decode(tokens), model.paint(model.quantizer(model.latents(x))[0]))


def test_cells_are_in_raster_order():
    model, x = tiny().eval(), torch.randn(2, 5, 4, 2)  # latents on a grid of 4 x 2 cells
    model.encoder = model.decoder = torch.nn.Identity()
    model.image_shape = (5, 4, 2)
    z = model.latents(x.clamp(-1, 1))
    assert torch.equal(z[:, 5], x.clamp(-1, 1)[:, :, 2, 1])
    assert torch.equal(model.paint(z), x.clamp(-1, 1))


def test_upto_keeps_what_comes_first():
    model, tokens = tiny().eval(), torch.randint(11, (1, 8))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    assert torch.equal(model.decode(tokens, upto=4), model.decode(changed, upto=4))
    assert torch.equal(model.decode(tokens, upto=8), model.decode(tokens))


@pytest.mark.slow
def test_it_overfits_eight_images():
    torch.manual_seed(0)
    model = VQTokenizer((1, 8, 8), codebook_size=64, dim=4, widths=(16, 16), decay=0.9)
    x, optimizer = torch.rand(8, 1, 8, 8) * 2 - 1, torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        loss, _ = model.loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.decode(model.encode(x)) - x).square().mean() < 0.1 * x.var()


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 1, 8, 4), "expected images of shape"),
        (torch.zeros(2, 3, 8, 8), "expected images of shape"),
        (torch.full((2, 3, 8, 4), 1.5), "in \\[-1, 1\\]"),
        (torch.full((2, 3, 8, 4), torch.nan), "NaN"),
    ],
)
def test_bad_images_are_refused(x, message):
    for method in (tiny().encode, tiny().loss):
        with pytest.raises(ValueError, match=message):
            method(x)


@pytest.mark.parametrize(
    "tokens", [torch.full((1, 8), 11), torch.full((1, 8), -1), torch.zeros(1, 9).long(), torch.zeros(1, 8)]
)
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens"):
        tiny().decode(tokens)


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        VQTokenizer((1, 14, 14), widths=(8, 8, 8))
