"""Pixels as tokens: nothing is lost, and raster order is what it says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.data import load
from minimal.tokenizers.pixels import PixelTokenizer


def test_digits_come_back_as_they_were():
    images, tokenizer = load("digits", "validation").images, PixelTokenizer()
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), images)


@given(levels=st.integers(2, 256), channels=st.sampled_from([1, 3]), height=st.integers(1, 5), width=st.integers(1, 5))
def test_tokens_come_back_as_they_were(levels, channels, height, width):
    tokenizer = PixelTokenizer(levels, (channels, height, width))
    tokens = torch.randint(levels, (3, tokenizer.length))
    images = tokenizer.decode(tokens)
    assert images.shape == (3, channels, height, width) and images.abs().max() <= 1
    assert torch.equal(tokenizer.encode(images), tokens)


@given(levels=st.integers(2, 256))
def test_rounding_moves_a_pixel_by_half_a_step_at_most(levels):
    tokenizer, images = PixelTokenizer(levels, (1, 4, 4)), torch.rand(5, 1, 4, 4) * 2 - 1
    error = (tokenizer.decode(tokenizer.encode(images)) - images).abs().max()
    assert error <= 1 / (levels - 1) + 1e-5
    assert tokenizer.loss(images)[0] <= error**2


def test_reading_goes_by_rows_and_the_colours_of_a_pixel_stand_together():
    image = torch.full((1, 3, 2, 2), -1.0)
    image[0, 2, 0, 1] = 1.0  # blue of the second pixel
    tokens = PixelTokenizer(17, (3, 2, 2)).encode(image)
    assert tokens.nonzero().tolist() == [[0, 5]] and tokens[0, 5] == 16


def test_black_is_the_first_word_and_white_the_last():
    image = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    assert PixelTokenizer(17, (1, 1, 2)).encode(image).tolist() == [[0, 16]]


def test_pixels_that_are_not_drawn_yet_are_grey():
    tokenizer, tokens = PixelTokenizer(17, (1, 2, 2)), torch.full((1, 4), 16)
    assert tokenizer.decode(tokens, upto=3).flatten().tolist() == [1, 1, 1, 0]


def test_the_contract_of_a_tokenizer_is_kept():
    tokenizer = PixelTokenizer(17, (1, 8, 8))
    tokens = torch.randint(17, (2, 64))
    assert (tokenizer.vocab_size, tokenizer.length) == (17, 64)
    assert tokenizer.levels.tolist() == [0] * 64 and tokenizer.embed(tokens).shape == (2, 64, 1)
    assert PixelTokenizer(**tokenizer.config).image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(2, 3, 8, 8), r"shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.full((2, 1, 8, 8), torch.nan), "without NaN"),
        (torch.full((2, 1, 8, 8), 1.5), r"pixels in \[-1, 1\]"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        PixelTokenizer().encode(images)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(2, 63, dtype=torch.long), r"\(B, 64\), got \(2, 63\)"),
        (torch.full((2, 64), 17), r"in 0\.\.16, got 17\.\.17"),
        (torch.full((2, 64), -1), r"in 0\.\.16"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        PixelTokenizer().decode(tokens)
