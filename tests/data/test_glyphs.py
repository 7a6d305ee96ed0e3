"""Glyphs: areas filled exactly, every character in every face, frozen."""

import numpy as np
import pytest
import torch

from minimal.data import glyphs
from minimal.data.frozen import SPLITS, coarse, fingerprint


def ring(*points):
    points = np.array(points, dtype=float)
    return np.stack([points, np.roll(points, -1, axis=0)], axis=1)


def test_a_rectangle_covers_its_share_of_every_pixel():
    share = glyphs.fill(ring((1.25, 1), (1.25, 3.5), (4.5, 3.5), (4.5, 1)), 5, 6)
    expected = np.outer([0, 1, 1, 0.5, 0], [0, 0.75, 1, 1, 0.5, 0])
    np.testing.assert_allclose(share, expected, atol=1e-12)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_hole_is_empty_whichever_way_the_outline_runs(turn):
    outer = ring((0, 0), (6, 0), (6, 6), (0, 6))
    inner = ring((2, 2), (2, 4), (4, 4), (4, 2))
    edges = np.concatenate([outer, inner])[:, ::turn]
    share = glyphs.fill(edges, 6, 6)
    assert share.sum() == 32 and share[3, 3] == 0 and share[0, 0] == 1


def test_the_area_of_a_triangle_is_half_base_times_height():
    assert abs(glyphs.fill(ring((1, 1), (9, 2), (4, 8)), 10, 10).sum() - 0.5 * abs(8 * 7 - 1 * 3)) < 0.05


def test_every_picture_shows_something_and_the_faces_differ():
    images, kinds = glyphs._all(16)
    assert len(images) == 62 * 16 * 3 and (images.amax((1, 2, 3)) > -0.5).all()
    g = images[(kinds[:, 0] == glyphs.CHARACTERS.index("g")) & (kinds[:, 2] == 1)]
    assert len(g.flatten(1).unique(dim=0)) == len(glyphs.FACES)


def test_the_splits_are_disjoint_and_hold_every_character():
    seen = []
    for split in SPLITS:
        data = glyphs.load(split, size=16)
        assert len(data) == glyphs.SIZES[split] and len(data.labels.unique()) == 62
        seen += list(
            zip(data.labels.tolist(), data.attributes["face"].tolist(), data.attributes["em"].tolist(), strict=True)
        )
    assert len(set(seen)) == len(seen) == 62 * 16 * 3


def test_words_can_be_drawn_and_unknown_faces_are_named():
    word = glyphs.draw("flow", "DejaVuSans", 14, (16, 64))
    assert word.shape == (16, 64) and 60 < word.sum() < 400 and word[:, :8].sum() < 1 < word[:, 28:36].sum()
    assert glyphs.draw(" ", "DejaVuSans", 14, (16, 16)).sum() == 0
    with pytest.raises(ValueError, match="DejaVuSans"):
        glyphs.draw("a", "Arial", 14, (16, 16))
    with pytest.raises(ValueError, match="32 or 16"):
        glyphs.load(size=20)


@pytest.mark.parametrize("split", SPLITS)
def test_the_set_is_frozen(split):
    data = glyphs.load(split, size=16)
    attributes = [data.labels, data.attributes["face"], data.attributes["em"]]
    assert fingerprint(*attributes, coarse(data.images[:62])) == glyphs.SHA256[split]


def test_the_pictures_are_frozen_to_a_thousandth():
    images = glyphs._all(16)[0]
    place = torch.arange(16).float()
    ink = (images + 1).mean((0, 1))
    centre = [float((ink.sum(axis) * place).sum() / ink.sum()) for axis in (0, 1)]
    moments = [float(ink.mean()), *centre]
    np.testing.assert_allclose(moments, [0.17882, 7.37868, 7.45735], atol=1e-3)
