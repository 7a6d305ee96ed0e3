"""FSQ: the reference library's numbers, the published formula, and bins of the width they should have."""

import pytest
import torch

from minimal.tokenizers.fsq import FSQ

LEVELS = [(8, 5, 5, 5), (8, 6, 5), (7, 5, 5, 5, 5), (5, 5, 5, 5), (3, 4), (17,) * 4]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
def test_it_equals_the_reference_library(levels, spread):
    theirs = pytest.importorskip("vector_quantize_pytorch").FSQ(levels=list(levels))
    ours, z = FSQ(levels), (spread * torch.randn(8, 500, len(levels))).requires_grad_()
    q, indices, loss = ours(z)
    their_q, their_indices = theirs(z)
    assert torch.equal(indices, their_indices.long()) and loss == 0
    torch.testing.assert_close(q, their_q, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(q)
    [gradient] = torch.autograd.grad((q * weight).sum(), z)
    [their_gradient] = torch.autograd.grad((their_q * weight).sum(), z)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.codes(torch.arange(ours.vocab_size)), theirs.implicit_codebook, rtol=0, atol=1e-6)


def test_an_index_is_a_number_in_mixed_radix():
    """By hand: digits 3, 0, 4 of levels 5, 3, 7, least first, are 3 + 0 · 5 + 4 · 15."""
    code = torch.tensor([[1 / 2, -1 / 1, 1 / 3]])
    quantizer = FSQ((5, 3, 7))
    assert quantizer.indices(code).tolist() == [63]
    torch.testing.assert_close(quantizer.codes(torch.tensor([63])), code)


def test_even_levels_lean_to_the_left_and_zero_is_one_of_them():
    quantizer = FSQ((4,))
    assert quantizer.codes(torch.arange(4)).squeeze(-1).tolist() == [-1, -0.5, 0, 0.5]
    assert quantizer(torch.zeros(1, 1))[0].item() == 0


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 17])
def test_bins_have_the_width_they_should(levels):
    """Uniform after squashing: equal bins are used equally, outer endpoint bins half as much as inner ones."""
    for bins, outer in (("equal", 1.0), ("endpoint", 0.5)):
        quantizer = FSQ((levels,), bins).double()
        reach = levels / 2 if bins == "equal" else (levels - 1) / 2
        offset = 0.5 if levels % 2 == 0 else 0.0
        u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 50_000 - 1  # evenly spread over (-1, 1)
        z = torch.atanh(u) - torch.atanh(torch.tensor(offset / reach).double())
        share = quantizer.nearest(z[:, None]).bincount(minlength=levels) / len(u)
        inner = 1 / (levels - 2 + 2 * outer)
        expected = torch.full((levels,), inner)
        expected[[0, -1]] = inner * outer
        torch.testing.assert_close(share, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("bins", ["endpoint", "equal"])
def test_the_gradient_is_that_of_the_squashing(levels, bins):
    quantizer = FSQ((levels,), bins).double()
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None].requires_grad_()
    [gradient] = torch.autograd.grad(quantizer(z)[0].sum(), z)
    step = 1e-6
    slope = (quantizer.bound(z + step) - quantizer.bound(z - step)) / (2 * step)
    torch.testing.assert_close(gradient, (slope / (levels // 2)).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((5, 1),), "at least 2"),
        (((),), "at least 2"),
        (((2.5, 3),), "whole numbers"),
        (((1024,) * 7,), "63 bits"),
        (((5, 5), "wide"), "endpoint, equal"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FSQ(*arguments)
