"""A grid of tokens: a convolutional autoencoder with a quantizer in its waist. The frame of all grid tokenizers.

The encoder turns an image into a grid of vectors, a quantizer replaces each vector by one of its codes, and the decoder
paints the image from the codes. Every paper on grid tokens changes the quantizer and keeps the frame, so here the
quantizer is an argument. Its face:

    quantizer(z) -> (q, indices, aux_loss)      z, q (..., D): q has the value of the code and carries z's gradient
    quantizer.nearest(rows) -> indices          rows (M, D), indices (M,)
    quantizer.codes(indices) -> q               (...) to (..., D)
    quantizer.mean_code() -> (D,)               the middle of all codes: a cell of which nothing is known
    quantizer.dim, quantizer.vocab_size

Shapes: images (B, C, H, W); latents z, q (B, N, D) in raster order, N = H/f · W/f cells for a grid that is f times
coarser; tokens long (B, N).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.conv import ConvDecoder, ConvEncoder
from minimal.tokenizers.checks import check_images


class GridTokenizer(nn.Module):
    """Images to one code per cell of a grid, and back. The grid is patch · 2ᵏ times coarser, k = len(widths) − 1.

    `patch` folds p x p pixels into channels before the first convolution: full resolution costs most and, on images
    as clean as ours, buys little.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        quantizer: nn.Module,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
    ):
        super().__init__()
        channels, height, width = self.image_shape = tuple(image_shape)
        factor = patch * 2 ** (len(widths) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"patches of {patch} and {len(widths)} widths make the grid {factor} times coarser; "
                f"{height} x {width} is not divisible by {factor}"
            )
        self.grid = (height // factor, width // factor)
        self.length = self.grid[0] * self.grid[1]
        self.patch = patch
        self.encoder = ConvEncoder(channels * patch**2, quantizer.dim, widths, blocks)
        self.quantizer = quantizer
        self.decoder = ConvDecoder(channels * patch**2, quantizer.dim, widths, blocks)
        self.register_buffer("levels", torch.zeros(self.length, dtype=torch.long), persistent=False)

    @property
    def vocab_size(self) -> int:
        return self.quantizer.vocab_size

    def latents(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to vectors (B, N, D) in raster order."""
        check_images(x, self.image_shape)
        return self.encoder(F.pixel_unshuffle(x, self.patch)).flatten(2).mT

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N)."""
        z = self.latents(x)
        return self.quantizer.nearest(z.flatten(0, 1)).view(z.shape[:-1])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) to codes (B, N, D)."""
        if tokens.dtype != torch.long or tokens.shape[1:] != (self.length,):
            raise ValueError(f"tokens must be long (B, {self.length}), got {tokens.dtype} {tuple(tokens.shape)}")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            found, last = f"{tokens.min()} to {tokens.max()}", self.vocab_size - 1
            raise ValueError(f"tokens run from {found}, the codebook from 0 to {last}")
        return self.quantizer.codes(tokens)

    def decode(self, tokens: Tensor, upto: int | None = None) -> Tensor:
        """Tokens (B, N) to images (B, C, H, W). With `upto`, the cells behind show the mean of all codes."""
        q = self.embed(tokens)
        if upto is not None:
            if not 0 <= upto <= self.length:
                raise ValueError(f"upto counts tokens, 0 to {self.length}; got {upto}")
            q[:, upto:] = self.quantizer.mean_code()
        return self.paint(q)

    def paint(self, q: Tensor) -> Tensor:
        """Codes (B, N, D) to images (B, C, H, W)."""
        return F.pixel_shuffle(self.decoder(q.mT.unflatten(-1, self.grid)), self.patch)

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """Mean squared error of the image plus what the quantizer asks for."""
        q, indices, aux_loss = self.quantizer(self.latents(x))
        mse = F.mse_loss(self.paint(q), x)
        logs = {"mse": mse.detach(), "aux_loss": aux_loss.detach(), "codes_in_batch": indices.unique().numel()}
        return mse + aux_loss, logs
