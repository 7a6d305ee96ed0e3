"""VAR's pyramid: equal to the paper's loop, to a library, and to itself when a sampler takes it scale by scale."""

import pytest
import torch
import torch.nn.functional as F
from leveled import filled, follows, passes_once, same, unchanged

from minimal.tokenizers.multiscale import MultiScaleQuantizer, MultiScaleTokenizer, Phi, nearest_places, resize
from minimal.tokenizers.vq import VectorQuantizer

SCALES = (1, 2, 3, 4)


def quantizer(codes=24, dim=5, scales=SCALES, **options):
    """A random codebook and random convolutions, in eval mode."""
    torch.manual_seed(0)
    q = filled(MultiScaleQuantizer(codes, dim, scales, **options))
    for phi in q.phis:
        torch.nn.init.normal_(phi.weight, std=0.15)
        torch.nn.init.normal_(phi.bias, std=0.1)
    return q


def tiny(**changes):
    torch.manual_seed(0)
    options = dict(codebook_size=11, dim=5, scales=(1, 2, 4), widths=(8, 8)) | changes
    return MultiScaleTokenizer((3, 8, 8), **options)


# The algorithm


def the_papers_loop(q, f):
    """Algorithm 1 of the paper on feature maps f (B, D, h, w), one codebook; returns tokens, f_hat per scale, loss."""
    codebook, side = q.tables[0].codebook, f.shape[-1]
    rest, f_hat, tokens, hats, loss = f.detach().clone(), torch.zeros_like(f), [], [], 0.0
    for k, p in enumerate(q.scales):
        z = F.adaptive_avg_pool2d(rest, (p, p))
        distances = (z[:, None] - codebook[None, :, :, None, None]).square().sum(2)  # (B, K, p, p)
        indices = distances.argmin(1)
        h = codebook[indices].permute(0, 3, 1, 2)
        h = F.interpolate(h, (side, side), mode=q.mode, align_corners=False)
        conv = q.phi(k)
        h = 0.5 * h + 0.5 * F.conv2d(h, conv.weight, conv.bias, padding=1)
        f_hat = f_hat + h
        rest = rest - h.detach()
        tokens.append(indices.flatten(1))
        hats.append(f_hat)
        loss = loss + 0.25 * F.mse_loss(f_hat.detach(), f) + F.mse_loss(f_hat, f.detach())
    return torch.cat(tokens, 1), hats, loss / len(q.scales)


def test_it_is_the_papers_loop_in_tokens_sums_loss_and_gradients():
    q, f = quantizer(), torch.randn(3, 5, 4, 4, requires_grad=True)
    tokens, hats, loss = the_papers_loop(q, f)
    expected = torch.autograd.grad(loss, [f, *q.parameters()])
    shown, our_tokens, our_loss = q(f.flatten(2).mT)
    assert torch.equal(our_tokens, tokens)
    same(shown.mT.unflatten(-1, (4, 4)), hats[-1])
    same(torch.stack(q.sums(q.codes(tokens))), torch.stack(hats).flatten(3).mT)
    same(our_loss, loss)
    for ours, theirs in zip(torch.autograd.grad(our_loss, [f, *q.parameters()]), expected, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_it_equals_the_reference_library_when_codes_are_enlarged_bilinearly(ratio):
    library = pytest.importorskip("vector_quantize_pytorch")
    options = dict(kmeans_init=False, threshold_ema_dead_code=0, commitment_weight=0.25, accept_image_fmap=True)
    convolutions = dict(quant_resi=ratio, share_quant_resi=0)
    reference = library.HierarchicalVQ(dim=5, codebook_size=24, scales=SCALES, **options, **convolutions)
    reference.eval()
    q = quantizer(mode="bilinear", phi_ratio=ratio)
    reference.vq._codebook.embed.copy_(q.tables[0].codebook)
    for ours, theirs in zip(q.phis, reference.phi_levels, strict=True):
        theirs.conv.load_state_dict(ours.state_dict())
    f = torch.randn(3, 5, 4, 4)
    theirs, their_indices, _ = reference(f)
    shown, tokens, _ = q(f.flatten(2).mT)
    assert torch.equal(tokens, torch.cat([i.flatten(1) for i in their_indices], 1))
    same(shown.mT.unflatten(-1, (4, 4)), theirs)
    same(q.sums(q.codes(tokens))[-1].mT.unflatten(-1, (4, 4)), reference.get_output_from_indices(their_indices))


def test_one_scale_without_convolution_is_plain_vector_quantisation():
    q, plain = quantizer(scales=(4,), phi_ratio=0.0), VectorQuantizer(24, 5).eval()
    plain.codebook = q.tables[0].codebook
    z = torch.randn(2, 16, 5)
    shown, tokens, loss = q(z)
    expected, indices, commitment_loss = plain(z)
    assert torch.equal(tokens, indices) and torch.equal(shown, expected)
    same(loss, commitment_loss + F.mse_loss(plain.codes(indices), z))


def test_numbers_small_enough_to_read():
    q = quantizer(codes=3, dim=1, scales=(1, 2), phi_ratio=0.0)
    q.tables[0].codebook = torch.tensor([[-2.0], [0.0], [5.0]])
    z = torch.tensor([3.0, 7.0, 5.0, 5.0]).view(1, 4, 1)  # mean 5: one token says it; -2 is left in the first cell
    shown, tokens, _ = q(z)
    assert tokens.tolist() == [[2, 0, 1, 1, 1]]
    assert shown.flatten().tolist() == [3, 5, 5, 5]


# Resizing


def test_shrinking_takes_means_and_enlarging_keeps_constants():
    rows = torch.randn(2, 16, 3)
    same(resize(rows, 1, "area"), rows.mean(1, keepdim=True))
    same(resize(rows, 2, "area")[:, 1], rows[:, [2, 3, 6, 7]].mean(1))
    same(resize(torch.ones(1, 4, 3), 8, "bicubic"), torch.ones(1, 64, 3))
    assert resize(rows, 4, "area") is rows


def test_an_odd_number_of_cells_is_shared_fairly():
    rows = torch.arange(64.0).view(1, 64, 1)
    assert resize(rows, 3, "area").mean().item() == pytest.approx(31.5)


def test_corners_are_not_aligned():
    """With aligned corners the first cell would be exactly the first code, and the picture would shift."""
    assert resize(torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 4, 1), 4, "bilinear")[0, :4, 0].tolist() == [
        0,
        0.25,
        0.75,
        1,
    ]


# The convolution


def test_phi_starts_as_the_identity_and_is_half_a_convolution():
    phi, h = Phi(3, 4), torch.randn(2, 16, 3)
    same(phi(h), h)
    torch.nn.init.normal_(phi.weight)
    conv = F.conv2d(h.mT.unflatten(-1, (4, 4)), phi.weight, phi.bias, padding=1).flatten(2).mT
    same(phi(h), 0.5 * h + 0.5 * conv)


def test_ten_scales_share_four_convolutions_as_in_the_paper():
    assert nearest_places(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    q = quantizer(scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert [list(q.phis).index(q.phi(k)) for k in range(10)] == nearest_places(10, 4)


@pytest.mark.parametrize("n", range(1, 8))
def test_as_many_convolutions_as_scales_take_one_each(n):
    assert nearest_places(n, n) == list(range(n))


def test_one_convolution_serves_all_scales():
    assert nearest_places(4, 1) == [0, 0, 0, 0]


def test_the_decoder_does_not_train_the_convolutions_and_the_loss_does():
    model = tiny()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    q, _, loss = model.quantizer(model.latents(x))
    F.mse_loss(model.paint(q), x).backward(retain_graph=True)
    assert all(p.grad is None for p in model.quantizer.parameters())
    assert model.encoder[-1].weight.grad.any()
    loss.backward()
    used = {id(model.quantizer.phi(k)) for k in range(3)}
    assert all(phi.weight.grad.any() for phi in model.quantizer.phis if id(phi) in used)


def test_the_gradient_passes_straight_through_once():
    passes_once(quantizer(), torch.randn(2, 16, 5))


# What the generator reads


def test_a_sampler_meets_the_same_sums_and_inputs_as_training():
    model = tiny().eval()
    tokens = torch.randint(11, (4, 21))
    sums, inputs = model.partial_sums(tokens), model.teacher_forcing_input(tokens)
    assert inputs.shape == (4, 20, 5)
    f_hat, read = 0.0, []
    for k, indices in enumerate(model.quantizer.split(tokens)):
        f_hat = model.quantizer.accumulate(f_hat, indices, k)
        assert torch.equal(f_hat, sums[k])
        if k < 2:
            read.append(model.quantizer.next_input(f_hat, k))
    assert torch.equal(torch.cat(read, 1), inputs)
    assert torch.equal(model.paint(f_hat), model.decode(tokens))


def test_the_input_of_a_scale_knows_only_the_scales_before():
    model, tokens = tiny().eval(), torch.randint(11, (1, 21))
    for first, stop, known in ((0, 1, 0), (1, 5, 4), (5, 21, 20)):  # change scale 1, 2, 4; inputs before stay
        changed = tokens.clone()
        changed[:, first:stop] = (changed[:, first:stop] + 1) % 11
        before, after = model.teacher_forcing_input(tokens), model.teacher_forcing_input(changed)
        assert torch.equal(before[:, :known], after[:, :known])
        assert known == 20 or not torch.equal(before[:, known:], after[:, known:])


def test_inputs_are_data_without_gradient():
    model, tokens = tiny().train(), torch.randint(11, (2, 21))
    assert not model.teacher_forcing_input(tokens).requires_grad
    assert model.decode(tokens).requires_grad


def test_what_a_sampler_gets_wrong_is_refused():
    q, tokens = tiny().quantizer, torch.zeros(2, 4).long()
    with pytest.raises(ValueError, match="k = 2 has 4 x 4 tokens; got 4"):
        q.accumulate(0.0, tokens, 2)
    with pytest.raises(ValueError, match="0 to 2; got k = 3"):
        q.accumulate(0.0, tokens, 3)
    with pytest.raises(ValueError, match="0 .. 10, got 11"):
        q.accumulate(0.0, tokens + 11, 1)
    for k in (2, -1):
        with pytest.raises(ValueError, match=f"none follows the last; got k = {k}"):
            q.next_input(torch.zeros(2, 16, 5), k)


def test_the_input_is_the_shrunk_sum_and_not_the_codes():
    model, tokens = tiny().eval(), torch.randint(11, (1, 21))
    same(model.teacher_forcing_input(tokens)[:, :4], resize(model.partial_sums(tokens)[0], 2, "area"))
    assert not torch.allclose(model.teacher_forcing_input(tokens)[:, 4:], model.embed(tokens)[:, 5:])


# Learning


def test_one_codebook_follows_the_rows_of_all_scales_in_one_update():
    follows(quantizer(revive_below=0).train(), torch.randn(2, 16, 5), [1, 4, 9, 16])


def test_codebooks_may_be_separate():
    q, z = quantizer(shared=False).train(), torch.randn(2, 16, 5)
    assert len(q.tables) == 4
    tokens = q(z)[1]
    q.eval()
    same(q.codes(tokens)[:, 1:5], q.tables[1].codes(tokens[:, 1:5]))


def test_evaluation_changes_nothing():
    q = quantizer()
    with unchanged(q):
        q(torch.randn(2, 16, 5))


# The tokenizer


def test_one_vocabulary_serves_all_scales():
    model, tokens = tiny().eval(), torch.randint(11, (2, 21))
    assert torch.equal(model.embed(tokens), model.quantizer.tables[0].codebook[tokens])


def test_upto_keeps_the_coarse_scales():
    model, tokens = tiny().eval(), torch.randint(11, (1, 21))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    assert torch.equal(model.decode(tokens, upto=2), model.decode(changed, upto=2))
    assert not torch.equal(model.decode(tokens), model.decode(changed))
    assert torch.equal(model.decode(tokens, upto=3), model.decode(tokens))


def test_scales_that_do_not_end_in_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"grid, 4 x 4; got scales \(1, 2\)"):
        tiny(scales=(1, 2))


def test_teacher_forcing_needs_whole_pyramids():
    with pytest.raises(ValueError, match="tokens must be long"):
        tiny().teacher_forcing_input(torch.zeros(1, 16).long())
