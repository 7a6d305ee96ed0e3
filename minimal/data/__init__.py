"""Data: `load(name, split)` gives `Images` or `Text`, `folder(path)` reads your own pictures, `found()` what is here.

One file per data set, each with a `load` function, a VERSION and the sha256 of what must never change. Embedded sets
need no network; the others are downloaded on first use, or found in `$MINIMAL_DATA` or in the cache folder.
"""

import inspect

from minimal.data import cifar10, digits, fashion_mnist, glyphs, mnist, photos, pydoc, shakespeare, shapes
from minimal.data.folders import folder
from minimal.data.records import Images, Text
from minimal.data.source import Row, row

__all__ = ["DATASETS", "LOADERS", "Images", "Row", "Text", "folder", "found", "load", "names"]

DATASETS = {
    "digits": digits,
    "shapes": shapes,
    "glyphs": glyphs,
    "photos": photos,
    "pydoc": pydoc,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "shakespeare": shakespeare,
}
LOADERS = {name: module.load for name, module in DATASETS.items()}


def names() -> list[str]:
    """The names that `load` knows: embedded sets first, then downloaded ones."""
    return list(LOADERS)


def load(name: str, split: str = "train", **options) -> Images | Text:
    """A split ("train", "validation" or "test") of a data set; `options` are those of the set's own `load`."""
    if name not in LOADERS:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(names())}; your own pictures: folder(path)")
    known = [option for option in inspect.signature(LOADERS[name]).parameters if option != "split"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return LOADERS[name](split, **options)


def found() -> list[Row]:
    """What is on this machine, one row per data set: name, kind, where, missing, licence, origin."""
    return [row(module.SOURCE) for module in DATASETS.values()]
