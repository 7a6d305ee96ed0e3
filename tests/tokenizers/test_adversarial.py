"""Adversarial training: the hinge, the balance of two gradients, and two players who move only themselves."""

import pytest
import torch
import torch.nn.functional as F

from minimal import checkpoints, data
from minimal.metrics import batched, frechet_distance, psnr
from minimal.tokenizers.adversarial import (
    AdversarialStep,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from minimal.tokenizers.vq import VQTokenizer
from minimal.train import fit


def players(seed: int = 0) -> tuple[VQTokenizer, PatchDiscriminator, torch.Tensor]:
    torch.manual_seed(seed)
    tokenizer = VQTokenizer((3, 16, 16), codebook_size=16, dim=4, widths=(8, 8))
    return tokenizer, PatchDiscriminator(3, widths=(8, 16)), torch.rand(6, 3, 16, 16) * 2 - 1


def l1(x, y):
    return (x - y).abs().flatten(1).mean(1)


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)


def test_the_hinge_on_logits_made_by_hand():
    real, painted = torch.tensor([2.0, 1.0, 0.5, -1.0]), torch.tensor([-3.0, -1.0, 0.0, 2.0])
    assert discriminator_loss(real, painted).item() == pytest.approx(((0 + 0 + 0.5 + 2) / 4 + (0 + 0 + 1 + 3) / 4) / 2)
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == 1  # who cannot tell pays one
    assert discriminator_loss(torch.ones(2, 1, 3, 3), -torch.ones(2, 1, 3, 3)).item() == 0
    assert generator_loss(painted).item() == pytest.approx(0.5)  # minus the mean, on both sides of the hinge


def test_the_hinge_stops_pushing_beyond_the_margin():
    real, painted = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-1.5, -0.5], requires_grad=True)
    discriminator_loss(real, painted).backward()
    assert real.grad.tolist() == [0, -0.25] and painted.grad.tolist() == [0, 0.25]


@pytest.mark.parametrize("gain", [1e-2, 1.0, 1e3])
def test_the_adaptive_weight_makes_both_gradients_equally_long(gain):
    tokenizer, discriminator, x = players()
    painted = tokenizer.paint(tokenizer.quantizer(tokenizer.latents(x))[0])
    weight = tokenizer.decoder[-1].weight
    reconstruction, adversarial = F.mse_loss(painted, x), gain * generator_loss(discriminator(painted))
    balance = adaptive_weight(reconstruction, adversarial, weight)
    wanted, found = (torch.autograd.grad(v, weight, retain_graph=True)[0] for v in (reconstruction, adversarial))
    assert not balance.requires_grad
    assert balance.item() == pytest.approx((wanted.norm() / (found.norm() + 1e-4)).item())
    if gain >= 1:
        assert (balance * found).norm().item() == pytest.approx(wanted.norm().item(), rel=0.02)


def test_the_adaptive_weight_is_bounded_where_the_discriminator_is_flat():
    weight = torch.ones(3, requires_grad=True)
    assert adaptive_weight(100 * weight.sum(), 0 * weight.sum(), weight).item() == 1e4
    assert adaptive_weight(100 * weight.sum(), 0 * weight.sum(), weight, largest=7).item() == 7


def test_the_loss_of_the_discriminator_leaves_the_tokenizer_alone():
    tokenizer, discriminator, x = players()
    (_, judged), _ = AdversarialStep(tokenizer, discriminator)((x,), 0)
    assert all(g is None for g in gradients(judged, tokenizer))
    assert all(g is not None for g in gradients(judged, discriminator))
    assert any(g.norm() > 0 for g in gradients(judged, discriminator))


def test_a_step_of_fit_gives_each_player_the_gradient_of_its_own_loss():
    tokenizer, discriminator, x = players()
    step = AdversarialStep(tokenizer, discriminator)
    step((x,), 0)  # the first batch sets the codebook, at random; from now on a step is a function of the batch
    (loss, judged), _ = step((x,), 0)
    expected = gradients(loss, tokenizer), gradients(judged, discriminator)
    foreign = gradients(loss, discriminator)  # the tokenizer's wish does depend on the discriminator's weights
    assert any(g.norm() > 0 for g in foreign)

    optimizers = [torch.optim.SGD(player.parameters(), lr=1e-9) for player in (tokenizer, discriminator)]
    both = {"tokenizer": tokenizer, "discriminator": discriminator}
    tokenizer.quantizer.update = lambda rows, indices: None  # the codes stay where they were
    fit(both, (x,), optimizers, steps=1, step_fn=step, batch_size=6, clip=float("inf"), progress=False)
    for player, wanted in zip((tokenizer, discriminator), expected):
        for p, g in zip(player.parameters(), wanted):
            torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)


def test_before_the_start_it_is_plain_training():
    tokenizer, discriminator, x = players()
    step = AdversarialStep(tokenizer.eval(), discriminator, start=5)
    (loss, judged), logs = step((x,), 4)
    assert judged is None and logs["lambda"] == 0
    torch.testing.assert_close(loss, tokenizer.loss(x)[0])
    (loss, judged), logs = step((x,), 5)
    assert judged is not None and logs["lambda"] > 0


def test_the_loss_is_the_weighted_sum():
    tokenizer, discriminator, x = players()
    tokenizer.eval()
    q, _, aux_loss = tokenizer.quantizer(tokenizer.latents(x))
    painted = tokenizer.paint(q)
    step = AdversarialStep(tokenizer, discriminator, l1, perceptual_weight=0.3, adversarial_weight=0.5)
    (loss, judged), logs = step((x,), 0)
    reconstruction = F.mse_loss(painted, x) + 0.3 * l1(painted, x).mean()
    adversarial = -discriminator(painted).mean()
    balance = adaptive_weight(reconstruction, adversarial, tokenizer.decoder[-1].weight)
    torch.testing.assert_close(loss, reconstruction + 0.5 * balance * adversarial + aux_loss)
    torch.testing.assert_close(judged, discriminator_loss(discriminator(x), discriminator(painted)))
    torch.testing.assert_close(logs["lambda"], balance)


def test_a_patch_sees_its_window_and_no_other_image():
    _, discriminator, _ = players()
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = discriminator(x)
    assert logits.shape == (2, 1, 8, 8)
    window = PatchDiscriminator(3, widths=(8,))  # without normalisation the window is that of the convolutions
    logits = window(x)
    logits[0, 0, 8, 8].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [8, 8]
    assert not x.grad[1].any()
    alone = torch.cat([discriminator(part) for part in x.split(1)])
    torch.testing.assert_close(discriminator(x), alone)


def test_the_discriminator_learns_to_tell_blurred_images_from_sharp_ones():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, widths=(8,))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(60):
        x = torch.rand(16, 1, 8, 8).round() * 2 - 1
        blurred = F.avg_pool2d(x, 3, 1, 1)
        loss = discriminator_loss(discriminator(x), discriminator(blurred))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    assert discriminator(x).mean() > 0.5 > -0.5 > discriminator(blurred).mean()


@pytest.mark.slow
def test_the_shipped_tokenizers_trade_psnr_for_the_judge():
    images, judge = data.load("shapes", "validation", version="single").images[:400], checkpoints.load("judge_shapes")
    decibels, distance = {}, {}
    for name in ("mse", "perceptual", "adversarial"):
        tokenizer = checkpoints.load(f"low_rate_{name}")
        painted = batched(lambda x: tokenizer.decode(tokenizer.encode(x)).clamp(-1, 1), images)
        decibels[name] = psnr(painted, images).mean().item()
        distance[name] = frechet_distance(batched(judge.features, painted), batched(judge.features, images))
    for name in ("perceptual", "adversarial"):
        assert decibels["mse"] > decibels[name] + 0.2
        assert distance["mse"] > 2 * distance[name]
