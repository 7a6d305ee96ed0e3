"""Digits: all 1,797 of scikit-learn's, once each, on exactly 17 grey levels."""

import pytest
import torch

from minimal.data import digits
from minimal.data.frozen import SPLITS, fingerprint, to_levels


def parts():
    return [digits.load(split) for split in SPLITS]


def test_the_splits_hold_every_digit_exactly_once():
    from sklearn.datasets import load_digits

    ours = torch.cat([part.images for part in parts()]).reshape(1797, 64)
    theirs = torch.from_numpy(load_digits().data).float() / 8 - 1
    assert sorted(ours.tolist()) == sorted(theirs.tolist())
    assert [len(part) for part in parts()] == list(digits.SIZES.values())


def test_every_class_has_its_tenth_in_validation_and_test():
    for part in parts()[1:]:
        assert part.labels.bincount(minlength=10).sub(18).abs().max() <= 1


def test_pixels_lie_on_seventeen_levels_exactly():
    levels = torch.cat([to_levels(part.images, 17) for part in parts()])
    assert levels.unique().tolist() == list(range(17))
    assert torch.equal(levels.float() / 8 - 1, torch.cat([part.images for part in parts()]))


@pytest.mark.parametrize("split", SPLITS)
def test_the_split_is_frozen(split):
    part = digits.load(split)
    assert fingerprint(to_levels(part.images, 17), part.labels) == digits.SHA256[split]
