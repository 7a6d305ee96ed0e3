"""Residual quantisation: levels add up, leftovers shrink, gradients pass once, and any first few levels decode."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from leveled import filled, follows, passes_once, same, unchanged

from minimal.tokenizers import residual
from minimal.tokenizers.residual import ResidualQuantizer, ResidualTokenizer
from minimal.tokenizers.vq import VectorQuantizer


def tiny(**changes):
    torch.manual_seed(0)
    return ResidualTokenizer((3, 8, 4), codebook_size=11, dim=5, depth=3, widths=(8, 8), **changes)


def quantizer(codes=7, dim=3, depth=4, **options):
    """Random tables, each half as large as the one before."""
    return filled(ResidualQuantizer(codes, dim, depth, **options), shrink=0.5)


# Exactness


def test_two_levels_by_hand():
    q = quantizer(codes=3, dim=1, depth=2)
    q.tables[0].codebook = torch.tensor([[0.0], [10.0], [20.0]])
    q.tables[1].codebook = torch.tensor([[-3.0], [0.0], [3.0]])
    z = torch.tensor([[[12.0], [9.0], [16.0]]])  # 10 + 3, 10 + 0, 20 - 3
    shown, tokens, loss = q(z)
    assert tokens.tolist() == [[1, 1, 2, 2, 1, 0]]
    assert shown.flatten().tolist() == [13, 10, 17]
    # errors after level 1: 2, -1, -4; after level 2: -1, -1, -1
    assert loss.item() == pytest.approx(0.25 * ((4 + 1 + 16) / 3 + 1) / 2)


def test_the_sum_of_the_codes_is_what_forward_returned():
    q, z = quantizer(), torch.randn(2, 6, 3)
    shown, tokens, _ = q(z)
    sums = q.sums(q.codes(tokens))
    assert torch.equal(z + (sums[-1] - z), shown)
    assert torch.equal(sums[-1], q.codes(tokens).unflatten(1, (4, 6)).sum(1))


def test_accumulating_level_by_level_equals_all_at_once():
    q, tokens = quantizer(), torch.randint(7, (2, 24))
    total = 0.0
    for k, (indices, whole) in enumerate(zip(tokens.chunk(4, dim=1), q.sums(q.codes(tokens)), strict=True)):
        total = q.accumulate(total, indices, k)
        assert torch.equal(total, whole)


def test_one_level_is_plain_vector_quantisation():
    plain, q = VectorQuantizer(7, 3).eval(), quantizer(depth=1)
    plain.codebook = q.tables[0].codebook
    z = torch.randn(2, 6, 3)
    for ours, theirs in zip(q(z), plain(z), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shared", [False, True])
def test_it_equals_the_reference_library(shared):
    reference = pytest.importorskip("vector_quantize_pytorch").ResidualVQ(
        dim=6, num_quantizers=4, codebook_size=32, shared_codebook=shared, commitment_weight=0.25
    )
    reference.eval()
    q = quantizer(32, 6, shared=shared)
    for table, layer in zip(q.tables, reference.layers):
        layer._codebook.embed.copy_(table.codebook)
    z = torch.randn(3, 50, 6)
    shown, tokens, _ = q(z)
    theirs, their_indices, _ = reference(z)
    assert torch.equal(tokens.unflatten(1, (4, 50)).mT, their_indices)
    same(shown, theirs)
    same(q.sums(q.codes(tokens))[-1], reference.get_output_from_indices(their_indices))


def test_fifty_updates_equal_the_reference_library():
    reference = pytest.importorskip("vector_quantize_pytorch").ResidualVQ(
        dim=4,
        num_quantizers=3,
        codebook_size=16,
        decay=0.99,
        rotation_trick=False,
        commitment_weight=0.25,
        threshold_ema_dead_code=0,
    )
    ours = quantizer(16, 4, 3, revive_below=0).train()
    for table, layer in zip(ours.tables, reference.layers):
        table.codebook = layer._codebook.embed[0].clone()
        table.sums = table.codebook.clone()
    for _ in range(50):
        z = torch.randn(2, 40, 4)
        their_q, their_indices, their_losses = reference(z)
        shown, tokens, loss = ours(z)
        assert torch.equal(tokens.unflatten(1, (3, 40)).mT, their_indices)
        same(shown, their_q)
        same(loss, their_losses.mean())
        same(torch.stack([table.codebook for table in ours.tables]), reference.codebooks)


# What residual quantisation promises


@given(seed=st.integers(0, 10_000), depth=st.integers(1, 6), scale=st.floats(0.01, 10))
def test_with_a_zero_code_the_leftover_never_grows(seed, depth, scale):
    torch.manual_seed(seed)
    q = quantizer(9, 4, depth).double()
    for table in q.tables:
        table.codebook[0] = 0
    z = scale * torch.randn(3, 8, 4, dtype=torch.float64)
    left = torch.stack([z, *(z - total for total in q.quantize(z)[1])]).norm(dim=-1)
    assert (left.diff(dim=0) <= 1e-12).all()


def test_without_a_zero_code_it_can_grow():
    q, z = quantizer(codes=1, depth=2), torch.zeros(1, 1, 3)
    assert q.quantize(z)[1][0].norm() > 0


def test_tables_fitted_by_kmeans_level_by_level_never_do_harm():
    q, z = ResidualQuantizer(8, 3, depth=5).train(), torch.randn(4, 100, 3)
    _, sums = q.quantize(z, learn=True)
    errors = [(z - total).square().mean() for total in [torch.zeros_like(z), *sums]]
    assert all(after < before for before, after in zip(errors, errors[1:]))


def test_two_levels_of_32_codes_beat_one_of_64():
    z = torch.randn(8, 200, 4)

    def error(codes, depth):
        q = ResidualQuantizer(codes, 4, depth).train()
        return (z - q.quantize(z, learn=True)[1][-1]).square().mean()

    assert error(32, 2) < 0.7 * error(64, 1)


# Gradients and losses


def test_the_gradient_passes_straight_through_once():
    passes_once(quantizer(), torch.randn(2, 6, 3))  # a sum of straight-through outputs would pass it 4 times


def test_the_loss_draws_the_latent_to_the_sum_of_every_level():
    q, z = quantizer(), torch.randn(2, 6, 3, requires_grad=True)
    _, tokens, loss = q(z)
    loss.backward()
    sums = torch.stack(q.sums(q.codes(tokens)))
    same(loss, 0.25 * (z - sums).square().mean())
    same(z.grad, 0.25 * 2 * (z - sums).sum(0) / (4 * z.numel()))


def test_codebooks_learn_by_averages_and_not_by_gradient():
    assert not list(quantizer().parameters())


# Learning


def test_each_table_follows_what_it_served():
    q, z = quantizer(revive_below=0).train(), torch.randn(2, 6, 3)
    expected = []
    with torch.no_grad():
        rest = z.flatten(0, 1)
        for table in q.tables:
            twin = VectorQuantizer(7, 3, revive_below=0)
            twin.load_state_dict(table.state_dict())
            indices = twin.nearest(rest)
            left = rest - twin.codebook[indices]
            twin.update(rest, indices)
            expected.append(twin.codebook)
            rest = left
    q(z)
    same(torch.stack([table.codebook for table in q.tables]), torch.stack(expected))


def test_a_shared_table_follows_the_rows_of_all_levels_in_one_update():
    follows(quantizer(shared=True, revive_below=0).train(), torch.randn(2, 6, 3), [6, 6, 6, 6])


def test_tables_learn_from_the_rows_of_all_processes(monkeypatch):
    alone, together, z = quantizer(revive_below=0).train(), quantizer(revive_below=0).train(), torch.randn(2, 6, 3)
    together.load_state_dict(alone.state_dict())
    alone(torch.cat((z, z)))
    monkeypatch.setattr(residual, "gathered", lambda rows: torch.cat((rows, rows)))  # another process has the same
    together(z)
    same(together.tables[3].counts, alone.tables[3].counts)
    same(together.tables[3].codebook, alone.tables[3].codebook)


def test_evaluation_changes_nothing():
    q = quantizer()
    with unchanged(q):
        q(torch.randn(2, 6, 3))


# Quantizer dropout


def test_dropout_shows_some_level_of_each_image_and_each_level_is_as_likely():
    q, sums = quantizer(dropout=0.5), [torch.full((20_000, 1, 1), float(k)) for k in range(1, 5)]
    counts = q.drop(sums).flatten().long().bincount(minlength=5)[1:]
    expected = torch.tensor([0.125, 0.125, 0.125, 0.625])
    assert ((counts / 20_000 - expected).abs() < 0.015).all()  # four standard errors


def test_dropout_changes_the_picture_but_not_the_tokens_or_the_loss():
    z, plain, dropping = torch.randn(64, 6, 3), quantizer().train(), quantizer(dropout=1.0).train()
    dropping.load_state_dict(plain.state_dict())
    (whole, tokens, loss), (part, same_tokens, same_loss) = plain(z), dropping(z)
    assert torch.equal(tokens, same_tokens) and torch.equal(loss, same_loss)
    changed = (whole != part).flatten(1).any(1)
    assert 0.5 < changed.float().mean() < 0.95  # three of four images lose a level


def test_nothing_is_dropped_in_evaluation():
    q, z = quantizer(dropout=1.0), torch.randn(64, 6, 3)
    shown, tokens, _ = q(z)
    same(shown, q.sums(q.codes(tokens))[-1])


# The tokenizer


def test_tokens_stand_in_order_of_level():
    model, x = tiny().eval(), torch.rand(2, 3, 8, 4) * 2 - 1
    tokens, z = model.encode(x), model.latents(x)
    assert tokens.shape == (2, model.length) == (2, 24) and tokens.dtype == torch.long
    assert model.levels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    first = model.quantizer.tables[0].nearest(z.flatten(0, 1)).view(2, 8)
    assert torch.equal(tokens[:, :8], first)
    left = z - model.quantizer.tables[0].codes(first)
    assert torch.equal(tokens[:, 8:16], model.quantizer.tables[1].nearest(left.flatten(0, 1)).view(2, 8))


def test_each_level_has_its_own_table_and_its_own_tokens():
    model, tokens = tiny().eval(), torch.randint(11, (2, 24))
    assert torch.equal(model.embed(tokens)[:, 8:16], model.quantizer.tables[1].codebook[tokens[:, 8:16]])


def test_upto_keeps_the_first_levels():
    model, tokens = tiny().eval(), torch.randint(11, (1, 24))
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 11
    assert torch.equal(model.decode(tokens, upto=1), model.decode(changed, upto=1))
    assert not torch.equal(model.decode(tokens, upto=2), model.decode(changed, upto=2))
    assert torch.equal(model.decode(tokens, upto=3), model.decode(tokens))
    assert torch.equal(model.decode(tokens, upto=2), model.paint(model.partial_sums(tokens)[1]))


@pytest.mark.parametrize("upto", [0, 4, -1])
def test_a_level_that_does_not_exist_is_refused(upto):
    with pytest.raises(ValueError, match="1 to 3; got"):
        tiny().decode(torch.zeros(1, 24).long(), upto=upto)


def test_what_a_sampler_gets_wrong_is_refused():
    q, tokens = quantizer(), torch.zeros(2, 6).long()
    for indices, k, message in ((tokens, 4, "0 to 3; got k = 4"), (tokens, -1, "k = -1"), (tokens + 7, 0, "0 .. 6")):
        with pytest.raises(ValueError, match=message):
            q.accumulate(0.0, indices, k)


def test_vectors_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantizer()(torch.full((1, 6, 3), torch.nan))


def test_an_option_that_the_quantizer_lacks_is_refused():
    with pytest.raises(TypeError, match="deptth"):
        ResidualTokenizer((3, 8, 4), deptth=3, widths=(8, 8))
