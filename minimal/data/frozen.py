"""What results rest on must not move: random numbers, splits and fingerprints that any machine reproduces.

Random generators of libraries change between versions. Here a number depends on nothing but a seed and an index:
u(seed, index, column) in [0, 1), from the finaliser of SplitMix64 (Steele, Lea and Flood 2014), in integer arithmetic.
So image i of a procedural set can be drawn alone, and it is the same image in every batch and on every machine.
"""

import hashlib

import numpy as np
from torch import Tensor

SPLITS = ("train", "validation", "test")
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the step of SplitMix64


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return split


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: uint64 -> uint64, a bijection in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(seed: int, index, columns: int = 1) -> np.ndarray:
    """Random 64-bit words (N, columns) for the integers `index` (N,): one row per index, whatever else is asked."""
    rows = np.asarray(index, dtype=np.int64).astype(np.uint64).reshape(-1, 1)
    steps = (np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(_GOLDEN)).reshape(1, -1)
    start = _mix(np.full((1, 1), seed & (2**64 - 1), dtype=np.uint64) + np.uint64(_GOLDEN))
    return _mix(_mix(rows + start) + steps)


def uniform(seed: int, index, columns: int = 1) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 (N, columns), a pure function of (seed, index, column)."""
    return (bits(seed, index, columns) >> np.uint64(11)) * 2.0**-53


def stratified(labels, seed: int, every: int, **residues: int) -> dict[str, np.ndarray]:
    """Splits that keep the shares of the classes: sort by (label, random word), then deal out like cards.

    Position p of that order goes to the split whose residue is p mod `every`, all others go to "train":
    every=10, validation=4, test=9 deals out 80 / 10 / 10 per cent. Returns sorted indices (M,) of each split.
    """
    labels = np.asarray(labels)
    order = np.lexsort((bits(seed, np.arange(len(labels)))[:, 0], labels))
    turn = np.arange(len(labels)) % every
    splits = {"train": ~np.isin(turn, list(residues.values()))} | {name: turn == r for name, r in residues.items()}
    return {name: np.sort(order[chosen]) for name, chosen in splits.items()}


def fingerprint(*parts: Tensor | np.ndarray | str) -> str:
    """sha256 over text and integer arrays. Floats are refused: their last bits differ between machines."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        array = part.numpy() if isinstance(part, Tensor) else np.asarray(part)
        if array.dtype.kind not in "iub":
            raise ValueError(f"a fingerprint is taken of integers or text, got {array.dtype}; round first")
        digest.update(repr(array.shape).encode() + array.astype("<i8").tobytes())
    return digest.hexdigest()


def to_levels(images: Tensor, levels: int = 256) -> Tensor:
    """Images in [-1, 1] -> long in 0..levels-1, the nearest grey level."""
    return ((images + 1) * ((levels - 1) / 2)).round().long()


def coarse(images: Tensor, block: int = 16) -> Tensor:
    """Images in [-1, 1] -> long (N, C, H / block, W / block) in 0..8: block averages on nine levels.

    For fingerprints of drawn pictures. A pixel whose last bit differs on another machine moves a block's average by
    a thousandth of a level or less, so a sample that keeps clear of the rounding edges has one fingerprint everywhere.
    """
    n, c, h, w = images.shape
    cells = to_levels(images).reshape(n, c, h // block, block, w // block, block).sum((3, 5))
    return (cells * 8 + 255 * block**2 // 2) // (255 * block**2)


def evenly(n: int, count: int | None) -> np.ndarray:
    """`count` of the rows 0..n-1 at even distances, or all of them: sorted data keep the shares of their classes."""
    if count is None:
        return np.arange(n)
    if not isinstance(count, int) or not 1 <= count <= n:
        raise ValueError(f"count is a whole number in 1..{n}, got {count!r}")
    return np.arange(count) * n // count
