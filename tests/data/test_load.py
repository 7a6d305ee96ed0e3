"""The front door: known names load in three disjoint splits, everything else is an error that helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal import data
from minimal.data.frozen import SPLITS

EMBEDDED = ("digits", "shapes", "glyphs", "photos", "pydoc")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_load_with_the_promised_record(name):
    module = data.DATASETS[name]
    record = data.load(name, "validation", **({"size": 16} if name == "glyphs" else {}))
    assert record.split == "validation" and record.name.startswith(name)
    if isinstance(record, data.Images):
        assert len(record) == module.SIZES["validation"] and record.images.abs().max() <= 1


@given(st.text("adginrst_ é/", max_size=12))
def test_unknown_names_splits_and_options_are_answered_with_the_known_ones(word):
    if word not in data.names():
        with pytest.raises(ValueError, match="digits, shapes"):
            data.load(word)
    if word not in SPLITS:
        with pytest.raises(ValueError, match="train, validation, test"):
            data.load("digits", word)
    with pytest.raises(ValueError, match="version, count"):
        data.load("shapes", **{word + "!": 1})


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "shakespeare"])
def test_a_wrong_split_is_an_error_before_anything_is_fetched(name, cache):
    with pytest.raises(ValueError, match="train, validation, test"):
        data.load(name, "valid")
    assert not cache.exists()


def test_found_has_a_row_for_every_set(cache):
    rows = {row.name: row for row in data.found()}
    assert list(rows) == data.names()
    assert all((row.kind == "embedded") == (name in EMBEDDED) for name, row in rows.items())
    assert all(row.licence and row.origin and bool(row.where) != bool(row.missing) for row in rows.values())


def test_found_finds_files_in_the_chosen_folder(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMAL_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for file in data.DATASETS["mnist"].SOURCE.files:
        (tmp_path / file.path).touch()
    (tmp_path / "cifar10-jpeg.zip").touch()
    rows = {row.name: row for row in data.found()}
    assert rows["mnist"].where == str(tmp_path / "mnist")
    assert rows["cifar10"].where == str(tmp_path / "cifar10-jpeg.zip")
    assert rows["shakespeare"].missing == "tinyshakespeare.txt"
