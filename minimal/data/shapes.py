"""`shapes`: procedural colour pictures of 32 x 32 pixels, as many as you like, each known exactly.

Two frozen versions. `single`: one object, class = shape x colour (16 classes). `scene`: one to four objects, no two
alike, with captions. Both come with exact attributes, masks of what is visible of each object, and edge maps.
Image i of a split is a pure function of (VERSION, version, split, i): all randomness is a hash of these, all
attributes are whole numbers (sixteenths of a pixel, degrees), so no machine and no batch size can change them.
"""

import numpy as np
import torch
from torch import Tensor

from minimal.data import drawing
from minimal.data.drawing import COLOURS, SHAPES, SIZE
from minimal.data.frozen import SPLITS, check_split, uniform
from minimal.data.records import Images
from minimal.data.source import Source

VERSION = 1
VERSIONS = ("single", "scene")
SIZES = {"train": 10_000, "validation": 1_000, "test": 1_000}
SHA256 = {
    ("single", "train"): "24d22c56adb46d7aae5a1f7d8d81314237aed97c336e0d5b71619ad5852d5200",
    ("single", "validation"): "2edb5b6ff6c0aa2bc7938350eeb19579aaf5fcb5f91a061b4ce1645d0afacce4",
    ("single", "test"): "6680e92be05844cf347c39e0c6e262c5e26b275c5bad5dbd4766551969921c76",
    ("scene", "train"): "29c57a8d7392efe998e52f73f537dc1bc3d1e225416a5dbca32db29bc4d284a9",
    ("scene", "validation"): "3eb1c35430ce97ecd2a7d70cb9ed78c172040e6d7586fd2cf606857700953c06",
    ("scene", "test"): "e09e81628b2326ce7f8655b9f62781d923829af46a35da94bad7fc4860bdc559",
}
SOURCE = Source("shapes", licence="MIT", origin="drawn by minimal.data.shapes")
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
UNIT = 16  # positions and radii are whole multiples of a sixteenth of a pixel
RADII = ((56, 72), (88, 108))  # small: 3.5 to 4.5 pixels, large: 5.5 to 6.75
OBJECTS, TRIES = 4, 40
WORDS = ("", "a", ",", "and", "left", "right", "of", "above", "below", "small", "large", *COLOURS, *SHAPES)
CAPTION_LENGTH = 16


def _whole(u: np.ndarray, low, high) -> np.ndarray:
    """Uniform numbers -> whole numbers in low..high, both included."""
    return low + np.floor(u * (np.asarray(high) - low + 1)).astype(np.int64)


def single_attributes(seed: int, index) -> dict[str, Tensor]:
    """One object per picture. The class is index mod 16, so that every run of 16 pictures holds each class once."""
    index = np.asarray(index, dtype=np.int64)
    u = uniform(seed, index, 5)
    label = index % len(CLASS_NAMES)
    return _tensors(
        shape=(label // len(COLOURS))[:, None],
        colour=(label % len(COLOURS))[:, None],
        size=np.ones((len(index), 1), dtype=np.int64),
        x=_whole(u[:, 0:1], 216, 296),  # 13.5 to 18.5 pixels
        y=_whole(u[:, 1:2], 216, 296),
        radius=_whole(u[:, 2:3], 128, 176),  # 8 to 11 pixels
        angle=_whole(u[:, 3:4], -24, 24),
        background=_whole(u[:, 4], 0, len(drawing.BACKGROUNDS) - 1),
    )


def scene_attributes(seed: int, index) -> dict[str, Tensor]:
    """One to four objects of different kinds. Each takes the first of 40 places that is clear of those before it."""
    n, k = len(index), OBJECTS
    u = uniform(seed, index, 2 + len(CLASS_NAMES) + 3 * k + 2 * k * TRIES)
    head, kinds, sizes, radii, angles, tries = np.split(u, np.cumsum([2, len(CLASS_NAMES), k, k, k]), axis=1)
    absent = np.arange(k) >= _whole(head[:, :1], 1, k)
    kind = np.argsort(kinds, axis=1, kind="stable")[:, :k]  # the first k of a random order: all different
    size = _whole(sizes, 0, 1) * (np.arange(k) < 2)  # at most two large ones, or they would hide each other
    low, high = np.array(RADII).T
    radius = _whole(radii, low[size], high[size])
    edge = ((radius * 6 + 4) // 5 + UNIT)[..., None, None]  # drawing.REACH times the radius, and a pixel more
    x, y = np.moveaxis(_whole(tries.reshape(n, k, TRIES, 2), edge, SIZE * UNIT - edge), 3, 0)
    x, y = _settle(x.copy(), y.copy(), radius)
    return _tensors(
        shape=np.where(absent, -1, kind // len(COLOURS)),
        colour=np.where(absent, -1, kind % len(COLOURS)),
        size=np.where(absent, -1, size),
        x=np.where(absent, 0, x),
        y=np.where(absent, 0, y),
        radius=np.where(absent, 0, radius),
        angle=np.where(absent, 0, _whole(angles, -24, 24)),
        background=_whole(head[:, 1], 0, len(drawing.BACKGROUNDS) - 1),
    )


def _settle(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From (n, k, TRIES) places to try, one for each object: the first that is clear, or else the clearest."""
    rows = np.arange(len(x))
    for j in range(1, x.shape[1]):
        gaps = [
            (x[:, j] - x[:, i, :1]) ** 2 + (y[:, j] - y[:, i, :1]) ** 2 - (radius[:, j] + radius[:, i])[:, None] ** 2
            for i in range(j)
        ]
        gap = np.min(gaps, axis=0)  # (n, TRIES)
        choice = np.where((gap >= 0).any(1), (gap >= 0).argmax(1), gap.argmax(1))
        x[:, j, 0], y[:, j, 0] = x[rows, j, choice], y[rows, j, choice]  # the choice stays in the first column
    return x[..., 0], y[..., 0]


def _tensors(**columns: np.ndarray) -> dict[str, Tensor]:
    scene = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in columns.items()}
    for key in ("x", "y", "radius"):
        scene[key] = scene[key].float() / UNIT
    scene["angle"] = scene["angle"].float()
    return scene


def _captions(scene: dict[str, Tensor]) -> tuple[str, ...]:
    """One object: its size, colour and shape. Two: how they lie. Three or four: their list from left to right."""
    captions = []
    rows = zip(*(scene[key].tolist() for key in ("shape", "colour", "size", "x", "y")), strict=True)
    for shape, colour, size, x, y in rows:
        present = [j for j, code in enumerate(shape) if code >= 0]
        plain = {j: f"{COLOURS[colour[j]]} {SHAPES[shape[j]]}" for j in present}
        if len(present) <= 2:
            sized = [f"a {('small', 'large')[size[j]]} {plain[j]}" for j in present]
            captions.append(sized[0] if len(sized) == 1 else f"{sized[0]} {_relation(x, y)} {sized[1]}")
        else:
            *others, last = [f"a {plain[j]}" for j in sorted(present, key=x.__getitem__)]
            captions.append(f"{', '.join(others)} and {last}")
    return tuple(captions)


def _relation(x: list[float], y: list[float]) -> str:
    """How object 0 lies to object 1, along the axis on which they are further apart; y points down."""
    if abs(x[0] - x[1]) >= abs(y[0] - y[1]):
        return "left of" if x[0] < x[1] else "right of"
    return "above" if y[0] < y[1] else "below"


def encode_captions(captions: tuple[str, ...]) -> Tensor:
    """Captions -> long (N, CAPTION_LENGTH), places in WORDS, padded with 0."""
    place = {word: i for i, word in enumerate(WORDS)}
    tokens = torch.zeros(len(captions), CAPTION_LENGTH, dtype=torch.long)
    for row, caption in zip(tokens, captions, strict=True):
        words = caption.replace(",", " ,").split()
        unknown = [word for word in words if word not in place]
        if unknown or len(words) > CAPTION_LENGTH:
            raise ValueError(f"{caption!r}: at most {CAPTION_LENGTH} words out of {', '.join(WORDS[1:])}")
        row[: len(words)] = torch.tensor([place[word] for word in words])
    return tokens


def pictures(version: str, seed: int, index, split: str = "") -> Images:
    """The pictures `index` (whole numbers) of the endless stream `seed`.

    attributes: shape, colour, size (1 is large) long (N, K), -1 where there is no object; x, y, radius in pixels and
    angle in degrees, float (N, K); background long (N,); masks bool (N, K, 32, 32); edges bool (N, 32, 32);
    words long (N, 16), the caption as places in WORDS. K is 1 for `single` and 4 for `scene`.
    """
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version!r}; the versions are {', '.join(VERSIONS)}")
    if version == "single":
        scene = single_attributes(seed, index)
        labels = (scene["shape"] * len(COLOURS) + scene["colour"])[:, 0]
        captions, class_names = tuple(f"a {CLASS_NAMES[label]}" for label in labels), CLASS_NAMES
    else:
        scene = scene_attributes(seed, index)
        captions, class_names, labels = _captions(scene), (), None
    drawn = drawing.draw(scene)
    images = drawn.pop("images")
    attributes = scene | drawn | {"words": encode_captions(captions)}
    return Images(images, labels, class_names, f"shapes-{version}", split, attributes=attributes, captions=captions)


def load(split: str = "train", version: str = "single", count: int | None = None) -> Images:
    """The first `count` pictures of a split: 10,000 / 1,000 / 1,000 unless told otherwise."""
    check_split(split)
    index = np.arange(_check_count(SIZES[split] if count is None else count))
    return pictures(version, seed=10 * VERSION + SPLITS.index(split), index=index, split=split)


def sample(count: int, *, version: str = "single", generator: torch.Generator | None = None) -> Images:
    """Pictures that are new each time, from a stream that no split uses."""
    index = torch.randint(2**62, (_check_count(count),), generator=generator)
    return pictures(version, seed=10 * VERSION + len(SPLITS), index=index.numpy(), split="fresh")


def _check_count(count: int) -> int:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count is a whole number from 1, got {count!r}")
    return count
