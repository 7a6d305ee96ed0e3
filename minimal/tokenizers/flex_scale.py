"""The tokenizer of FlexVAR: one VQ autoencoder for maps of any size (arXiv 2502.20313; id `flexvar`).

In VAR's pyramid a coarse map means nothing without the maps before it: each holds what those left over. Here every map
is a whole picture of its own. The encoder's grid is shrunk to p x p cells by averaging and quantized, and the decoder,
which is made of convolutions and so takes any size, paints it at f·p pixels. In training it is compared with the image
shrunk to that size: always the full map, and beside it two smaller ones, drawn anew for every batch.

    z_p = area(z, p),    i_p = nearest(z_p / |z_p|),    x_p = decode(e_(i_p))
    loss = mean over p of |x_p − area(x, f·p)|², plus what the codebook asks for

Codes lie on the unit sphere, as in the paper: averaging shortens a vector, and its length says nothing about which code
it needs. The paper's tokenizer has perceptual and adversarial losses besides; at 32 x 32 pixels the error is enough.

Shapes: images (B, C, H, H); one map of tokens long (B, p·p) in raster order, p any; a pyramid of maps (B, Σ p²).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minimal import processes
from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_indices
from minimal.tokenizers.grid import GridTokenizer
from minimal.tokenizers.multiscale import resize
from minimal.tokenizers.vq import CosineVectorQuantizer


def side_of(cells: int) -> int:
    """p of a square map of p·p cells; ValueError for any other number."""
    p = round(cells**0.5)
    if p < 1 or p * p != cells:
        raise ValueError(f"a map is square, p·p tokens; got {cells}")
    return p


class FlexScaleTokenizer(GridTokenizer):
    """`encode` gives the full map, `pyramid` maps of any sides; `decode` paints a map of any side, even an unseen one.

    `smaller`: how many smaller maps a training step adds to the full one.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        codebook_size: int = 512,
        dim: int = 8,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 2,
        smaller: int = 2,
    ):
        super().__init__(image_shape, CosineVectorQuantizer(codebook_size, dim), widths, blocks, patch)
        self.config = arguments(locals())
        if self.grid[0] != self.grid[1]:
            raise ValueError(f"maps are square; the grid of {image_shape} is {self.grid[0]} x {self.grid[1]}")
        self.side, self.smaller = self.grid[0], min(smaller, self.grid[0] - 1)
        self.factor = image_shape[1] // self.side

    def pyramid(self, x: Tensor, sides: Sequence[int]) -> Tensor:
        """Images (B, C, H, H) to the tokens of a map for each of `sides`, (B, Σ p²), in that order."""
        if not sides or min(sides) < 1:
            raise ValueError(f"a pyramid needs sides of at least 1, got {tuple(sides)}")
        z = self.latents(x)
        return torch.cat([self.quantizer.nearest(resize(z, p, "area")) for p in sides], dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """One square map (B, p·p) to codes of length one, (B, p·p, D)."""
        check_indices(tokens, self.vocab_size)
        side_of(tokens.shape[1])
        return self.quantizer.codes(tokens)

    def paint(self, q: Tensor) -> Tensor:
        """Codes (B, p·p, D) to images (B, C, f·p, f·p)."""
        p = side_of(q.shape[1])
        return F.pixel_shuffle(self.decoder(q.mT.unflatten(-1, (p, p))), self.patch)

    def shrunk(self, x: Tensor, p: int) -> Tensor:
        """Images (B, C, H, W) of any size averaged to (B, C, f·p, f·p): what a map of side p should show."""
        return F.interpolate(x, (self.factor * p, self.factor * p), mode="area")

    @processes.common_noise()
    def sides(self) -> list[int]:
        """The full side and some smaller ones, each as likely, none twice. Of all processes alike."""
        return [self.side, *(1 + torch.randperm(self.side - 1)[: self.smaller]).tolist()]

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """Mean squared error of the images of all maps, each map counting the same, plus the quantizer's loss."""
        z, sides = self.latents(x), self.sides()
        q, indices, aux_loss = self.quantizer(torch.cat([resize(z, p, "area") for p in sides], dim=1))
        maps = q.split([p * p for p in sides], dim=1)
        errors = torch.stack([F.mse_loss(self.paint(m), self.shrunk(x, p)) for m, p in zip(maps, sides, strict=True)])
        logs = {"mse": errors[0].detach(), "smaller_mse": errors[1:].mean().detach(), "aux_loss": aux_loss.detach()}
        return errors.mean() + aux_loss, logs | {"codes_in_batch": indices.unique().numel()}
