"""LFQ: both entropies against enumeration of all codes, the reference library's numbers, and what the loss is for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lookup_free import agrees, enumerated

from minimal import processes
from minimal.tokenizers.lfq import LFQ, bit_entropy, corners, mean_distribution


@given(bits=st.integers(1, 10), rows=st.integers(1, 40), sharpness=st.floats(0.05, 5))
def test_both_entropies_equal_enumeration(bits, rows, sharpness):
    quantizer = LFQ(bits, sharpness=sharpness).double()
    u = torch.randn(rows, bits, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(quantizer.entropies(u), enumerated(quantizer, u)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for gradient in torch.autograd.grad(ours, u, retain_graph=True):
            torch.testing.assert_close(
                gradient, torch.autograd.grad(theirs, u, retain_graph=True)[0], atol=1e-9, rtol=0
            )


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_the_mean_distribution_lists_codes_in_order_of_their_index(bits):
    quantizer, logits = LFQ(bits).double(), 3 * torch.randn(7, bits, dtype=torch.float64)
    on = torch.sigmoid(logits)[:, None]  # (N, 1, b)
    bit = quantizer.codes(torch.arange(2**bits)) > 0  # (2^b, b)
    p = torch.where(bit, on, 1 - on).prod(-1).mean(0)
    torch.testing.assert_close(mean_distribution(logits), p)
    assert torch.equal(corners(bits, logits), quantizer.codes(torch.arange(2**bits)).double())


def test_float32_is_accurate_where_bits_are_nearly_certain():
    logits = torch.linspace(-60, 60, 2001)
    exact = bit_entropy(logits.double())
    torch.testing.assert_close(bit_entropy(logits).double(), exact, rtol=1e-5, atol=0)
    p = torch.sigmoid(logits.double())
    torch.testing.assert_close(exact[900:1101], (torch.special.entr(p) + torch.special.entr(1 - p))[900:1101])


@pytest.mark.parametrize("bits, group", [(6, 3), (7, 3), (8, 8), (5, 1)])
def test_groups_are_marginals_and_an_upper_bound(bits, group):
    whole, grouped = LFQ(bits).double(), LFQ(bits, group=group).double()
    shared = torch.randn(50, 1, dtype=torch.float64)  # makes bits depend on each other
    u = shared + 0.3 * torch.randn(50, bits, dtype=torch.float64)
    each, joint = whole.entropies(u)
    same, bound = grouped.entropies(u)
    torch.testing.assert_close(each, same)
    assert sum(grouped.groups) == bits and max(grouped.groups) <= group
    marginals = 0
    for part in u.split(grouped.groups, -1):
        marginals += enumerated(LFQ(part.shape[1]).double(), part)[1]
    torch.testing.assert_close(bound, marginals)
    assert bound > joint + 0.1 if len(grouped.groups) > 1 else torch.isclose(bound, joint)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("bits", [4, 10])
def test_it_equals_the_reference_library(bits, sharpness, monkeypatch):
    """Except that the library takes log(max(p, 1e-5)); here its logarithm is given the true p."""
    pytest.importorskip("vector_quantize_pytorch")
    from vector_quantize_pytorch import lookup_free_quantization as library

    monkeypatch.setattr(library, "log", lambda p: p.clamp(min=1e-38).log())
    options = dict(entropy_loss_weight=0.1, diversity_gamma=0.7, commitment_loss_weight=0.25)
    theirs = library.LFQ(dim=bits, codebook_size=2**bits, **options)
    ours, z = LFQ(bits, 0.1, 0.7, 0.25, sharpness), 0.5 * torch.randn(4, 100, bits, requires_grad=True)
    agrees(ours, theirs, z, sharpness)


def test_unpatched_where_no_probability_is_tiny():
    library = pytest.importorskip("vector_quantize_pytorch")
    options = dict(entropy_loss_weight=0.1, diversity_gamma=1.0, commitment_loss_weight=0.25)
    theirs, ours = library.LFQ(dim=4, codebook_size=16, **options), LFQ(4, sharpness=0.5)
    agrees(ours, theirs, torch.rand(4, 100, 4) - 0.5, 0.5)


def test_the_gradient_is_nearer_to_float64_than_the_library_s():
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.LFQ(dim=10, codebook_size=1024, entropy_loss_weight=1.0)
    ours, z = LFQ(10, 1.0, commitment_weight=0), torch.randn(1, 400, 10, requires_grad=True)
    exact = z.detach().double().requires_grad_()
    each, mean = enumerated(LFQ(10).double(), exact[0])
    [truth] = torch.autograd.grad(each - mean, exact)
    errors = []
    for loss in (ours(z)[2], theirs(z, inv_temperature=1.0)[2]):
        [gradient] = torch.autograd.grad(loss, z)
        errors.append((gradient - truth).norm().item() / truth.norm().item())
    assert errors[0] < 1e-5 and errors[0] < errors[1] / 10


def test_index_bits_and_zero():
    quantizer = LFQ(3)
    q, indices, _ = quantizer(torch.tensor([[1.0, -2.0, 0.5], [-1.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))
    assert indices.tolist() == [5, 1, 0]  # 101, 001, 000: the first bit counts most
    assert q.tolist() == [[1, -1, 1], [-1, -1, 1], [-1, -1, -1]]


def test_the_gradient_passes_straight_through():
    z, weight = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6)
    (LFQ(6)(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_the_entropy_loss_spreads_codes_that_had_collapsed():
    torch.manual_seed(0)
    z = (1 + 0.3 * torch.randn(400, 5)).requires_grad_()  # nearly all rows in the same corner
    quantizer = LFQ(5, entropy_weight=1.0, commitment_weight=0.0, sharpness=0.5)
    assert len(quantizer(z)[1].unique()) < 5
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        quantizer(z)[2].backward()
        optimizer.step()
    each, mean = quantizer.entropies(z.detach())
    counts = quantizer.nearest(z.detach()).bincount(minlength=32)
    assert each < 0.05 and mean > 3.2 and (counts > 0).all()  # log 32 = 3.47


def test_extreme_sharpness_gives_finite_gradients():
    z = (10 * torch.randn(100, 12)).requires_grad_()
    LFQ(12, sharpness=100.0)(z)[2].backward()
    assert z.grad.isfinite().all()


def test_autocast_changes_neither_entropies_nor_indices():
    quantizer, z = LFQ(9, sharpness=3.0), torch.randn(100, 9)
    _, indices, loss = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        _, cast_indices, cast_loss = quantizer(z)
    assert torch.equal(indices, cast_indices) and torch.equal(loss, cast_loss)


def test_two_processes_share_the_entropy_of_the_whole_batch(monkeypatch):
    """The entropy of a mean is not the mean of entropies: each process needs the others' mean, as a constant."""
    quantizer, z = LFQ(4).double(), torch.randn(2, 30, 4, dtype=torch.float64, requires_grad=True)
    whole = quantizer(z.flatten(0, 1))[2]
    [expected] = torch.autograd.grad(whole, z)
    means = [mean_distribution(4 * part.detach()) for part in z]
    monkeypatch.setattr(processes, "gathered", lambda p: torch.stack(means))
    losses = [quantizer(part)[2] for part in z]
    [gradient] = torch.autograd.grad(sum(losses) / 2, z)
    torch.testing.assert_close(sum(losses) / 2, whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("options", [dict(bits=0), dict(bits=63), dict(bits=8, group=0), dict(bits=40, group=30)])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match="fit|bits"):
        LFQ(**options)
