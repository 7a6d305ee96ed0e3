"""Words: the caption is what is drawn, cells stand in reading order, and the generator is frozen."""

import pytest
import torch

from minimal.data import words
from minimal.data.frozen import SPLITS, coarse, fingerprint, to_levels

KEYS = ("characters", "shifts", "face", "em", "ink", "paper")


@pytest.fixture(scope="module")
def validation():
    return words.load("validation")


def test_every_cell_shows_its_own_character(validation):
    images, kinds = validation.images, validation.attributes
    for i, j in ((0, 0), (3, 1), (8, 2), (15, 3)):  # picture, place
        row, column = divmod(j, 2)
        shown = images[i, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert torch.equal(words.cells(images[i : i + 1])[j], shown)
        place = [kinds[key][i].item() for key in ("face", "em")]
        shift = kinds["shifts"][i, [j, 4 + j]].tolist()
        mask = torch.from_numpy(words._letter(kinds["characters"][i, j].item(), *place, *shift)).float()
        paper, ink = words.BACKGROUNDS[kinds["paper"][i]], words.INKS[kinds["ink"][i]]
        expected = torch.lerp(paper[:, None, None], ink[:, None, None], mask) * 2 - 1
        torch.testing.assert_close(shown, expected, atol=1.01 / 255, rtol=0)
        assert validation.captions[i][j] == words.CHARACTERS[kinds["characters"][i, j]]


def test_no_character_is_cut_by_the_edge_of_its_cell(validation):
    paper = words.BACKGROUNDS[validation.attributes["paper"]].repeat_interleave(4, 0)[..., None, None] * 2 - 1
    ink = (words.cells(validation.images) - paper).abs().amax(1) > 0.4
    assert ink.flatten(1).any(1).all()
    assert ink[:, :, [0, -1]].double().mean() < 0.01 and not ink[:, [0, -1]].any()


def test_strings_are_random_and_splits_have_nothing_in_common():
    parts = [words.load(split, 500) for split in SPLITS]
    assert len({caption for part in parts for caption in part.captions}) > 1490
    counts = parts[0].attributes["characters"].flatten().bincount(minlength=36)
    assert 30 < counts.min() and counts.max() < 85  # 2000 characters of 36: 56 each


def test_a_picture_does_not_depend_on_how_many_are_drawn(validation):
    few = words.load("validation", 7)
    assert torch.equal(few.images, validation.images[:7]) and few.captions == validation.captions[:7]


def test_letters_are_the_cells_with_their_labels(validation):
    letters = words.letters("validation", 5)
    assert letters.image_shape == (3, 16, 16) and torch.equal(letters.images, words.cells(validation.images[:5]))
    read = "".join(letters.class_names[label] for label in letters.labels)
    assert read == "".join(validation.captions[:5])


@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_is_frozen(split):
    data = words.load(split, 64)
    got = fingerprint(*(data.attributes[key] for key in KEYS), "\n".join(data.captions), coarse(data.images[:16]))
    assert got == words.SHA256[split]
    cells = to_levels(data.images[:16]).reshape(16, 3, 2, 16, 2, 16).sum((3, 5)) * 8 / (255 * 256)
    assert (cells - cells.floor() - 0.5).abs().min() > 3 * 8 / (255 * 256)  # no three pixels' last bits can flip it


def test_bad_requests_are_explained():
    with pytest.raises(ValueError, match="train, validation, test"):
        words.load("valid")
    for count in (0, 2.5):
        with pytest.raises(ValueError, match="from 1"):
            words.load("test", count)
    with pytest.raises(ValueError, match="32"):
        words.cells(torch.zeros(2, 1, 32, 32))
