"""Where a data set comes from, and where it is on this machine: the rows that `minimal data` prints.

Files that must be downloaded are looked for in `$MINIMAL_DATA`, then in the cache folder, then on the network.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A file to download. `size` is the number of bytes of its content; nothing longer is ever unpacked.

    `digest` is "algorithm:hex" of the content: after unpacking if `gunzip` is set, since the wrapper of the same
    content may differ; before it if only the digest of the wrapped file is published (`digest_of_wrapper`).
    """

    path: str  # below a data folder, for instance mnist/train-images-idx3-ubyte.gz
    urls: tuple[str, ...]
    digest: str
    size: int
    gunzip: bool = False
    digest_of_wrapper: bool = False


@dataclass(frozen=True)
class Source:
    """A data set's name, licence and origin; for downloaded sets its files and the embedded set that can serve instead.

    `stand_in` names a file that holds the same pictures in another form and is taken when the official one is missing.
    """

    name: str
    licence: str
    origin: str
    files: tuple[File, ...] = ()
    instead: str = ""
    stand_in: str = ""


@dataclass(frozen=True)
class Row:
    """One line of `minimal data`: `where` is empty when something is missing, and `missing` says what."""

    name: str
    kind: str  # "embedded" or "downloaded"
    where: str
    missing: str
    licence: str
    origin: str


def cache_folder() -> Path:
    """`$MINIMAL_CACHE`; else data/cache of a checkout; else the cache folder of this user."""
    if os.environ.get("MINIMAL_CACHE"):
        return Path(os.environ["MINIMAL_CACHE"]).expanduser()
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "data" / "cache"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "minimal" / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minimal" / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimal" / "data"


def data_folders() -> list[Path]:
    """Where files are looked for, in this order."""
    if not os.environ.get("MINIMAL_DATA"):
        return [cache_folder()]
    chosen = Path(os.environ["MINIMAL_DATA"]).expanduser()
    if not chosen.is_dir():
        raise ValueError(f"MINIMAL_DATA is {str(chosen)!r}, which is not a folder; correct it or unset it")
    return [chosen, cache_folder()]


def locate(path: str) -> Path | None:
    """The first data folder's copy of a file, or None."""
    return next((folder / path for folder in data_folders() if (folder / path).is_file()), None)


def row(source: Source) -> Row:
    """Where the set is. Files are only looked for here; their content is checked when they are loaded."""
    if not source.files:
        return Row(source.name, "embedded", "installed", "", source.licence, source.origin)
    paths = {file.path: locate(file.path) for file in source.files}
    missing = ", ".join(path for path, place in paths.items() if place is None)
    where = "" if missing else ", ".join(sorted({str(place.parent) for place in paths.values()}))
    if len(paths) == 1 and not missing:
        where = str(*paths.values())
    stand_in = locate(source.stand_in) if source.stand_in else None
    if missing and stand_in:
        missing, where = "", str(stand_in)
    return Row(source.name, "downloaded", where, missing, source.licence, source.origin)
