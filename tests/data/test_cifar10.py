"""CIFAR-10: planes of colour in the right order, from the binary archive or its JPEG stand-in."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from minimal.data import cifar10
from minimal.data.frozen import to_levels


def small_archive() -> bytes:
    """The official layout with 20 pictures per batch; picture i of batch b has the value 10 b + i in red."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for batch, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            rows = np.zeros((20, cifar10.ROW), dtype=np.uint8)
            rows[:, 0] = np.arange(20) % 10
            rows[:, 1:1025] = (batch * 20 + np.arange(20))[:, None]
            rows[:, 2049:] = 255
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = rows.nbytes
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    return out.getvalue()


@pytest.fixture
def archive(cache, monkeypatch):
    content = small_archive()
    digest = f"md5:{hashlib.md5(content).hexdigest()}"
    file = replace(cifar10.SOURCE.files[0], digest=digest, size=len(content))
    monkeypatch.setattr(cifar10, "SOURCE", replace(cifar10.SOURCE, files=(file,)))
    cache.mkdir()
    (cache / file.path).write_bytes(content)
    return cache / file.path


def test_the_archive_is_read_plane_by_plane_and_split_without_overlap(archive):
    parts = [cifar10.load(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [90, 10, 20]
    levels = torch.cat([to_levels(part.images) for part in parts])
    assert (levels[:, 1] == 0).all() and (levels[:, 2] == 255).all()
    red = levels[:, 0, 0, 0]
    assert sorted(red.tolist()) == list(range(120)) and torch.equal(red % 20 % 10, torch.cat([p.labels for p in parts]))
    assert parts[1].labels.bincount().tolist() == [1] * 10 and parts[0].origin == "binary archive"


def test_a_count_keeps_the_pictures_it_names(archive):
    assert torch.equal(cifar10.load("test", count=5).images, cifar10.load("test").images[::4])


def test_a_damaged_archive_is_reported(archive):
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz is damaged"):
        cifar10.load()


def test_the_jpeg_zip_serves_and_the_record_says_so(cache):
    cache.mkdir()
    with zipfile.ZipFile(cache / "cifar10-jpeg.zip", "w") as zipped:
        for split, name in ((s, n) for s in ("train", "test") for n in cifar10.CLASS_NAMES):
            for i in range(10):
                picture = io.BytesIO()
                Image.new("RGB", (32, 32), (i * 20, 0, 0)).save(picture, "jpeg")
                zipped.writestr(f"cifar10/{split}/{name}/{i:04}.jpg", picture.getvalue())
    parts = [cifar10.load(split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [90, 10, 100]
    assert parts[0].class_names == cifar10.CLASS_NAMES and parts[0].name == "cifar10"
    assert parts[0].origin == "JPEG files in cifar10-jpeg.zip"
