"""`folder(path)`: your own pictures, from a folder or a zip file.

The name of the folder that a file lies in is its class. Folders named train, validation (or val, valid) and test
set the splits; otherwise they are dealt out, 80 / 10 / 10 per cent, stratified. Pictures are turned upright, cropped
to the central square and resized. Nothing is ever unpacked to disk, so no path in an archive can lead outside; sizes
are checked before anything is decoded, so no small file can fill the memory.
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from minimal.data.frozen import SPLITS, check_split, evenly, stratified
from minimal.data.records import Images

SPLIT_SEED = 32
SPLIT_FOLDERS = {s: s for s in SPLITS} | {"valid": "validation", "val": "validation"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_FILES = 200_000
MAX_BYTES = 64 << 20  # of one file, unpacked
MAX_PIXELS = 50_000_000  # of one picture
MAX_RESULT = 8 << 30  # bytes of the tensor that comes out


def folder(
    path: str | Path,
    split: str = "train",
    *,
    size: int = 32,
    channels: int = 3,
    count: int | None = None,
    name: str = "folder",
    origin: str = "",
) -> Images:
    """The pictures of a split as float (N, channels, size, size); `count`: only so many, evenly spaced."""
    check_split(split)
    if channels not in (1, 3):
        raise ValueError(f"channels is 3 (colour) or 1 (grey), got {channels!r}")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size is a whole number of pixels, got {size!r}")
    path = Path(path).expanduser()
    if path.is_dir():
        return _load(*_list_folder(path), path, split, size, channels, count, name, origin)
    if not path.is_file():
        raise ValueError(f"no folder and no zip file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(*_list_zip(archive), path, split, size, channels, count, name, origin)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, struct.error) as error:
        raise ValueError(f"{path} is not a zip file, or a damaged one: {error}") from None


Listing = dict[str, int]  # file name -> bytes


def _is_picture(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _list_folder(root: Path) -> tuple[Listing, Callable[[str], bytes]]:
    files = {}
    for file in root.rglob("*"):
        name = PurePosixPath(file.relative_to(root).as_posix())
        if not _is_picture(name) or not file.is_file():
            continue
        if not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{file} is a link that leads out of the folder; remove it or copy the picture")
        files[str(name)] = file.stat().st_size
    return files, lambda name: (root / name).read_bytes()


def _list_zip(archive: zipfile.ZipFile) -> tuple[Listing, Callable[[str], bytes]]:
    files = {}
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", str(name)):
            raise ValueError(f"{archive.filename} holds {info.filename!r}, a path that leads out of the archive")
        if _is_picture(name) and not info.is_dir():
            files[info.filename] = info.file_size
    return files, archive.read


def _choose(files: list[str], split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The files of a split, their labels, and the names of all classes (none if no file lies in a class folder)."""
    parts = [PurePosixPath(file.replace("\\", "/")).parts[:-1] for file in files]
    splits = [next((s for p in folders if (s := SPLIT_FOLDERS.get(p.lower()))), None) for folders in parts]
    kinds = [folders[-1] if folders and folders[-1].lower() not in SPLIT_FOLDERS else "" for folders in parts]
    names = sorted(set(kinds))
    if names != [""] and "" in names:
        raise ValueError(f"{files[kinds.index('')]} lies in no class folder, though others do; put it into one")
    labels = np.array([names.index(kind) for kind in kinds])
    if any(splits) and not all(splits):
        raise ValueError(f"{files[splits.index(None)]} lies outside the folders train, validation and test")

    # A missing validation set is dealt out of the training pictures; a test set only if no split has a folder.
    given = np.array([s or "train" for s in splits])
    residues = ({} if "validation" in given else {"validation": 4}) | ({} if any(splits) else {"test": 9})
    pool = np.flatnonzero(given == "train")
    dealt = stratified(labels[pool], SPLIT_SEED, every=10, **residues)
    chosen = pool[dealt[split]] if split in dealt else np.flatnonzero(given == split)
    if len(chosen) == 0:
        raise ValueError(
            f"of {len(files)} pictures none is left for the split {split!r}; add more or use another split"
        )
    return [files[i] for i in chosen], labels[chosen], [] if names == [""] else names


def _picture(content: bytes, size: int, channels: int) -> np.ndarray:
    """An image file -> uint8 (channels, size, size)."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if image.mode[0] in "IF":
            raise ValueError("16-bit or float pixels; convert to 8 bits")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if channels == 3 else "L")
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
        return np.asarray(image, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)


def _load(listing, read, path, split, size, channels, count, name, origin) -> Images:
    if not listing:
        raise ValueError(f"{path} holds no pictures; they end in {', '.join(SUFFIXES)}")
    if len(listing) > MAX_FILES:
        raise ValueError(f"{path} holds {len(listing):,} pictures, more than {MAX_FILES:,}")
    files, labels, class_names = _choose(sorted(listing), split)
    rows = evenly(len(files), count)
    if len(rows) * channels * size**2 * 4 > MAX_RESULT:
        raise ValueError(
            f"{len(rows):,} pictures of {size} x {size} do not fit in memory; ask for fewer or smaller ones"
        )

    pixels = np.empty((len(rows), channels, size, size), dtype=np.uint8)
    bad = []
    chosen = [files[row] for row in rows]
    bar = tqdm(chosen, desc=f"{path.name} {split}", delay=2, leave=False, disable="CI" in os.environ)
    for i, file in enumerate(bar):
        try:
            if listing[file] > MAX_BYTES:
                raise ValueError(f"{listing[file]:,} bytes, more than {MAX_BYTES:,}")
            pixels[i] = _picture(read(file), size, channels)
        except Exception as error:  # a damaged picture makes Pillow raise nearly anything
            bad.append(f"{file} ({error or type(error).__name__})")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{len(bad)} of {len(rows)} pictures cannot be read, remove them: {'; '.join(bad[:5])}{more}")
    images = torch.from_numpy(pixels).float().div_(127.5).sub_(1)
    labels = torch.from_numpy(labels[rows]) if class_names else None
    return Images(images, labels, tuple(class_names), name=name, split=split, origin=origin or str(path))
