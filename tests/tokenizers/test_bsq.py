"""BSQ: LFQ on the sphere: its error bound, its gradient, the reference library's numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lookup_free import agrees, enumerated

from minimal.tokenizers.bsq import BSQ


@given(bits=st.integers(1, 40), rows=st.integers(1, 30))
def test_rounding_is_bounded(bits, rows):
    quantizer, z = BSQ(bits).double(), torch.randn(rows, bits, dtype=torch.float64)
    u, q = F.normalize(z, dim=-1), quantizer(z)[0]
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(rows, dtype=torch.float64))
    error = (u - q).square().sum(-1)
    torch.testing.assert_close(error, 2 - 2 * u.abs().sum(-1) / math.sqrt(bits))
    assert (error <= 2 - 2 / math.sqrt(bits) + 1e-12).all()


def test_the_bound_is_reached_on_an_axis():
    u, q = torch.eye(9)[:1], BSQ(9)(torch.eye(9)[:1])[0]
    assert (u - q).square().sum().item() == pytest.approx(2 - 2 / 3, abs=1e-6)


def test_the_code_is_the_nearest_on_the_sphere():
    quantizer, z = BSQ(8), torch.randn(300, 8)
    codes = quantizer.codes(torch.arange(256))
    assert torch.equal(torch.cdist(F.normalize(z, dim=-1), codes).argmin(-1), quantizer.nearest(z))


def test_length_does_not_matter():
    quantizer, z = BSQ(6), torch.randn(50, 6)
    assert torch.equal(quantizer(z)[1], quantizer(100 * z)[1])
    torch.testing.assert_close(quantizer(z)[2], quantizer(100 * z)[2])


@pytest.mark.parametrize("sharpness", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("bits", [4, 10])
def test_it_equals_the_reference_library(bits, sharpness, monkeypatch):
    pytest.importorskip("vector_quantize_pytorch")
    from vector_quantize_pytorch import lookup_free_quantization as library

    monkeypatch.setattr(library, "log", lambda p: p.clamp(min=1e-38).log())
    options = dict(entropy_loss_weight=0.1, diversity_gamma=0.7, commitment_loss_weight=0.25)
    theirs = library.LFQ(dim=bits, codebook_size=2**bits, spherical=True, **options)
    agrees(BSQ(bits, 0.1, 0.7, 0.25, sharpness), theirs, torch.randn(4, 100, bits), sharpness)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_both_entropies_equal_enumeration(bits):
    quantizer = BSQ(bits, sharpness=5.0).double()
    u = F.normalize(torch.randn(40, bits, dtype=torch.float64), dim=-1)
    for ours, theirs in zip(quantizer.entropies(u), enumerated(quantizer, u)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # codes are rounded to float32


def test_the_gradient_passes_straight_through_to_the_sphere():
    z, weight = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    [gradient] = torch.autograd.grad((BSQ(6)(z)[0] * weight).sum(), z)
    [expected] = torch.autograd.grad((F.normalize(z, dim=-1) * weight).sum(), z)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close((gradient * z).sum(-1), torch.zeros(5), atol=1e-5, rtol=0)  # none along the radius
