"""Your own pictures: classes and splits from folder names, and nothing hostile gets through."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minimal.data import folder, folders
from minimal.data.frozen import to_levels


def png(value=0, size=(8, 8), mode="RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


def fill(root, files: dict[str, bytes], zipped: bool):
    """The files in a folder, or in a zip of the same content."""
    if zipped:
        with zipfile.ZipFile(root / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return root / "pictures.zip"
    for name, content in files.items():
        (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pictures" / name).write_bytes(content)
    return root / "pictures"


@pytest.fixture(params=[False, True], ids=["folder", "zip"])
def place(request, tmp_path):
    return lambda files: fill(tmp_path, files, request.param)


CLASSES = {f"{kind}/{i}.png": png((i, 100 * k, 0)) for k, kind in enumerate(("cats", "dogs")) for i in range(20)}


def test_sub_folders_are_classes_and_the_splits_are_dealt_out(place):
    path = place(CLASSES | {"notes.txt": b"not a picture", "__MACOSX/cats/._1.png": b"junk", ".hidden/1.png": b"junk"})
    parts = [folder(path, split, size=8) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [32, 4, 4] and parts[0].class_names == ("cats", "dogs")
    levels = torch.cat([to_levels(part.images)[:, :2, 0, 0] for part in parts])
    assert sorted(levels.tolist()) == [[i, 100 * k] for i in range(20) for k in range(2)]
    assert torch.equal(levels[:, 1] // 100, torch.cat([part.labels for part in parts]))


def test_split_folders_are_kept_and_a_missing_validation_is_carved_from_train(place):
    path = place({f"top/{s}/{name}": content for s in ("train", "test") for name, content in CLASSES.items()})
    assert [len(folder(path, split)) for split in ("train", "validation", "test")] == [36, 4, 40]


def test_three_given_splits_are_kept_as_they_are(place):
    path = place({f"{s}/{name}": content for s in ("train", "valid", "test") for name, content in CLASSES.items()})
    assert [len(folder(path, split)) for split in ("train", "validation", "test")] == [40, 40, 40]


def test_given_validation_folders_are_kept_and_no_test_is_invented(place):
    path = place({f"{s}/{name}": content for s in ("train", "val") for name, content in CLASSES.items()})
    assert [len(folder(path, split)) for split in ("train", "validation")] == [40, 40]
    with pytest.raises(ValueError, match="none is left for the split 'test'"):
        folder(path, "test")


def test_pictures_without_class_folders_have_no_labels(place):
    data = folder(place({f"{i}.png": png(i) for i in range(5)}), size=4)
    assert data.labels is None and len(data) == 4 and data.image_shape == (3, 4, 4)


def test_a_stray_picture_among_classes_is_named(place):
    with pytest.raises(ValueError, match="stray.png lies in no class folder"):
        folder(place(CLASSES | {"stray.png": png()}))


def test_a_picture_outside_the_split_folders_is_named(place):
    with pytest.raises(ValueError, match="other/1.png lies outside the folders train"):
        folder(place({"train/a/1.png": png(), "other/1.png": png()}))


def test_bad_pictures_are_reported_by_name(place):
    whole = png(size=(64, 64))
    bad = {"cats/x.png": b"no picture", "cats/y.png": whole[: len(whole) // 2], "cats/z.jpg": b""}
    bad["dogs/w.png"] = png(0, mode="I;16")
    with pytest.raises(ValueError, match=r"4 of \d+ pictures cannot be read") as error:
        folder(place(bad | {f"cats/{i}.png": png(i) for i in range(5)}))
    assert all(name in str(error.value) for name in bad)


def test_pictures_are_cropped_in_the_middle_and_resized(place):
    wide = Image.new("RGB", (64, 32), "black")
    wide.paste("white", (16, 0, 48, 32))
    out = io.BytesIO()
    wide.save(out, "PNG")
    images = folder(place({"a/1.png": out.getvalue()}), size=16).images
    assert images.mean() > 0.98 and images.min() > 0.8


def test_a_picture_of_the_right_size_is_not_touched(place):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    data = folder(place({"a/1.png": out.getvalue()}), size=16)
    assert np.array_equal(to_levels(data.images)[0].numpy(), pixels.transpose(2, 0, 1))


def test_grey_transparency_palettes_and_rotation_are_understood(place):
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held on its side
    left = Image.new("RGB", (32, 32), "black")
    left.paste("white", (0, 0, 16, 32))
    out = io.BytesIO()
    left.save(out, "JPEG", exif=turned, quality=95)
    files = {"a/1.png": png((0, 0, 0, 0), mode="RGBA"), "a/2.gif": png(0, mode="P", format="GIF")}
    files["a/3.jpg"] = out.getvalue()
    levels = to_levels(folder(place(files), size=32, channels=1).images)
    assert levels.shape == (3, 1, 32, 32) and (levels[0] == 255).all()
    assert levels[2, 0, :14].min() > 240 and levels[2, 0, 18:].max() < 15


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_a_path_out_of_the_archive_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out of the archive"):
        folder(fill(tmp_path, {name: png()}, zipped=True))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = fill(tmp_path, CLASSES, zipped=False)
    (tmp_path / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", path / "cats/link.png")
    with pytest.raises(ValueError, match="link that leads out"):
        folder(path)


def test_bombs_are_refused_before_they_are_decoded(place, monkeypatch):
    path = place({"a/large.png": png(0, (300, 300), "L"), "a/small.png": png()})
    for limit, value, message in (
        ("MAX_PIXELS", 80_000, "large.png .300 x 300 pixels"),
        ("MAX_BYTES", 100, "large.png .* bytes, more than 100"),
        ("MAX_FILES", 1, "holds 2 pictures, more than 1"),
        ("MAX_RESULT", 1000, "do not fit in memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(folders, limit, value)
            with pytest.raises(ValueError, match=message):
                folder(path)
    assert len(folder(path)) == 2


def test_a_zip_bomb_is_measured_by_its_header_and_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_BYTES", 1_000_000)
    path = fill(tmp_path, {"a/bomb.png": bytes(folders.MAX_BYTES + 1)}, zipped=True)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match="bomb.png .* more than"):
        folder(path)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 40))
def test_noise_in_place_of_a_zip_is_a_clear_error(tmp_path_factory, noise, keep):
    root = tmp_path_factory.mktemp("noise")
    whole = fill(root, {"a/1.png": png(), "a/2.png": png(7)}, zipped=True).read_bytes()
    (root / "noise.zip").write_bytes(whole[:keep] + noise + whole[keep + len(noise) :])
    try:
        assert folder(root / "noise.zip").image_shape == (3, 32, 32)  # a zip survives junk before its first entry
    except ValueError as error:
        assert "noise.zip" in str(error) or "a/" in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "whole number of pixels"),
        ({"channels": 2}, "3 .colour. or 1"),
        ({"count": 99}, "1..32"),
        ({"split": "all"}, "train"),
    ],
)
def test_bad_requests_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        folder(fill(tmp_path, CLASSES, zipped=False), **options)


def test_a_missing_or_empty_place_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder and no zip file at .*nowhere"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no pictures"):
        folder(tmp_path)
