"""Nested dropout: laws of lengths that are what they say, and principal components in the linear case."""

import pytest
import torch

from minimal.statistics import chi_square
from minimal.tokenizers.nested import LinearAutoencoder, doublings, draw, kept, uniform
from minimal.train import fit

# Laws


def test_uniform_and_doubling_laws():
    assert uniform(4) == (0.25,) * 4
    assert uniform(5, shortest=4) == (0, 0, 0, 0.5, 0.5)
    assert doublings(8) == (0.25, 0.25, 0, 0.25, 0, 0, 0, 0.25)
    assert doublings(1) == (1.0,)


def test_the_last_of_n_latents_is_kept_one_time_in_n():
    n = 8
    assert kept(uniform(n)) == pytest.approx([(n - j) / n for j in range(n)])


def test_redundant_tokens_keep_the_real_ones_as_often_as_the_paper_says():
    """ReToK: 256 tokens, 224 redundant ones, lengths from 32 on: j is kept with probability (480 − max(j, 32)) / 448.

    With j counted from 0, a length of at least j + 1 keeps it: 32 tokens always, the last real one half of the time.
    """
    padded = kept(uniform(480, shortest=32))
    for j in (0, 31, 32, 100, 255):
        assert padded[j] == pytest.approx((480 - max(j, 31)) / 449)
    assert padded[255] == pytest.approx(0.5, abs=0.01)
    assert kept(uniform(256, shortest=32))[255] == pytest.approx(1 / 225)


@pytest.mark.parametrize("law", [uniform(6), doublings(8), uniform(6, 3), (0.5, 0.0, 0.5)])
def test_lengths_are_drawn_from_the_law(law):
    lengths = draw(law, 10_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(lengths - 1, minlength=len(law))
    assert chi_square(counts, torch.tensor(law, dtype=torch.float64)).p_value > 1e-3
    shares = [(lengths >= j).double().mean().item() for j in range(1, len(law) + 1)]
    assert shares == pytest.approx(kept(law), abs=0.02)


def test_bad_laws_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        doublings(12)
    with pytest.raises(ValueError, match="shortest"):
        uniform(3, shortest=4)
    with pytest.raises(ValueError, match="distribution"):
        draw((0.5, 0.4), 3)


# The linear case


def rows_with_axes(dims=12, seed=0):
    """Rows (P, P) of second moment U diag(s²) Uᵀ, and the axes U (P, P) in order of importance."""
    axes = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(seed))).Q
    scale = torch.linspace(2.0, 0.3, dims)
    return scale[:, None] * axes.T, axes


def trained(law, x):
    torch.manual_seed(1)
    model = LinearAutoencoder(x.shape[1], law)
    fit(model, (x,), torch.optim.Adam(model.parameters(), lr=0.02), steps=1500, batch_size=len(x), progress=False)
    return model


def cosines(model, axes):
    """|cos| between the n-th axis of the model and the n-th principal axis."""
    found = torch.nn.functional.normalize(model.axes.detach(), dim=0)
    return (found * axes[:, : found.shape[1]]).sum(0).abs()


def test_nested_dropout_finds_the_principal_axes_in_order():
    x, axes = rows_with_axes()
    assert cosines(trained(uniform(4), x), axes).min() > 0.995  # below 0.1 rad


def test_a_plain_linear_autoencoder_finds_their_span_and_not_the_axes():
    x, axes = rows_with_axes()
    plain = trained((0.0, 0.0, 0.0, 1.0), x)
    span = torch.linalg.qr(plain.axes.detach()).Q
    assert torch.linalg.svdvals(span.T @ axes[:, :4]).min() > 0.995
    assert cosines(plain, axes).min() < 0.9


def test_the_loss_is_the_mean_over_prefixes():
    x, law = torch.randn(5, 6), (0.2, 0.5, 0.3)
    model = LinearAutoencoder(6, law)
    expected = 0.0
    for k, p in enumerate(law, start=1):
        shown = x @ model.read[:k].T @ model.axes[:, :k].T
        torch.testing.assert_close(model.prefixes(x)[:, k - 1], shown)
        expected = expected + p * (x - shown).square().sum(1).mean()
    torch.testing.assert_close(model.loss(x)[0], expected)
