"""Procedural pictures: the same picture for the same index, whoever asks; captions and classes that tell the truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimal.data import drawing, shapes
from minimal.data.frozen import SPLITS, coarse, fingerprint, to_levels

EXACT = ("shape", "colour", "size", "x", "y", "radius", "angle", "background")


def exact(data):
    """All attributes as whole numbers: positions in sixteenths of a pixel."""
    return [data.attributes[key].mul(shapes.UNIT).long() for key in EXACT]


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(shapes.VERSIONS), st.lists(st.integers(0, 2**60), min_size=1, max_size=9, unique=True), st.data()
)
def test_a_picture_depends_on_its_index_and_not_on_its_batch(version, index, data):
    together = shapes.pictures(version, 3, index)
    row = data.draw(st.integers(0, len(index) - 1))
    alone = shapes.pictures(version, 3, [index[row]])
    assert torch.equal(together.images[row], alone.images[0])
    assert together.captions[row] == alone.captions[0]
    assert all(torch.equal(together.attributes[key][row], value[0]) for key, value in alone.attributes.items())


def test_a_longer_split_starts_with_the_shorter_one():
    short, long = shapes.load("test", "scene", count=40), shapes.load("test", "scene", count=200)
    assert torch.equal(short.images, long.images[:40])


def test_a_seed_repeats_itself_and_fresh_pictures_are_in_no_split():
    draws = [shapes.sample(300, generator=torch.Generator().manual_seed(seed)).images for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    pictures = torch.cat([shapes.load(split, count=300).images for split in SPLITS] + [draws[0]])
    assert len(pictures.flatten(1).unique(dim=0)) == len(pictures)


def test_classes_are_balanced_and_name_shape_and_colour():
    data = shapes.load("test", count=160)
    assert data.labels.bincount().tolist() == [10] * 16
    for label, shape, colour in zip(
        data.labels, *(data.attributes[key][:, 0] for key in ("shape", "colour")), strict=True
    ):
        assert data.class_names[label] == f"{shapes.COLOURS[colour]} {shapes.SHAPES[shape]}"


def test_objects_stay_inside_the_picture_and_mostly_visible():
    data = shapes.load("validation", "scene")
    a, present = data.attributes, data.attributes["shape"] >= 0
    reach = drawing.REACH * a["radius"]
    for axis in ("x", "y"):
        assert ((a[axis] - reach >= 0.9) & (a[axis] + reach <= 31.1))[present].all()
    hidden = []
    for j in range(shapes.OBJECTS):
        single = {key: (a[key][:, j : j + 1] if a[key].ndim > 1 else a[key]) for key in EXACT}
        whole = drawing.draw(single)["masks"][:, 0].sum((1, 2))[present[:, j]]
        hidden.append(1 - a["masks"][:, j].sum((1, 2))[present[:, j]] / whole)
    hidden = torch.cat(hidden)
    assert hidden.max() < 0.3 and hidden.quantile(0.95) < 0.05


def test_scenes_hold_one_to_four_objects_of_different_kinds():
    a = shapes.load("validation", "scene").attributes
    count = (a["shape"] >= 0).sum(1)
    assert (count.bincount(minlength=5)[1:] > 200).all()
    kinds = (a["shape"] * 4 + a["colour"]).masked_fill(a["shape"] < 0, 0) + (a["shape"] < 0) * torch.arange(100, 104)
    assert all(len(set(row)) == 4 for row in kinds.tolist())


def test_captions_say_what_is_there():
    data = shapes.load("test", "scene", count=400)
    a = {key: data.attributes[key].tolist() for key in EXACT}
    seen = set()
    for i, caption in enumerate(data.captions):
        present = [j for j in range(4) if a["shape"][i][j] >= 0]
        plain = {j: f"{shapes.COLOURS[a['colour'][i][j]]} {shapes.SHAPES[a['shape'][i][j]]}" for j in present}
        assert all(phrase in caption for phrase in plain.values())
        if len(present) == 2:
            dx, dy = a["x"][i][1] - a["x"][i][0], a["y"][i][1] - a["y"][i][0]
            wide = abs(dx) >= abs(dy)
            expected = ("right of", "left of")[dx > 0] if wide else ("below", "above")[dy > 0]
            assert f" {expected} " in caption and caption.index(plain[0]) < caption.index(expected)
            assert ("small" in caption) == (0 in a["size"][i][:2]) and ("large" in caption) == (1 in a["size"][i][:2])
            seen.add(expected)
        if len(present) > 2:
            places = [a["x"][i][j] for j in sorted(present, key=lambda j: caption.index(plain[j]))]
            assert places == sorted(places)
    assert len(seen) == 4


def test_captions_survive_the_way_to_words_and_back():
    data = shapes.load("test", "scene", count=200)
    for caption, row in zip(data.captions, data.attributes["words"].tolist(), strict=True):
        assert " ".join(shapes.WORDS[word] for word in row if word).replace(" ,", ",") == caption
    with pytest.raises(ValueError, match="words out of"):
        shapes.encode_captions(("a purple circle",))


def test_bad_requests_are_refused():
    for options in ({"count": 0}, {"count": 2.5}, {"version": "triple"}):
        with pytest.raises(ValueError):
            shapes.load("train", **options)
        with pytest.raises(ValueError):
            shapes.sample(**({"count": 1} | options))


def test_pictures_lie_on_256_levels():
    images = shapes.load("test", "scene", count=20).images
    assert torch.equal(to_levels(images).float() / 127.5 - 1, images)


@pytest.mark.parametrize("version", shapes.VERSIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_is_frozen(version, split):
    data = shapes.load(split, version, count=64)
    got = fingerprint(*exact(data), "\n".join(data.captions), coarse(data.images[:16]))
    assert got == shapes.SHA256[version, split]
    cells = to_levels(data.images[:16]).reshape(16, 3, 2, 16, 2, 16).sum((3, 5)) * 8 / (255 * 256)
    assert (cells - cells.floor() - 0.5).abs().min() > 3 * 8 / (255 * 256)  # no three pixels' last bits can flip it


def test_the_paint_is_frozen():
    means = [shapes.load("train", version, count=256).images.mean((0, 2, 3)).tolist() for version in shapes.VERSIONS]
    np.testing.assert_allclose(means, [[0.69475, 0.66357, 0.62723], [0.7525, 0.72111, 0.69134]], atol=2e-4)
