"""`fashion_mnist`: 70,000 pictures of clothes of 28 x 28 pixels (arXiv 1708.07747), downloaded on first use.

Made to take MNIST's place: same format, same sizes, harder pictures. Its authors publish the digests of the
compressed files, so these are checked as they come, before they are unpacked.
"""

from minimal.data import mnist
from minimal.data.frozen import check_split
from minimal.data.records import Images
from minimal.data.source import File, Source

VERSION = 1
SPLIT_SEED = 1708
SIZES = {"train": 55_000, "validation": 5_000, "test": 10_000}
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
CLASS_NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "ankle boot")


def _file(name: str, md5: str, size: int) -> File:
    urls = tuple(f"{mirror}{name}.gz" for mirror in MIRRORS)
    return File(f"fashion_mnist/{name}.gz", urls, f"md5:{md5}", size, gunzip=True, digest_of_wrapper=True)


SOURCE = Source(
    "fashion_mnist",
    licence="MIT",
    origin="https://github.com/zalandoresearch/fashion-mnist",
    files=(
        _file("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 47_040_016),
        _file("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 60_008),
        _file("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 7_840_016),
        _file("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 10_008),
    ),
    instead="glyphs",
)


def load(split: str = "train", size: int = 28) -> Images:
    """55,000 training, 5,000 validation and 10,000 test images of `size` 28 or 14."""
    check_split(split)
    images, labels = mnist.pixels(SOURCE, split, SPLIT_SEED)
    return Images(mnist.to_images(images, size), labels, CLASS_NAMES, name="fashion_mnist", split=split)
