"""Checkpoints: weights in a safetensors file whose header says how to rebuild the module. No pickle anywhere.

The header holds one JSON document: the class, its constructor arguments, the recipe that trained it, the measured
metrics, the package version and a sha256. Loading builds `cls(**config)` and fills in the weights; only an
`nn.Module` that is defined inside this package is ever built, and the name is judged before anything is imported.

The sha256 seals the whole file. It is taken with 64 zeros in its own place, so that a flipped byte anywhere, in a
weight, in the header or in the hash itself, is found. A file is written beside its final place, flushed to disk and
then renamed: at any moment, even if the process is killed, a reader finds the old file or the new one, whole.

Floating weights are stored as float16 (half the size, and 11 significant bits are enough to sample from) and come
back as float32; `half=False` stores them as they are. `train.fit` keeps its state in the same kind of file.
"""

import hashlib
import importlib
import json
import os
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from minimal import __version__

BLANK = b"0" * 64
SEAL = re.compile(rb"sha256\W+([0-9a-f]{64})")
CLASS = re.compile(r"minimal(\.[a-z]\w*)+\.[A-Z]\w*")


# Modules


def save(module, path, *, recipe=None, metrics=None, half=True):
    """Write `module` to `path`. `recipe` (a name) and `metrics` (a dict of numbers) go into the header."""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    find_class(name)  # what could not be loaded is not saved
    config = getattr(module, "config", None)
    if config is None:
        raise ValueError(f"{name} has no `config`: set `self.config = arguments(locals())` first in its constructor")
    weights = {key: halved(value) if half else value for key, value in module.state_dict().items()}
    header = {"class": name, "config": config, "recipe": recipe, "metrics": metrics or {}, "version": __version__}
    write(path, weights, header)


def load(name_or_path, device="cpu"):
    """The module of a checkpoint, in eval mode with float32 weights. Takes a shipped name (`names()`) or a path."""
    path = locate(name_or_path)
    header, weights = read(path)
    cls = find_class(header.get("class"))
    config = {key: frozen(value) for key, value in header["config"].items()}
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights must not use up the caller's random numbers
            module = cls(**config)
        module.load_state_dict(weights)  # casts to the dtype of the module, so float16 becomes float32
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} was made by version {header['version']} and does not fit {header['class']} of "
            f"version {__version__}; train it again. ({error})"
        ) from error
    return module.to(device).eval()


def header(name_or_path):
    """What a checkpoint says about itself: class, config, recipe, metrics, version, sha256."""
    return read(locate(name_or_path))[0]


def names():
    """The checkpoints that `load` finds by name, sorted."""
    return sorted(path.stem for path in folder().glob("*.safetensors"))


def folder():
    """Where named checkpoints lie: `data/checkpoints` of a checkout, `minimal/_checkpoints` of an installed wheel."""
    package = Path(__file__).parent
    if (package.parent / "pyproject.toml").exists():
        return package.parent / "data" / "checkpoints"
    return package / "_checkpoints"


def locate(name_or_path):
    """A path for a name; a path stays what it is. ValueError if there is no such file."""
    path = Path(name_or_path)
    if path.suffix != ".safetensors":
        path = folder() / f"{name_or_path}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"no checkpoint {str(name_or_path)!r} at {path}; there are: {', '.join(names()) or 'none'}. "
            f"`minimal train {path.stem}` makes it, if there is a recipe of that name"
        )
    return path


def find_class(name):
    """The `nn.Module` subclass called `name`, like "minimal.ar.raster.RasterGPT". ValueError if it is not ours."""
    refused = ValueError(f"the class {name!r} is refused: a checkpoint holds an nn.Module defined inside `minimal`")
    if not isinstance(name, str) or not CLASS.fullmatch(name):  # judged before the import, which would run code
        raise refused
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise refused from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module):
        raise refused
    return cls


def halved(x):
    """float16 for a floating tensor that fits its range (counters may not); anything else stays."""
    small = x.half() if x.is_floating_point() else x
    return small if small.isfinite().equal(x.isfinite()) else x


def frozen(value):
    """JSON knows no tuples: lists become tuples again, since shapes are compared as tuples."""
    return tuple(frozen(item) for item in value) if isinstance(value, list) else value


# Files


def write(path, tensors, header):
    """Write named tensors and a header (a dict that JSON can hold) to `path`: sealed and atomic."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    # One key only: safetensors writes several in random order, and equal weights should give equal files.
    data = safetensors.torch.save(copies, {"minimal": json.dumps({"sha256": BLANK.decode(), **header})})
    data = data.replace(BLANK, hashlib.sha256(data).hexdigest().encode(), 1)
    partial = path.with_name(path.name + ".partial")  # in the same folder, since a rename is atomic within one disk
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name must reach the disk too; Windows cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read(path):
    """The header and the tensors of a file that `write` made. ValueError if a single byte of it has changed."""
    data = Path(path).read_bytes()
    seal = SEAL.search(data)
    if seal is None or hashlib.sha256(data.replace(seal[1], BLANK, 1)).hexdigest().encode() != seal[1]:
        raise ValueError(
            f"{path} is damaged, or was not written by minimal: its sha256 does not match its content. "
            "Delete it, then restore or train it again"
        )
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["minimal"])
    return header, safetensors.torch.load(data)
