"""Gradient estimators: the value is that of a code, the gradient is what the formula says, draws follow their law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from minimal.tokenizers.gradients import (
    ESTIMATORS,
    copied,
    estimator,
    gumbel,
    nearest,
    rotated,
    rotation,
    sampled,
    straight_through,
)


def vectors(rows=6, codes=9, dim=4, seed=0):
    """z (M, D) with a gradient, codebook (K, D), and a gradient (M, D) that arrives from above; all float64."""
    torch.manual_seed(seed)
    z, codebook, g = (torch.randn(n, dim, dtype=torch.float64) for n in (rows, codes, rows))
    return z.requires_grad_(), codebook, g


def rotation_matrix(u, v):
    """The rotation in the plane of the unit vectors u and v that takes u to v, written another way: cosine and sine."""
    c = u @ v
    across = (v - c * u) / (v - c * u).norm()
    s = v @ across
    plane = torch.stack([u, across], 1)  # (D, 2)
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    return torch.eye(len(u), dtype=u.dtype) + plane @ (turn - torch.eye(2, dtype=u.dtype)) @ plane.T


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_value_is_the_code_that_was_chosen(name):
    z, codebook, _ = vectors(rows=200)
    q, indices = ESTIMATORS[name](z, codebook)
    assert indices.dtype == torch.long and indices.shape == (200,)
    torch.testing.assert_close(q.detach(), codebook[indices], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [straight_through, rotation])
def test_the_hard_choice_is_the_nearest_code(rule):
    z, codebook, _ = vectors(rows=700, codes=30)
    distances = torch.cdist(z.detach(), codebook)
    assert torch.equal(rule(z, codebook)[1], distances.argmin(1))


@pytest.mark.parametrize("rule", [straight_through, sampled])
def test_straight_through_copies_the_gradient(rule):
    z, codebook, g = vectors()
    rule(z, codebook)[0].backward(g)
    assert torch.equal(z.grad, g)


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 12))
def test_rotation_turns_and_scales_the_gradient(seed, dim):
    z, codebook, g = vectors(dim=dim, seed=seed)
    out, indices = rotation(z, codebook)
    out.backward(g)
    q = codebook[indices]
    for i in range(len(z)):
        u, v = z[i].detach() / z[i].detach().norm(), q[i] / q[i].norm()
        R, scale = rotation_matrix(u, v), q[i].norm() / z[i].detach().norm()
        torch.testing.assert_close(R.T @ R, torch.eye(dim).double())
        torch.testing.assert_close(R @ u, v)
        torch.testing.assert_close(z.grad[i], scale * R.T @ g[i], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(z.grad[i] @ u, scale * (g[i] @ v), rtol=1e-6, atol=1e-8)  # the angle is kept


def test_rotation_of_a_vector_that_is_its_code_copies_the_gradient():
    q, g = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    z = q.clone().requires_grad_()
    rotated(z, q).backward(g)
    torch.testing.assert_close(z.grad, g)


@pytest.mark.parametrize("z, q", [([1.0, 0.0], [-2.0, 0.0]), ([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])])
def test_rotation_stays_finite_where_no_angle_is_defined(z, q):
    z, q = torch.tensor([z], requires_grad=True), torch.tensor([q])
    out = rotated(z, q)
    out.sum().backward()
    assert out.isfinite().all() and z.grad.isfinite().all()
    if z.norm() > 0:
        torch.testing.assert_close(out.detach(), q)


def test_rotation_equals_the_reference_library():
    library = pytest.importorskip("vector_quantize_pytorch")
    reference = library.VectorQuantize(dim=6, codebook_size=20, rotation_trick=True, commitment_weight=0.0)
    reference.eval()
    z = torch.randn(1, 40, 6)
    weight = torch.randn_like(z)
    # In eval mode the library passes no gradient, so its rotation is called by itself.
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    theirs, ours = z.clone().requires_grad_(), z[0].clone().requires_grad_()
    out, indices = rotation(ours, reference.codebook)
    assert torch.equal(indices, reference(z)[1][0])
    expected = rotate_to(theirs, reference.codebook[indices][None])
    (expected * weight).sum().backward()
    (out * weight[0]).sum().backward()
    torch.testing.assert_close(out, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [sampled, gumbel])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_draws_have_the_softmax_of_negative_squared_distances(rule, temperature):
    torch.manual_seed(0)
    n = 50_000
    z, codebook = torch.tensor([[0.3, -0.2]]).double(), torch.randn(5, 2).double()
    p = (-torch.cdist(z, codebook)[0].square() / temperature).softmax(-1)
    drawn = rule(z.expand(n, -1), codebook, temperature=temperature)[1].bincount(minlength=5)
    assert chisquare(drawn.numpy(), (n * p).numpy()).pvalue > 0.001


def test_a_cold_draw_is_the_nearest_code():
    z, codebook, _ = vectors(rows=300)
    for rule in (sampled, gumbel):
        assert torch.equal(rule(z, codebook, temperature=1e-6)[1], nearest(z, codebook))


def test_gumbel_is_differentiated_as_the_soft_choice():
    """With the noise held fixed: the gradient of softmax((ℓ + g) / τ) @ codebook, for z and for the codebook."""
    z, codebook, weight = vectors()
    codebook.requires_grad_()
    torch.manual_seed(3)
    noise = -torch.empty(6, 9, dtype=torch.float64).exponential_().log()
    logits = -torch.cdist(z, codebook).square() / 0.7 + noise
    soft = ((logits + 0) / 0.4).softmax(-1)
    expected = torch.autograd.grad((soft @ codebook.detach() * weight).sum(), z)[0]
    torch.manual_seed(3)
    q, indices = gumbel(z, codebook, temperature=0.7, softness=0.4)
    assert torch.equal(indices, logits.argmax(-1))
    (q * weight).sum().backward()
    torch.testing.assert_close(z.grad, expected)
    assert (codebook.grad.norm(dim=1) > 0).all()  # codes that were not drawn are moved as well


def test_only_the_soft_choice_moves_the_codebook():
    z, codebook, g = vectors()
    for rule in (straight_through, rotation, sampled):
        z.grad = None
        rule(z, codebook.requires_grad_())[0].backward(g)
        assert codebook.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_confuses_no_codes(dtype):
    """Codes that differ in the last bit of a half: their distances do not, in that precision."""
    codebook = (8 + torch.arange(16) / 16)[:, None].expand(-1, 4).to(dtype)
    assert codebook.unique(dim=0).shape[0] == 16
    assert torch.equal(nearest(codebook, codebook), torch.arange(16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(codebook.float(), codebook.float()), torch.arange(16))


def test_an_estimator_is_a_function_or_a_name():
    assert estimator("rotation") is rotation and estimator(copied) is copied
    with pytest.raises(ValueError, match="straight_through, rotation, sampled, gumbel"):
        estimator("reinforce")
