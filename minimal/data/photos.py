"""`photos`: patches of 32 x 32 pixels from ten real photographs inside scikit-learn and scikit-image.

Each photograph is halved in size (2 x 2 averages) and cut into blocks of 64 x 64, which are dealt out to the splits.
Patches are then taken every 8 pixels inside a block, so patches of different splits share no pixel. The label is the
photograph. Ten motifs only: a set for edges, textures and colours, not for variety. The last four are grey.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minimal.data.frozen import check_split, stratified
from minimal.data.records import Images
from minimal.data.source import Source

VERSION = 1
SPLIT_SEED = 64
SIZES = {"train": 2_875, "validation": 350, "test": 350}
SHA256 = {
    "train": "8ea0405f927be44b3af4f8526d2ce959effeb59c5aedbf3a861a247847f8060c",
    "validation": "a4a1ee4268d08b5cc3fe2449efa2d44c70d55572e1cb3979106d08d87a1859ff",
    "test": "cd62b7a7739411476e1b4453860f8def3eb5734785b1e8dc850351aa3b2f57cc",
}
SOURCE = Source(
    "photos",
    licence="CC BY 2.0 (china, flower), CC0 or public domain (the others)",
    origin="sklearn.datasets and skimage.data",
)
CLASS_NAMES = ("china", "flower", "astronaut", "chelsea", "coffee", "rocket", "camera", "brick", "grass", "gravel")
BLOCK, STRIDE, SIZE = 64, 8, 32


def photograph(name: str) -> np.ndarray:
    """A whole photograph, uint8 (H, W, 3), read from the files of the two packages; nothing is downloaded."""
    import skimage.data
    import sklearn.datasets

    folders = (Path(sklearn.datasets.__file__).parent / "images", Path(skimage.data.__file__).parent)
    files = [file for folder in folders for file in folder.glob(f"{name}.*") if file.suffix in (".png", ".jpg")]
    if name not in CLASS_NAMES or not files:
        raise ValueError(f"no photograph {name!r}; known are {', '.join(CLASS_NAMES)}")
    with Image.open(files[0]) as image:
        return np.asarray(image.convert("RGB"))


def halve(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (H // 2, W // 2, 3), rounded averages in whole numbers."""
    h, w = picture.shape[0] // 2, picture.shape[1] // 2
    cells = picture[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).astype(np.int64)
    return ((cells.sum((1, 3)) + 2) // 4).astype(np.uint8)


@cache
def blocks() -> tuple[np.ndarray, np.ndarray]:
    """All blocks, uint8 (M, 64, 64, 3), and the photograph of each, (M,), from top left to bottom right."""
    cut, labels = [], []
    for label, name in enumerate(CLASS_NAMES):
        picture = halve(photograph(name))
        rows, columns = picture.shape[0] // BLOCK, picture.shape[1] // BLOCK
        grid = picture[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3).swapaxes(1, 2)
        cut.append(grid.reshape(-1, BLOCK, BLOCK, 3))
        labels += [label] * (rows * columns)
    return np.concatenate(cut), np.array(labels)


def load(split: str = "train") -> Images:
    """2,875 training, 350 validation and 350 test patches, 25 from each block."""
    check_split(split)
    cut, labels = blocks()
    rows = stratified(labels, SPLIT_SEED, every=10, validation=4, test=9)[split]
    windows = np.lib.stride_tricks.sliding_window_view(cut[rows], (SIZE, SIZE), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    patches = torch.from_numpy(windows.reshape(-1, 3, SIZE, SIZE).copy()).float().div_(127.5).sub_(1)
    per_block = windows.shape[1] * windows.shape[2]
    return Images(patches, torch.from_numpy(labels[rows].repeat(per_block)), CLASS_NAMES, name="photos", split=split)
