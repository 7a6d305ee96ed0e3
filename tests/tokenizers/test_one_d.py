"""Query tokenizers: who sees whom, what a prefix depends on, and what training shows."""

import pytest
import torch

from minimal import checkpoints
from minimal.data import load
from minimal.metrics import batched, psnr
from minimal.tokenizers.nested import doublings, uniform
from minimal.tokenizers.one_d import OneDTokenizer

SMALL = dict(image_shape=(3, 8, 8), length=4, codebook_size=16, dim=5, patch=4, width=16, layers=2, heads=2)


def small(law=uniform(4), **changes):
    torch.manual_seed(0)
    return OneDTokenizer(law=law, **(SMALL | changes)).eval()


def images(count=6, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The encoder


def test_titok_has_no_order_and_everybody_sees_everybody():
    assert small(None).mask.all() and not small(None).levels.any()


def test_with_a_law_queries_see_patches_and_those_not_after_them_and_patches_see_patches():
    mask = small(uniform(6)).mask.long()
    n, m = 4, 6
    assert (mask[:n, :n] == 1).all() and (mask[:n, n:] == 0).all() and (mask[n:, :n] == 1).all()
    assert torch.equal(mask[n:, n:], torch.ones(m, m).tril().long())
    assert small(uniform(6)).levels.tolist() == [0, 1, 2, 3]


def test_a_token_depends_on_no_later_query_and_on_every_earlier_one():
    model, x = small(), images()
    before = model.latents(x)
    for j in range(4):
        model = small()
        model.queries.data[j] += 1.0
        changed = (model.latents(x) - before).abs().amax((0, 2)) > 0
        assert changed.tolist() == [i >= j for i in range(4)]


def test_redundant_queries_change_no_real_token():
    model, x = small(uniform(7)), images()
    torch.testing.assert_close(model.latents(x, model.queries)[:, :4], model.latents(x))
    assert model.encode(x).shape == (6, 4)


def test_patches_may_be_shuffled_together_with_their_places():
    model, x = small(), images()
    before = model.latents(x)
    order = torch.tensor([2, 0, 3, 1])
    model.patch_places.data = model.patch_places.data[order]
    model.gather.weight.data = model.gather.weight.data[:, order]
    patches = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
    shuffled = patches.unflatten(1, (2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    assert not torch.equal(shuffled, x)
    torch.testing.assert_close(model.latents(shuffled), before, rtol=1e-4, atol=1e-5)


# The decoder


def test_an_image_from_k_tokens_ignores_the_others_bit_by_bit():
    model, tokens = small(uniform(6)), torch.randint(16, (5, 4))
    for k in range(1, 5):
        other = tokens.clone()
        other[:, k:] = (other[:, k:] + 3) % 16
        assert torch.equal(model.decode(tokens, upto=k), model.decode(other, upto=k))
        torch.testing.assert_close(model.decode(tokens, upto=k), model.decode(tokens[:, :k]))
        other[:, k - 1] = (tokens[:, k - 1] + 3) % 16
        assert not torch.allclose(model.decode(tokens, upto=k), model.decode(other, upto=k))


def test_decoding_is_painting_the_codes():
    model, x = small(), images()
    tokens = model.encode(x)
    assert torch.equal(model.encode(x), model.quantizer.nearest(model.latents(x)))
    expected = model.paint(model.embed(tokens), torch.full((6,), 4))
    assert torch.equal(model.decode(tokens), expected) and expected.shape == x.shape


def test_one_token_reaches_every_patch_and_a_cut_is_not_a_code_of_zeros():
    model, tokens = small(), torch.randint(16, (1, 4))
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % 16
    moved = (model.decode(tokens) - model.decode(other)).abs().amax(1)[0]
    assert (moved.unfold(0, 4, 4).unfold(1, 4, 4).amax((-1, -2)) > 0).all()
    q = model.embed(tokens)
    q[:, 2:] = 0
    assert not torch.allclose(model.paint(q, torch.tensor([4])), model.paint(q, torch.tensor([2])))


# Training


def test_only_tokens_that_are_shown_are_quantized_learned_and_committed():
    model, z = small(codebook_size=4).train(), torch.randn(6, 4, 5, requires_grad=True)
    shown = model.first(torch.tensor([1, 2, 3, 4, 1, 2]))
    seen = []
    model.quantizer.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    q, aux_loss = model.quantize(z, shown)
    assert torch.equal(seen[0], z[shown]) and torch.equal(q[~shown], torch.zeros(11, 5))
    commitment = torch.autograd.grad(aux_loss, z, retain_graph=True)[0]
    assert (commitment[~shown] == 0).all() and (commitment[shown] != 0).any()
    copied = torch.autograd.grad(q.sum(), z)[0]
    assert torch.equal(copied, shown[..., None].expand_as(z).float())  # straight through, each to its own place


def test_the_loss_at_full_length_is_the_error_of_the_round_trip():
    model, x = small(None), images()
    _, logs = model.loss(x)
    expected = (model.decode(model.encode(x)) - x).square().mean()
    torch.testing.assert_close(logs["mse"], expected)


def test_a_step_moves_every_parameter_that_has_a_part_in_it():
    model = small(uniform(6)).train()
    model.loss(images(64))[0].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_every_query_is_standardized_by_the_batch_in_training_and_by_running_values_after():
    model, x = small(uniform(6)).train(), images(64)
    z = model.latents(x, model.queries)
    torch.testing.assert_close(z.mean(0), torch.zeros(6, 5), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(6, 5), rtol=0, atol=1e-2)
    for _ in range(100):
        model.latents(x, model.queries)
    model.eval()
    torch.testing.assert_close(model.latents(x), z[:, :4], rtol=0.01, atol=0.01)  # running variances are unbiased
    torch.testing.assert_close(model.latents(x)[:3], model.latents(x[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", [None, uniform(6)])
def test_a_saved_tokenizer_comes_back_the_same(law, tmp_path):
    model, x = small(law), images()
    checkpoints.save(model, tmp_path / "row.safetensors", recipe="none")
    again = checkpoints.load(tmp_path / "row.safetensors")
    assert again.config == model.config and again.law == model.law and again.length == 4
    torch.testing.assert_close(again.latents(x), model.latents(x), rtol=0, atol=0.02)  # float16


# Errors


def test_bad_input_is_refused():
    model = small()
    with pytest.raises(ValueError, match="at most 4"):
        model.decode(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="0 .. 15"):
        model.decode(torch.full((1, 4), 16))
    with pytest.raises(ValueError, match="pixels in"):
        model.encode(images() * 3)
    with pytest.raises(ValueError, match="patches of 3"):
        small(patch=3)
    with pytest.raises(ValueError, match="as many lengths"):
        small(uniform(3))


# Shipped


@pytest.mark.slow
def test_the_shipped_tokenizer_gets_better_with_every_doubling():
    metrics = checkpoints.header("shapes_one_d")["metrics"]
    for split in ("validation", "test"):
        by_length = [metrics[f"{split}_psnr_{k}"] for k in (1, 2, 4, 8, 16, 32)]
        assert all(more > less + 0.05 for less, more in zip(by_length, by_length[1:]))
    model, x = checkpoints.load("shapes_one_d"), load("shapes", "validation", version="single").images
    assert model.length == 32 and model.law == pytest.approx(doublings(32))
    tokens = batched(model.encode, x)
    for k in (1, 32):
        measured = psnr(batched(lambda part: model.decode(part, upto=k), tokens).clamp(-1, 1), x).mean().item()
        assert measured == pytest.approx(metrics[f"validation_psnr_{k}"], abs=0.05)  # weights are stored in float16


def test_redundant_tokens_made_the_whole_row_better_in_every_seed():
    nested, padded = (checkpoints.header(f"digits_{name}")["metrics"] for name in ("nested", "retok"))
    for seed in range(3):
        assert padded[f"seed{seed}_mse_8"] < 0.97 * nested[f"seed{seed}_mse_8"]
        tails = [sum(m[f"seed{seed}_bits_{k}"] for k in range(5, 9)) for m in (nested, padded)]
        assert tails[0] < tails[1]
    model = checkpoints.load("digits_retok")
    assert model.length == 8 and model.law == pytest.approx(uniform(14))


def test_training_shared_by_processes_is_refused(monkeypatch):
    monkeypatch.setattr("minimal.processes.count", lambda: 2)  # each would standardise by its own rows
    with pytest.raises(ValueError, match="in one process"):
        small().train().loss(images())
