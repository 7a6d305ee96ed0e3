"""Photographs: real, at hand without a network, and never the same pixel in two splits."""

import numpy as np
import pytest
import torch

from minimal.data import photos
from minimal.data.frozen import SPLITS, fingerprint, to_levels

LOSSLESS = [label for label, name in enumerate(photos.CLASS_NAMES) if name not in ("china", "flower", "rocket")]


def test_halving_averages_and_rounds_in_whole_numbers():
    picture = np.array([[1, 2, 9], [3, 4, 9]], dtype=np.uint8)[..., None].repeat(3, 2)
    assert photos.halve(picture).tolist() == [[[3, 3, 3]]]


def test_patches_of_different_splits_share_no_patch_and_come_from_their_photograph():
    parts = [photos.load(split) for split in SPLITS]
    assert [len(part) for part in parts] == list(photos.SIZES.values())
    flat = [set(map(bytes, to_levels(part.images).byte().flatten(1).numpy())) for part in parts]
    textured = [{patch for patch in patches if len(set(patch)) > 20} for patches in flat]  # a clear sky repeats itself
    assert not textured[0] & textured[1] and not textured[0] & textured[2] and not textured[1] & textured[2]
    grey = parts[0].images[parts[0].labels >= photos.CLASS_NAMES.index("camera")]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_an_unknown_photograph_is_named():
    with pytest.raises(ValueError, match="china, flower"):
        photos.photograph("mona_lisa")


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_frozen(split):
    data = photos.load(split)
    lossless = torch.isin(data.labels, torch.tensor(LOSSLESS))  # decoders of JPEG may differ in the last bit
    assert fingerprint(data.labels, to_levels(data.images[lossless])) == photos.SHA256[split]
    mean = {"train": -0.2277, "validation": -0.3072, "test": -0.5392}[split]
    assert abs(float(data.images[~lossless].mean()) - mean) < 2e-3
