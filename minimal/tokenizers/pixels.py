"""Pixels as tokens: the trivial tokenizer, with nothing to learn and nothing to lose (PixelRNN, arXiv 1601.06759).

A grey level is a word. Rounding each value to one of V evenly spaced levels turns an image into a sequence in
raster order; the colours of one pixel stand next to each other. The digits have 17 levels, so there the round trip
is exact and an autoregressive model of the tokens is a likelihood of the images themselves.

    token = round((x + 1) / 2 · (V − 1)),    x = 2 · token / (V − 1) − 1

Shapes: images (B, C, H, W) in [-1, 1]; tokens long (B, N) with N = H·W·C.
"""

import math

import torch
from torch import Tensor, nn

from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_images


class PixelTokenizer(nn.Module):
    """Grey levels as a vocabulary; `levels` is the number of values that one pixel can take."""

    def __init__(self, levels: int = 17, image_shape: tuple[int, int, int] = (1, 8, 8)):
        super().__init__()
        self.config = arguments(locals())
        self.vocab_size = levels
        self.image_shape = tuple(image_shape)
        self.length = math.prod(self.image_shape)
        self.register_buffer("levels", torch.zeros(self.length, dtype=torch.long), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N)."""
        check_images(x, self.image_shape)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, C, H, W) -> (B, N), colours side by side
        return ((x + 1) / 2 * (self.vocab_size - 1)).round().long()

    def decode(self, tokens: Tensor, upto: int | None = None) -> Tensor:
        """Tokens (B, N) to images (B, C, H, W). With `upto`, all later pixels are left at mid-grey."""
        x = self.embed(tokens).squeeze(-1)  # (B, N)
        if upto is not None:
            x[:, upto:] = 0
        channels, height, width = self.image_shape
        return x.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2).contiguous()

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) to pixel values (B, N, 1)."""
        if tokens.shape[1:] != (self.length,):
            raise ValueError(f"expected tokens of shape (B, {self.length}), got {tuple(tokens.shape)}")
        if tokens.numel() and (tokens.min() < 0 or tokens.max() >= self.vocab_size):
            raise ValueError(f"expected tokens in 0..{self.vocab_size - 1}, got {tokens.min()}..{tokens.max()}")
        return (tokens.float() * 2 / (self.vocab_size - 1) - 1).unsqueeze(-1)

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """Mean squared rounding error: there is nothing to train, the number says what rounding costs."""
        error = (self.decode(self.encode(x)) - x).square().mean()
        return error, {"mse": error.detach()}
