"""`mnist`: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes and Burges 1998), downloaded on first use.

The files are in IDX format: four bytes of magic (the last one is the number of axes), each axis as a big-endian
32-bit integer, then the bytes. `size=14` averages 2 x 2 pixels and rounds, so that there are still 256 grey levels.
"""

import math
import struct

import torch
from torch import Tensor

from minimal.data.download import read
from minimal.data.frozen import check_split, stratified
from minimal.data.records import Images
from minimal.data.source import File, Source

VERSION = 1
SPLIT_SEED = 28
SIZES = {"train": 55_000, "validation": 5_000, "test": 10_000}
SHA256 = {
    "train": "dbde65bfd36d36d38190e8a76fca779d4fdd8b1f95ee2006f90e5651d9a1877f",
    "validation": "c5508741d5ba4f7bc34b9e09addd9057c1af3c095c6db87b1d21f996309ce172",
    "test": "7ccfaec4b43f1faf4999982c5b086cd9afc01d4965d3645d0fdf7aa6567a3131",
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


def _file(name: str, md5: str, size: int) -> File:
    return File(f"mnist/{name}.gz", tuple(f"{mirror}{name}.gz" for mirror in MIRRORS), f"md5:{md5}", size, gunzip=True)


SOURCE = Source(
    "mnist",
    licence="CC BY-SA 3.0",
    origin="http://yann.lecun.com/exdb/mnist",
    files=(
        _file("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", 47_040_016),
        _file("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", 60_008),
        _file("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", 7_840_016),
        _file("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", 10_008),
    ),
    instead="digits",
)


def parse_idx(content: bytes) -> Tensor:
    """IDX bytes -> uint8 tensor with the axes that the header names."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of bytes: it starts with {content[:4].hex() or 'nothing'}, not with 000008")
    ndim = content[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:start]) if len(content) >= start else ()
    if ndim == 0 or len(content) != start + math.prod(shape) or not shape:
        raise ValueError(f"damaged IDX file: {len(content):,} bytes for {ndim} axes of {shape}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)


def pixels(source: Source, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 28, 28) and long labels of a split; validation is every twelfth training image, stratified."""
    images_file, labels_file = source.files[2:] if split == "test" else source.files[:2]
    labels = parse_idx(read(labels_file, source)).long()
    images = parse_idx(read(images_file, source))
    if split != "test":
        rows = torch.from_numpy(stratified(labels, seed, every=12, validation=5)[split])
        images, labels = images[rows], labels[rows]
    return images, labels


def to_images(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 28, 28) -> float32 (N, 1, size, size) in [-1, 1], on 256 grey levels at both sizes."""
    if size not in (14, 28):
        raise ValueError(f"size is 28 or 14, got {size!r}")
    grey = images[:, None].float()
    if size == 14:
        grey = torch.nn.functional.avg_pool2d(grey, 2).round()
    return grey.div_(127.5).sub_(1)


def load(split: str = "train", size: int = 28) -> Images:
    """55,000 training, 5,000 validation and 10,000 test images of `size` 28 or 14."""
    check_split(split)
    images, labels = pixels(SOURCE, split, SPLIT_SEED)
    return Images(to_images(images, size), labels, tuple("0123456789"), name="mnist", split=split)
