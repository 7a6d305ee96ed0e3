"""`cifar10`: 60,000 colour photographs of 32 x 32 pixels in ten classes (Krizhevsky 2009), downloaded on first use.

The binary archive: per image one byte of label, then 1,024 bytes each of red, green and blue. (The other archive is
a pickle, and unpickling runs whatever code the file holds.) If the archive is missing and a data folder holds
`cifar10-jpeg.zip`, its pictures are taken: the same photographs after JPEG compression, in another order.
"""

import io
import tarfile

import numpy as np
import torch

from minimal.data.download import read
from minimal.data.folders import folder
from minimal.data.frozen import check_split, evenly, stratified
from minimal.data.records import Images
from minimal.data.source import File, Source, locate

VERSION = 1
SPLIT_SEED = 10
SIZES = {"train": 45_000, "validation": 5_000, "test": 10_000}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROW = 1 + 3 * 32 * 32
SOURCE = Source(
    "cifar10",
    licence="free for research, cite Krizhevsky 2009",
    origin="https://www.cs.toronto.edu/~kriz/cifar.html",
    files=(
        File(
            "cifar-10-binary.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            170_052_171,
        ),
    ),
    instead="photos",
    stand_in="cifar10-jpeg.zip",
)


def read_batches(archive: bytes, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The archive's uint8 images (N, 3, 32, 32) and labels (N,) of "train" or "test"; nothing is unpacked to disk."""
    members = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        content = b"".join(tar.extractfile(f"cifar-10-batches-bin/{name}.bin").read() for name in members)
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def load(split: str = "train", count: int | None = None) -> Images:
    """45,000 training, 5,000 validation and 10,000 test images (or `count` of them, evenly spaced)."""
    check_split(split)
    file, stand_in = SOURCE.files[0], locate(SOURCE.stand_in)
    if stand_in and not locate(file.path):
        return folder(stand_in, split=split, count=count, name="cifar10", origin=f"JPEG files in {stand_in.name}")
    images, labels = read_batches(read(file, SOURCE), split)
    if split != "test":
        rows = stratified(labels, SPLIT_SEED, every=10, validation=5)[split]
        images, labels = images[rows], labels[rows]
    rows = evenly(len(labels), count)
    pixels = torch.from_numpy(images[rows]).float().div_(127.5).sub_(1)
    labels = torch.from_numpy(labels[rows])
    return Images(pixels, labels, CLASS_NAMES, name="cifar10", split=split, origin="binary archive")
