"""A measuring suite for tokenizers: what is lost, what it costs, and what a mistake does (VTBench, arXiv 2505.13439).

Every tokenizer gets the same pictures, and one row of a table: error (PSNR), structure (SSIM), distance in the features
of a judge, letters misread, codes in use, bits, and the error when some codes are wrong (RobustTok, 2503.08354). One
number alone does not rank tokenizers; the rate stands next to every one of them.

    bits           = N log₂ K, and ∞ for tokens that are real numbers
    character error rate = Σ edit distance(true string, what the reader sees) / Σ length of the true string

The reader sees one character at a time, so it cannot guess from context; its reference is the string that was drawn,
never what it reads in the original, so its own errors are counted too. Pictures are clamped to [-1, 1] before anything
is measured, and not rounded to 256 levels.

Shapes: images (B, C, H, W) in [-1, 1]; tokens (B, N).
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minimal.data import words
from minimal.metrics import batched, codebook_usage, frechet_distance, perplexity, psnr, ssim
from minimal.tokenizers.perturb import perturb_tokens

CAP = 60.0  # dB: an error below that of rounding to 256 levels (58.9 dB) counts as none
READER = "words_reader"
READER_SHA256 = "d81d36c463f65d7270f2db49e256c3ee83142f2754c0a04f25a9bbf524846b4f"  # frozen, as the judges are


@dataclass(frozen=True)
class Measured:
    """One row of the table. None: not asked for, or there are no codes."""

    bits: float  # per image
    psnr: float  # dB, mean over images, each capped at CAP
    ssim: float
    feature_distance: float | None = None  # Fréchet, originals against reconstructions
    codes_used: float | None = None  # share of the codebook
    perplexity: float | None = None  # how many equally frequent codes would be as diverse
    perturbed_psnr: float | None = None  # with wrong codes
    character_errors: float | None = None  # share of characters, 0 is perfect
    word_errors: float | None = None  # share of pictures with any character wrong


@torch.inference_mode()
def evaluate_tokenizer(
    tokenizer: nn.Module,
    images: Tensor,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    read: Callable[[Tensor], list[str]] | None = None,
    texts: Sequence[str] = (),
    alpha: float = 0.5,
    delta: float = 1 / 8,
    seed: int = 0,
) -> Measured:
    """Measure a tokenizer on images (B, C, H, W).

    `features`: images to vectors, those of a judge. `read` and `texts`: images to strings, and the true strings (B).
    `alpha`, `delta`: share of tokens that may move, and to which share of the codes (perturb.py), but two at least.
    """
    tokens = batched(tokenizer.encode, images, 250)
    shown = decoded(tokenizer, tokens)
    size, row = tokenizer.vocab_size, {}
    if size is not None:
        near, generator = max(2, round(delta * size)), torch.Generator().manual_seed(seed)
        wrong = decoded(tokenizer, perturb_tokens(tokenizer, tokens, alpha, near, generator))
        row |= dict(codes_used=codebook_usage(tokens, size), perplexity=perplexity(tokens, size))
        row |= dict(perturbed_psnr=mean_psnr(wrong, images))
    if features is not None:
        row |= dict(feature_distance=frechet_distance(batched(features, images), batched(features, shown)))
    if read is not None:
        seen = read(shown)
        row |= dict(character_errors=character_error_rate(texts, seen), word_errors=word_error_rate(texts, seen))
    return Measured(bits_per_image(tokenizer), mean_psnr(shown, images), ssim(shown, images).mean().item(), **row)


def decoded(tokenizer: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens (B, N) to images (B, C, H, W) in [-1, 1]."""
    return batched(tokenizer.decode, tokens, 250).clamp(-1, 1)


def mean_psnr(shown: Tensor, images: Tensor) -> float:
    """Mean over images of the PSNR in dB, each at most CAP: one perfect image must not make the mean infinite."""
    return psnr(shown, images).clamp(max=CAP).mean().item()


def bits_per_image(tokenizer: nn.Module) -> float:
    """N log₂ K: what it costs to write the tokens down, without any model of them."""
    size = tokenizer.vocab_size
    return math.inf if size is None else len(tokenizer.levels) * math.log2(size)


# Text


def edit_distance(a: Sequence, b: Sequence) -> int:
    """Fewest insertions, deletions and substitutions that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))  # from nothing to each beginning of b
    for i, x in enumerate(a, start=1):
        left_above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            left_above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left_above + (x != y))
    return row[-1]


def character_error_rate(texts: Sequence[str], seen: Sequence[str]) -> float:
    """Edits needed per character of the true texts; above 1 if more was read than was there."""
    check_texts(texts, seen)
    return sum(map(edit_distance, texts, seen)) / sum(map(len, texts))


def word_error_rate(texts: Sequence[str], seen: Sequence[str]) -> float:
    """Share of the texts that were not read exactly."""
    check_texts(texts, seen)
    return sum(a != b for a, b in zip(texts, seen)) / len(texts)


def check_texts(texts: Sequence[str], seen: Sequence[str]) -> None:
    if not sum(map(len, texts)) or len(texts) != len(seen):
        raise ValueError(
            f"one string was read for each true, not empty one; got {len(texts)} true and {len(seen)} read"
        )


def reader(judge: nn.Module) -> Callable[[Tensor], list[str]]:
    """Pictures of words (B, 3, 32, 32) to strings, by a judge of characters that sees one cell at a time."""

    def read(images: Tensor) -> list[str]:
        places = batched(judge, words.cells(images)).argmax(1)
        return words.strings(places.view(-1, words.LENGTH))

    return read


# Speed


@torch.inference_mode()
def relative_times(tokenizers: Mapping[str, nn.Module], images: Tensor, rounds: int = 7) -> dict[str, float]:
    """Time for encoding and decoding `images`, as a multiple of the first tokenizer's: medians over rotating turns."""
    times = {name: [] for name in tokenizers}
    for turn in range(rounds + 1):
        for name, tokenizer in tokenizers.items():
            started = time.perf_counter()
            tokenizer.decode(tokenizer.encode(images))
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - started)
    first, *_ = medians = [statistics.median(values) for values in times.values()]
    return {name: median / first for name, median in zip(times, medians)}
