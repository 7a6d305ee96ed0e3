"""`digits`: 1,797 real handwritten digits of 8 x 8 pixels and 17 grey levels, shipped inside scikit-learn.

The half of the UCI "optical recognition of handwritten digits" set (Alpaydin and Kaynak 1998) that scikit-learn
carries. Small enough that an exact likelihood over whole images is a matter of seconds: 64 pixels, 17 values each.
A grey level v in 0..16 becomes v / 8 - 1, so images are float (N, 1, 8, 8) on 17 points of [-1, 1].
"""

from functools import cache

import torch

from minimal.data.frozen import check_split, stratified
from minimal.data.records import Images
from minimal.data.source import Source

VERSION = 1
SPLIT_SEED = 8
SIZES = {"train": 1437, "validation": 180, "test": 180}
SHA256 = {
    "train": "a6cca959fd79763846a93b9bf2679f97b7c6e64b686904797f78d5f7f621900e",
    "validation": "786d5da730cd62408924253a7e31bd48f53fc072a62ac6ce791870d3d6395f8a",
    "test": "b5ca5495420aed1e01f93aeb1ede04cbdc05ae43cba215c21f16df04e94b3e7c",
}
SOURCE = Source("digits", licence="CC BY 4.0", origin="https://archive.ics.uci.edu/dataset/80, inside scikit-learn")


@cache
def _all():
    from sklearn.datasets import load_digits  # takes a second: import it only when somebody wants digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 8 - 1, torch.from_numpy(bunch.target).long()


def load(split: str = "train") -> Images:
    """80 / 10 / 10 per cent, stratified: 1,437 training, 180 validation and 180 test images."""
    check_split(split)
    images, labels = _all()
    rows = torch.from_numpy(stratified(labels, SPLIT_SEED, every=10, validation=0, test=5)[split])
    return Images(images[rows], labels[rows], tuple("0123456789"), name="digits", split=split, levels=17)
