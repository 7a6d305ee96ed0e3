"""Adversarial training of a tokenizer: a second network learns to tell images from reconstructions (id `vqgan`).

Whoever minimises a squared error paints the mean of everything that may have been there, and the mean of sharp edges
is a blur. A discriminator D, trained beside the tokenizer, sees that no real image is blurred like that, and its
gradient pushes the reconstruction towards what is plausible (VQGAN, arXiv 2012.09841). It looks at patches
(PatchGAN, 1611.07004): one logit for each overlapping window, positive for "real". Both sides play for the hinge:

    L_D = ½ [mean max(0, 1 − D(x)) + mean max(0, 1 + D(x̂))]        x̂ detached: moves the discriminator alone
    L   = |x − x̂|² + w_p P(x, x̂) + λ w_a (−mean D(x̂)) + L_vq       moves the tokenizer alone
    λ   = ‖∇_W L_rec‖ / (‖∇_W (−mean D(x̂))‖ + 10⁻⁴),  W the last layer of the decoder, L_rec the first two terms

λ keeps both sides equally strong where the pixels are made, however the discriminator's logits are scaled. Until the
step `start` there is no discriminator: a decoder that paints nothing yet would be beaten before it has learned.

Shapes: images x, x̂ (B, C, H, W); logits (B, 1, h, w).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.conv import norm
from minimal.tokenizers.grid import GridTokenizer


class PatchDiscriminator(nn.Sequential):
    """Images (B, C, H, W) to logits (B, 1, H/2ᵏ, W/2ᵏ) for k = len(widths), one for each of many overlapping patches.

    Strided 4x4 convolutions, then a 3x3 one: three widths see 38 x 38 pixels, two see 18 x 18. VQGAN normalises over
    the batch, by which small batches give themselves away as painted; here each image is normalised alone (so a little
    of the whole image reaches every logit), and the first layer is not, so that it sees contrast.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64)):
        layers = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, width in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), norm(width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def discriminator_loss(real: Tensor, painted: Tensor) -> Tensor:
    """Hinge on logits of any shape: real ones should exceed 1, painted ones fall below −1; beyond that, no reward."""
    return (F.relu(1 - real).mean() + F.relu(1 + painted).mean()) / 2


def generator_loss(painted: Tensor) -> Tensor:
    """Painted images should look real. No hinge here: there is always something to gain."""
    return -painted.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: Tensor, largest: float = 1e4) -> Tensor:
    """λ, by which the gradient of the scalar `adversarial` at `weight` becomes as long as that of `reconstruction`."""
    wanted, found = (torch.autograd.grad(x, weight, retain_graph=True)[0].norm() for x in (reconstruction, adversarial))
    return (wanted / (found + 1e-4)).clamp(max=largest)


class AdversarialStep:
    """One step for `fit` with two optimizers: (loss of the tokenizer, loss of the discriminator or None), logs.

    `perceptual(x, y)` gives distances (B,); None, and weight 0, leave it out.
    """

    def __init__(
        self,
        tokenizer: GridTokenizer,
        discriminator: nn.Module | None = None,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        start: int = 0,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.8,
    ):
        self.tokenizer, self.discriminator, self.perceptual = tokenizer, discriminator, perceptual
        self.start, self.perceptual_weight, self.adversarial_weight = start, perceptual_weight, adversarial_weight

    def __call__(self, batch: tuple[Tensor, ...], step: int) -> tuple[tuple[Tensor, Tensor | None], dict]:
        """`batch`: images (B, C, H, W), and what else the data holds, which is not looked at."""
        x = batch[0]
        q, _, aux_loss = self.tokenizer.quantizer(self.tokenizer.latents(x))
        painted = self.tokenizer.paint(q)
        mse = F.mse_loss(painted, x)
        distance = self.perceptual(painted, x).mean() if self.perceptual else mse.new_zeros(())
        reconstruction = mse + self.perceptual_weight * distance
        logs = {"mse": mse.detach(), "perceptual": distance.detach()}
        if self.discriminator is None or step < self.start:
            return (reconstruction + aux_loss, None), logs | {"lambda": 0.0, "discriminator": 0.0}
        loss, balance = self.against(painted, reconstruction)
        judged = discriminator_loss(self.discriminator(x), self.discriminator(painted.detach()))
        return (loss + aux_loss, judged), logs | {"lambda": balance, "discriminator": judged.detach()}

    def against(self, painted: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """The loss `reconstruction` plus the balanced wish that `painted` (B, C, H, W) look real; and λ."""
        adversarial = generator_loss(self.discriminator(painted))
        balance = adaptive_weight(reconstruction, adversarial, self.tokenizer.decoder[-1].weight)
        return reconstruction + self.adversarial_weight * balance * adversarial, balance
