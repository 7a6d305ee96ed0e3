"""The suite: perfect on what loses nothing, right on numbers known by hand, and frozen in what it reads with."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from minimal import checkpoints, measure, recipes
from minimal.data import words
from minimal.measure import (
    CAP,
    bits_per_image,
    character_error_rate,
    decoded,
    edit_distance,
    evaluate_tokenizer,
    mean_psnr,
    relative_times,
    word_error_rate,
)
from minimal.metrics import psnr
from minimal.tokenizers.kl import KLTokenizer
from minimal.tokenizers.lfq import LFQTokenizer
from minimal.tokenizers.multiscale import MultiScaleTokenizer
from minimal.tokenizers.pixels import PixelTokenizer
from minimal.tokenizers.vq import VQTokenizer

SHORT = st.text("abc", max_size=6)


class Identity(nn.Module):
    """Tokens are the pixels themselves."""

    vocab_size, levels = None, torch.zeros(3072, dtype=torch.long)

    def encode(self, x):
        return x

    decode = encode


@pytest.fixture(scope="module")
def text():
    return words.load("validation", 200)


@pytest.fixture(scope="module")
def read():
    return measure.reader(checkpoints.load(measure.READER))


# The reader


def test_the_reader_is_the_frozen_one_and_reads_originals():
    header = checkpoints.header(measure.READER)
    assert header["sha256"] == measure.READER_SHA256, "the reader changed: measure every table of letters again"
    assert header["class"] == "minimal.judge.Judge" and header["recipe"] == measure.READER
    assert min(header["metrics"].values()) >= 0.98
    assert checkpoints.locate(measure.READER).stat().st_size < 300_000


def test_what_is_read_is_what_was_drawn_in_reading_order(read, text):
    seen = read(text.images)
    assert character_error_rate(text.captions, seen) < 0.03
    assert seen == read(text.images[torch.arange(200)]) and all(len(string) == 4 for string in seen)


def test_the_reader_does_not_look_at_neighbours(read, text):
    other = text.images.clone()
    other[:, :, :, 16:] = text.images.flip(0)[:, :, :, 16:]  # the right column of another picture
    for a, b in zip(read(text.images), read(other)):
        assert a[0] == b[0] and a[2] == b[2]


# Exactness


def test_the_identity_is_perfect_and_misreads_what_the_reader_misreads(read, text):
    row = evaluate_tokenizer(Identity(), text.images, features=flat, read=read, texts=text.captions)
    own = character_error_rate(text.captions, read(text.images))
    assert row.psnr == CAP and row.ssim == 1 and row.feature_distance == pytest.approx(0, abs=1e-6)
    assert row.character_errors == own and row.bits == math.inf
    assert row.codes_used is None and row.perturbed_psnr is None


def flat(images):
    return images[:, :, ::8, ::8].flatten(1)


def test_256_grey_levels_are_lossless_and_cost_8_bits_each(text):
    row = evaluate_tokenizer(PixelTokenizer(256, (3, 32, 32)), text.images[:20], alpha=0.0)
    assert row.psnr == CAP and row.bits == 8 * 3 * 32 * 32
    assert row.perturbed_psnr == row.psnr


def test_the_numbers_are_those_of_their_definitions(text):
    tokenizer, images = PixelTokenizer(3, (3, 32, 32)), text.images[:12]
    row = evaluate_tokenizer(tokenizer, images)
    shown = (images + 1).round() - 1  # three levels: -1, 0, 1
    mse = (shown - images).double().square().mean((1, 2, 3))
    assert row.psnr == pytest.approx((10 * (4 / mse).log10()).mean().item(), abs=1e-9)
    pairs = zip(shown.numpy(), images.numpy())
    by_hand = [structural_similarity(p, q, data_range=2, channel_axis=0) for p, q in pairs]
    assert row.ssim == pytest.approx(sum(by_hand) / 12, abs=1e-4)
    share = torch.stack([(shown == level).double().mean() for level in (-1, 0, 1)])
    assert row.perplexity == pytest.approx(torch.special.entr(share).sum().exp().item())
    assert row.codes_used == (share > 0).double().mean()
    assert row.perturbed_psnr < row.psnr - 1


def test_one_perfect_image_does_not_make_the_mean_infinite():
    images = torch.zeros(2, 1, 8, 8)
    shown = torch.stack([images[0], images[1] + 0.2])
    assert psnr(shown, images).mean() == math.inf
    assert mean_psnr(shown, images) == pytest.approx((CAP + 20) / 2)


def test_pictures_outside_of_the_range_are_clamped_before_they_are_measured():
    class Loud(Identity):
        def decode(self, tokens):
            return 3 * tokens

    images = torch.ones(2, 3, 32, 32)
    assert evaluate_tokenizer(Loud(), images).psnr == CAP and decoded(Loud(), images).max() == 1


@pytest.mark.parametrize(
    "tokenizer, bits",
    [
        (VQTokenizer((3, 16, 16), codebook_size=64, widths=(8, 8)), 64 * 6),
        (LFQTokenizer((3, 16, 16), bits=10, widths=(8, 8)), 64 * 10),
        (MultiScaleTokenizer((3, 8, 8), codebook_size=32, scales=(1, 2, 4), widths=(8, 8)), 21 * 5),
        (KLTokenizer((3, 8, 8), widths=(8, 8)), math.inf),
    ],
)
def test_bits_are_tokens_times_the_logarithm_of_the_codebook(tokenizer, bits):
    assert bits_per_image(tokenizer) == bits


def test_measuring_leaves_the_global_random_numbers_alone_and_repeats_itself():
    tokenizer, images = PixelTokenizer(4, (3, 8, 8)), torch.rand(3, 3, 8, 8)
    before = torch.get_rng_state()
    rows = [evaluate_tokenizer(tokenizer, images) for _ in range(2)]
    assert rows[0] == rows[1] and torch.equal(torch.get_rng_state(), before)


# Texts


@pytest.mark.parametrize(
    "a, b, distance",
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("ABCD", "BCDA", 2), ("flaw", "lawn", 2), ("a", "a", 0)],
)
def test_known_edit_distances(a, b, distance):
    assert edit_distance(a, b) == distance


@given(SHORT, SHORT, SHORT)
def test_edit_distance_is_a_metric_and_never_above_the_count_of_places(a, b, c):
    ab = edit_distance(a, b)
    assert ab == edit_distance(b, a) and (ab == 0) == (a == b)
    assert ab <= edit_distance(a, c) + edit_distance(c, b)
    assert abs(len(a) - len(b)) <= ab <= max(len(a), len(b))
    if len(a) == len(b):
        assert ab <= sum(x != y for x, y in zip(a, b))


def test_error_rates_count_characters_and_whole_texts():
    texts, seen = ["ABCD", "EF"], ["ABXD", "EF"]
    assert character_error_rate(texts, seen) == 1 / 6 and word_error_rate(texts, seen) == 1 / 2
    assert character_error_rate(["A"], ["BCD"]) == 3
    for texts, seen in (([], []), (["", ""], ["", ""]), (["A"], [])):
        with pytest.raises(ValueError, match="true"):
            character_error_rate(texts, seen)


# What the tokenizers of the chapter are trained on


def test_the_mixture_takes_scenes_and_words_in_turn():
    both = recipes.tokenizers.mixture("validation")
    assert len(both) == 2000 and both.split == "validation"
    assert torch.equal(both.images[0::2], recipes.scenes("validation").images)
    assert torch.equal(both.images[1::2], words.load("validation").images)


# Speed


@pytest.mark.slow
def test_the_first_is_the_unit_and_twice_the_work_takes_longer():
    class Slow(Identity):
        def decode(self, x):
            for _ in range(60):
                x = x.cos()
            return x

    times = relative_times({"one": Identity(), "many": Slow()}, torch.zeros(64, 3, 32, 32))
    assert times["one"] == 1 and times["many"] > 3
