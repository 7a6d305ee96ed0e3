"""`glyphs`: the 26 + 26 + 10 letters and digits in 16 typefaces and three sizes, from the fonts inside matplotlib.

Only outlines come from the font files; they are filled here, by exact signed areas, so that no version of a font
renderer changes a pixel. Each edge of an outline that crosses a scan line adds, to the right of the crossing, +1 or -1
according to its direction; the sum over all edges is 1 inside and 0 outside, and partly covered pixels get their share.
White on black: float (N, 1, size, size) in [-1, 1].
"""

import string
from functools import cache
from pathlib import Path

import numpy as np
import torch

from minimal.data.frozen import check_split, stratified, uniform
from minimal.data.records import Images
from minimal.data.source import Source

VERSION = 1
SPLIT_SEED = 62
SIZES = {"train": 2_381, "validation": 298, "test": 297}
SHA256 = {
    "train": "9589e4d7293c30ea19e407a336f4f9ceaa9c4a6ffe14d157bf1f3a5872481cbd",
    "validation": "5988f21fe8173341dd4aeaa0117524a509ad965e9af5995d8d4fad70ccee2908",
    "test": "bcfcdbb89c9cd64169674008790ea51bf3883138a170e1efcf49668e0c370cbc",
}
SOURCE = Source("glyphs", licence="Bitstream Vera, STIX and BaKoMa font licences", origin="fonts inside matplotlib")
CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
EMS = (0.66, 0.78, 0.9)  # the height of the type, as a share of the picture's height
SUB = 6  # scan lines per row of pixels
SMOOTH = 4  # straight pieces per curve of an outline


@cache
def outline(text: str, face: str) -> np.ndarray:
    """The edges of a text in units of the em, (E, 2, 2): start and end, each (x, y) with y up and the baseline at 0.

    All these fonts are TrueType: their curves are parabolas, given by three points.
    """
    import matplotlib  # slow to import: only when somebody wants glyphs
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if face not in FACES:
        raise ValueError(f"unknown face {face!r}; the faces are {', '.join(FACES)}")
    if not text.strip():
        return np.zeros((0, 2, 2))
    font = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    path = TextPath((0, 0), text, size=1, prop=FontProperties(fname=str(font)))
    p, code, place = path.vertices, path.codes, np.arange(len(path.codes))
    is_curve = code == path.CURVE3  # two rows each: the control point, then the end
    control = place[is_curve][::2]
    line, close = place[code == path.LINETO], place[code == path.CLOSEPOLY]
    first = np.maximum.accumulate(np.where(code == path.MOVETO, place, 0))  # where the ring of each row starts
    t = np.linspace(0, 1, SMOOTH + 1)[:, None, None]
    curve = (1 - t) ** 2 * p[control - 1] + 2 * t * (1 - t) * p[control] + t**2 * p[control + 1]  # (SMOOTH + 1, K, 2)
    pieces = [
        np.stack([p[line - 1], p[line]], axis=1),
        np.stack([p[close - 1], p[first[close]]], axis=1),
        np.stack([curve[:-1], curve[1:]], axis=2).reshape(-1, 2, 2),
    ]
    return np.concatenate(pieces)


def fill(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """Edges (E, 2, 2) in pixels, y down -> the share of each pixel that they enclose, (height, width) in [0, 1]."""
    (x0, y0), (x1, y1) = edges[:, 0].T, edges[:, 1].T
    line = (np.arange(height * SUB) + 0.5)[:, None] / SUB  # (L, 1) heights of the scan lines
    crosses = (y0 <= line) != (y1 <= line)  # (L, E)
    row, edge = crosses.nonzero()
    x = x0[edge] + (line[row, 0] - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    sign = np.where(y1[edge] > y0[edge], 1.0, -1.0)
    x = x.clip(0, width)
    column = np.floor(x).astype(int)
    share = column + 1 - x  # of the pixel with the crossing, the part to the right of it
    steps = np.zeros((height * SUB, width + 2))
    np.add.at(steps, (row, column), sign * share)
    np.add.at(steps, (row, column + 1), sign * (1 - share))
    inside = np.abs(steps.cumsum(axis=1)[:, :width]).clip(max=1)  # where strokes overlap the sum is 2
    return inside.reshape(height, SUB, width).mean(axis=1)


def draw(text: str, face: str, em: float, shape: tuple[int, int], shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """A text of `em` pixels in the middle of a picture `shape` = (height, width), moved by `shift` = (right, down)."""
    edges = outline(text, face) * (em, -em)
    if len(edges):
        low, high = edges.min((0, 1)), edges.max((0, 1))
        edges = edges + ((shape[1] - low[0] - high[0]) / 2 + shift[0], (shape[0] - low[1] - high[1]) / 2 + shift[1])
    return fill(edges, *shape)


@cache
def _all(size: int):
    """Every character in every face and size, moved by up to a pixel and a half (at 32 pixels) in each direction."""
    kinds = [(c, f, e) for c in range(len(CHARACTERS)) for f in range(len(FACES)) for e in range(len(EMS))]
    shifts = np.floor(uniform(SPLIT_SEED + VERSION, np.arange(len(kinds)), 2) * 25 - 12) / 8 * (size / 32)
    square = (size, size)
    pictures = [
        draw(CHARACTERS[c], FACES[f], EMS[e] * size, square, shift)
        for (c, f, e), shift in zip(kinds, shifts, strict=True)
    ]
    images = torch.from_numpy(np.stack(pictures)).mul(255).round().float()[:, None] / 127.5 - 1
    return images, torch.tensor(kinds)


def load(split: str = "train", size: int = 32) -> Images:
    """80 / 10 / 10 per cent of the 2,976 pictures, stratified, of `size` 32 or 16.

    attributes: face and em, long (N,), places in FACES and EMS.
    """
    check_split(split)
    if size not in (16, 32):
        raise ValueError(f"size is 32 or 16, got {size!r}")
    images, kinds = _all(size)
    rows = torch.from_numpy(stratified(kinds[:, 0], SPLIT_SEED, every=10, validation=4, test=9)[split])
    attributes = {"face": kinds[rows, 1], "em": kinds[rows, 2]}
    return Images(images[rows], kinds[rows, 0], tuple(CHARACTERS), name="glyphs", split=split, attributes=attributes)
