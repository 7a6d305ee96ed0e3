"""Vector quantisation: nearest codes, gradients that pass straight through, a codebook that follows its vectors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minimal import checkpoints
from minimal.tokenizers import gradients
from minimal.tokenizers.vq import CosineVectorQuantizer, GradientVectorQuantizer, VectorQuantizer, VQTokenizer, kmeans

ALL = [VectorQuantizer, GradientVectorQuantizer, CosineVectorQuantizer]


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


def test_a_revived_code_starts_with_a_count_and_a_sum_that_fit():
    quantizer = VectorQuantizer(3, 2, decay=0.5, revive_below=4.0, kmeans_init=False)
    quantizer(torch.randn(100, 2) + 50)
    dead = quantizer.counts == 4.0
    assert dead.any()
    torch.testing.assert_close(quantizer.sums[dead] / quantizer.counts[dead, None], quantizer.codebook[dead])


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


def test_kmeans_never_gets_worse_and_ends_at_means():
    torch.manual_seed(0)
    rows, errors = torch.randn(500, 3).double(), []
    for iterations in (0, 1, 2, 4, 8, 200):
        torch.manual_seed(1)
        codes = kmeans(rows, 12, iterations)
        indices = gradients.nearest(rows, codes)
        errors.append((rows - codes[indices]).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]
    for k in range(12):
        torch.testing.assert_close(codes[k], rows[indices == k].mean(0))


def test_kmeans_is_as_good_as_the_reference_library():
    reference = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=4, codebook_size=32, kmeans_init=True, kmeans_iters=10, rotation_trick=False
    )
    torch.manual_seed(0)
    rows = torch.randn(2000, 4)
    reference.eval()(rows[None])  # k-means runs in the first call, even now

    def error(codes):
        return (rows - codes[gradients.nearest(rows, codes)]).square().mean()

    assert abs(error(kmeans(rows, 32)) / error(reference.codebook) - 1) < 0.1


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_smaller_than_the_codebook_can_start_it(kind):
    quantizer = kind(64, 2)
    quantizer(torch.randn(5, 2))
    assert quantizer.ready and quantizer.codebook.isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_the_first_training_batch_sets_the_codes(kind):
    torch.manual_seed(0)
    z = torch.randn(400, 2) * 0.1 + torch.tensor([5.0, -3.0])
    quantizer = kind(8, 2)
    quantizer(z)
    rows = F.normalize(z, dim=-1) if kind is CosineVectorQuantizer else z
    assert len(quantizer.nearest(z).unique()) == 8
    assert (rows - quantizer.codes(quantizer.nearest(z))).norm(dim=1).mean() < 0.5 * (rows - rows.mean(0)).norm(
        dim=1
    ).mean()
    before = quantizer.codebook.clone()
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook, before)


def test_the_gradient_codebook_has_both_terms_of_the_loss():
    """|sg(z) − q|² + β |z − sg(q)|², as means over all entries: gradients by hand."""
    torch.manual_seed(0)
    quantizer = GradientVectorQuantizer(7, 3, commitment_weight=0.4, kmeans_init=False).double()
    z = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    _, indices, loss = quantizer(z)
    q = quantizer.codebook[indices].detach()
    torch.testing.assert_close(loss, 1.4 * (z - q).square().mean())
    loss.backward()
    torch.testing.assert_close(z.grad, 0.4 * 2 * (z - q).detach() / z.numel())
    expected = torch.zeros(7, 3).double().index_add_(0, indices, 2 * (q - z.detach()) / z.numel())
    torch.testing.assert_close(quantizer.weight.grad, expected)
    unused = [k for k in range(7) if k not in indices]
    assert unused and not quantizer.weight.grad[unused].any()  # a code without vectors stays where it is


def test_the_moving_averages_are_left_to_themselves():
    """No optimizer owns the table of moving averages, and its vectors get the commitment alone."""
    quantizer = VectorQuantizer(7, 3, commitment_weight=0.4, kmeans_init=False)
    assert not list(quantizer.parameters())
    z = torch.randn(10, 3, requires_grad=True)
    codes = quantizer.codebook.clone()
    _, indices, loss = quantizer(z)
    loss.backward()
    torch.testing.assert_close(z.grad, 0.4 * 2 * (z - codes[indices]).detach() / z.numel())


def test_cosine_codes_lie_on_the_sphere_and_the_smallest_angle_wins():
    torch.manual_seed(0)
    quantizer = CosineVectorQuantizer(20, 4, kmeans_init=False)
    quantizer.weight.data *= torch.rand(20, 1) * 9 + 0.1
    z = torch.randn(50, 4) * 5
    q, indices, loss = quantizer(z)
    torch.testing.assert_close(quantizer.codes(indices).norm(dim=-1), torch.ones(50))
    torch.testing.assert_close(q, quantizer.codes(indices))
    angles = F.cosine_similarity(z[:, None], quantizer.weight[None], dim=-1)
    assert torch.equal(indices, angles.argmax(1)) and torch.equal(quantizer.nearest(z), indices)
    assert all(torch.equal(quantizer.nearest(z * size), indices) for size in (100, 1e-8))
    torch.testing.assert_close(loss, 1.25 * 2 * (1 - angles.amax(1)).mean() / 4)  # |u − v|² = 2 − 2 cos
    loss.backward()
    radial = (quantizer.weight.grad * quantizer.weight).sum(-1)
    torch.testing.assert_close(radial, torch.zeros(20), atol=1e-6, rtol=0)  # codes turn, and are not stretched


def test_cosine_equals_the_reference_library():
    reference = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=4, codebook_size=32, use_cosine_sim=True, rotation_trick=False
    )
    reference.eval()
    ours = CosineVectorQuantizer(32, 4).eval()
    ours.weight.data = reference.codebook * 3
    z = torch.randn(1, 200, 4)
    their_q, their_indices, _ = reference(z)
    q, indices, _ = ours(z)
    assert torch.equal(indices, their_indices)
    torch.testing.assert_close(q, their_q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_rule_is_an_argument(kind):
    z, weight = torch.randn(30, 4), torch.randn(30, 4)
    for rule in (*gradients.ESTIMATORS, gradients.rotation):
        torch.manual_seed(0)
        quantizer, ours, theirs = (
            kind(9, 4, kmeans_init=False, gradient=rule),
            *(z.clone().requires_grad_() for _ in "ab"),
        )
        codes, seed = quantizer.codebook.detach().clone(), torch.get_rng_state()
        q, indices, _ = quantizer(ours)
        torch.set_rng_state(seed)
        rows = F.normalize(theirs, dim=-1) if kind is CosineVectorQuantizer else theirs
        expected, chosen = gradients.estimator(rule)(rows, codes)
        assert torch.equal(q, expected) and torch.equal(indices, chosen)
        grads = [torch.autograd.grad((x * weight).sum(), leaf)[0] for x, leaf in ((q, ours), (expected, theirs))]
        torch.testing.assert_close(*grads)


def test_draws_belong_to_training():
    z = torch.randn(200, 4)
    quantizer = VectorQuantizer(9, 4, kmeans_init=False, gradient="sampled")
    assert not torch.equal(quantizer(z)[1], quantizer.nearest(z))
    assert torch.equal(quantizer.eval()(z)[1], quantizer.nearest(z))


@pytest.mark.slow
def test_without_revival_codes_far_from_the_data_are_never_used():
    """The collapse of the chapter: all vectors lie on one side of all codes."""
    used = {}
    for name, revive_below in (("left alone", 0.0), ("revived", 1.0)):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(64, 2, decay=0.9, revive_below=revive_below, kmeans_init=False)
        for _ in range(150):
            quantizer(torch.randn(256, 2) + 8)
        used[name] = len(quantizer.nearest(torch.randn(2000, 2) + 8).unique())
    assert used["left alone"] <= 8 and used["revived"] >= 58, used


def test_the_shipped_tokenizer_of_the_digits_loads():
    model = checkpoints.load("digits_vq")
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    assert model.decode(model.encode(x)).shape == x.shape


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


@pytest.mark.parametrize("kind", ALL)
def test_bad_vectors_are_refused(kind):
    quantizer = kind(8, 3)
    for z, message in (
        (torch.zeros(2, 4), r"\(\.\.\., 3\)"),
        (torch.zeros(2, 3).long(), "floating"),
        (torch.full((2, 3), torch.nan), "NaN or inf"),
        (torch.full((2, 3), torch.inf), "NaN or inf"),
    ):
        with pytest.raises(ValueError, match=message):
            quantizer(z)
    assert not quantizer.ready


@pytest.mark.parametrize(
    "tokens", [torch.full((1, 8), 11), torch.full((1, 8), -1), torch.zeros(1, 9).long(), torch.zeros(1, 8)]
)
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens"):
        tiny().decode(tokens)


def test_an_image_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        VQTokenizer((1, 14, 14), widths=(8, 8, 8))
