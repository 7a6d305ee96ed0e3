"""IDX files: read as the format says, refused when they are anything else; Fashion-MNIST shares all of it."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.data import fashion_mnist, mnist
from minimal.data.frozen import SPLITS, fingerprint, to_levels
from minimal.data.source import locate


def idx(tensor: torch.Tensor) -> bytes:
    header = b"\0\0\x08" + bytes([tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
    return header + tensor.numpy().tobytes()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_what_is_written_as_idx_is_read_back(shape, data):
    tensor = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    content = idx(tensor)
    assert torch.equal(mnist.parse_idx(content), tensor)
    cut = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:cut], content + b"\0"):
        with pytest.raises(ValueError, match="IDX"):
            mnist.parse_idx(damaged)


@given(st.binary(max_size=40))
def test_noise_is_not_idx(content):
    with pytest.raises(ValueError, match="IDX"):
        mnist.parse_idx(b"\x1f" + content)


def test_the_small_size_averages_two_by_two_and_keeps_the_levels():
    images = torch.randint(256, (5, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = mnist.to_images(images, 14)
    by_hand = (images.double().reshape(5, 14, 2, 14, 2).mean((2, 4))).round()
    assert small.shape == (5, 1, 14, 14) and torch.equal(to_levels(small)[:, 0].double(), by_hand)
    with pytest.raises(ValueError, match="28 or 14"):
        mnist.to_images(images, 7)


@pytest.mark.parametrize("module", [mnist, fashion_mnist])
def test_validation_is_carved_from_the_training_images(module, monkeypatch):
    labels = (torch.arange(60_000) % 10).byte()
    images = torch.arange(60_000).view(-1, 1, 1).expand(-1, 1, 2)
    images = torch.cat([images // 256, images % 256], dim=1).byte()  # each picture holds its own number
    contents = dict(zip((file.path for file in module.SOURCE.files), (idx(images), idx(labels)), strict=False))
    monkeypatch.setattr(mnist, "read", lambda file, source: contents[file.path])
    numbers = []
    for split in ("train", "validation"):
        pixels, kept = mnist.pixels(module.SOURCE, split, module.SPLIT_SEED)
        number = pixels[:, 0, 0].long() * 256 + pixels[:, 1, 0].long()
        assert torch.equal(kept, number % 10) and len(number) == module.SIZES[split]
        numbers += number.tolist()
    assert sorted(numbers) == list(range(60_000))


@pytest.mark.parametrize("split", SPLITS)
def test_the_real_images_are_split_as_frozen(split):
    if not all(locate(file.path) for file in mnist.SOURCE.files):
        pytest.skip("MNIST is not on this machine")
    pixels, labels = mnist.pixels(mnist.SOURCE, split, mnist.SPLIT_SEED)
    assert len(labels) == mnist.SIZES[split]
    assert fingerprint(labels, pixels[::100]) == mnist.SHA256[split]
