"""Words: strings of four letters on coloured paper, 32 x 32 pixels, to see whether text survives a tokenizer.

A string has no meaning and four independent characters out of 26 letters and 10 digits, so nobody can read one from its
neighbours. Each character stands alone in a cell of 16 x 16 pixels, in reading order, moved by up to a pixel. Papers
and inks are those of `shapes`, outlines and filling those of `glyphs`. A generator beside the data sets, not one of
them: `load(split)` gives the pictures with their strings as captions, `cells` cuts pictures into letters.
Image i of a split is a pure function of (VERSION, split, i), as everywhere.
"""

import string
from functools import cache

import numpy as np
import torch
from torch import Tensor

from minimal.data import glyphs
from minimal.data.drawing import BACKGROUNDS, PALETTE, SIZE
from minimal.data.frozen import SPLITS, check_split, uniform
from minimal.data.records import Images

VERSION = 1
SIZES = {"train": 10_000, "validation": 1_000, "test": 1_000}
SHA256 = {
    "train": "b9789e8a7c6165ffc750fbd09b6f8ee32ed95acf4db7510df95a5115a96309c5",
    "validation": "9c788da7cc7d6bdb1488b257d2d33202db487cb24ee24257790e83c3b3176924",
    "test": "d776d5340bdc65b4d4354f18bafcf16c27c0a64474b2e3ce4ba3544013f1a801",
}
STREAM = 620  # streams 620 + 10 VERSION + split: far from those of `shapes`
CHARACTERS = string.ascii_uppercase + string.digits
FACES = ("DejaVuSans", "DejaVuSerif", "cmtt10")
EMS = (9, 11, 13)  # pixels; capitals are about 0.7 of them high
SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # pixels, right and down
INKS = torch.cat([torch.tensor([[35, 39, 46]]) / 255, PALETTE[[0, 2, 3]]])  # dark, red, green, blue
LENGTH, CELL = 4, SIZE // 2  # two rows of two characters


@cache
def _letter(character: int, face: int, em: int, right: int, down: int) -> np.ndarray:
    """One character on a cell of its own: the share of each pixel that is ink, (16, 16)."""
    shift = (SHIFTS[right], SHIFTS[down])
    return glyphs.draw(CHARACTERS[character], FACES[face], EMS[em], (CELL, CELL), shift)


def attributes(seed: int, index) -> dict[str, Tensor]:
    """Everything that is random about the pictures `index`: places in CHARACTERS, FACES, EMS, INKS, BACKGROUNDS."""
    u = uniform(seed, index, 3 * LENGTH + 4)
    sizes = {
        **{"characters": (slice(0, LENGTH), len(CHARACTERS)), "shifts": (slice(LENGTH, 3 * LENGTH), len(SHIFTS))},
        **{"face": (-4, len(FACES)), "em": (-3, len(EMS)), "ink": (-2, len(INKS)), "paper": (-1, len(BACKGROUNDS))},
    }
    return {key: torch.from_numpy(np.floor(u[:, columns] * n)).long() for key, (columns, n) in sizes.items()}


def load(split: str = "train", count: int | None = None) -> Images:
    """The first `count` pictures of a split: 10,000 / 1,000 / 1,000 unless told otherwise. Captions are the strings.

    attributes: characters long (N, 4), shifts (N, 8: four to the right, four down), face, em, ink and paper (N,).
    """
    check_split(split)
    n = SIZES[split] if count is None else count
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"count is a whole number from 1, got {count!r}")
    kinds = attributes(STREAM + 10 * VERSION + SPLITS.index(split), np.arange(n))
    rows = zip(kinds["characters"].tolist(), kinds["shifts"].tolist(), kinds["face"].tolist(), kinds["em"].tolist())
    letters = [
        _letter(row[i], face, em, shift[i], shift[LENGTH + i]) for row, shift, face, em in rows for i in range(LENGTH)
    ]
    ink = torch.from_numpy(np.stack(letters)).float().view(n, 2, 2, CELL, CELL)  # rows and columns of characters
    ink = ink.transpose(2, 3).reshape(n, 1, SIZE, SIZE)
    paper, colour = BACKGROUNDS[kinds["paper"]], INKS[kinds["ink"]]
    images = torch.lerp(paper[..., None, None], colour[..., None, None], ink)
    return Images(
        (images * 255).round() / 127.5 - 1,
        name="words",
        split=split,
        attributes=kinds,
        captions=tuple(strings(kinds["characters"])),
    )


def cells(images: Tensor) -> Tensor:
    """Pictures (N, 3, 32, 32) to their characters (N · 4, 3, 16, 16), in reading order."""
    if images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"pictures of words are (N, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}")
    parts = images.unflatten(3, (2, CELL)).unflatten(2, (2, CELL))  # (N, 3, 2, 16, 2, 16)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, CELL, CELL)


def strings(characters: Tensor) -> list[str]:
    """Places in CHARACTERS (N, 4) to N strings."""
    return ["".join(CHARACTERS[place] for place in row) for row in characters.tolist()]


def letters(split: str = "train", count: int | None = None) -> Images:
    """The same pictures cut into characters, 16 x 16, labelled: what a reader learns from."""
    whole = load(split, count)
    labels = whole.attributes["characters"].flatten()
    return Images(cells(whole.images), labels, tuple(CHARACTERS), "words-letters", split)
