"""Files from the network: resumed where they broke off, checked by content, moved into place in one step.

A transfer writes to NAME.part and asks for the bytes that NAME.part lacks (HTTP Range). Only when the digest is right
does the file get its name. So a file under its own name is whole, and a damaged one is reported, never loaded.
"""

import gzip
import hashlib
import http.client
import io
import os
import re
import shutil
import zlib
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from minimal.data.source import File, Source, cache_folder, locate

TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 16


def read(file: File, source: Source) -> bytes:
    """The checked content of a file (unpacked, if `file.gunzip`), downloaded first if it is nowhere on this machine."""
    return checked(locate(file.path) or fetch(file, source), file)


def checked(path: Path, file: File) -> bytes:
    """Read a file; a ValueError if its content is not what the digest says."""
    raw = path.read_bytes()
    algorithm, expected = file.digest.split(":")
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(file.size + 1) if file.gunzip else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and it will be fetched again") from None
    got = hashlib.new(algorithm, raw if file.digest_of_wrapper else content, usedforsecurity=False).hexdigest()
    if len(content) != file.size or got != expected:
        raise ValueError(
            f"{path} is damaged or another file: expected {file.size:,} bytes and {algorithm} {expected}, "
            f"got {len(content):,} and {got}; delete it and it will be fetched again"
        )
    return content


def fetch(file: File, source: Source) -> Path:
    """Download into the cache folder, from the first address that works. Whoever else wants the file waits."""
    target = cache_folder() / file.path
    lock = FileLock(target.with_name(target.name + ".lock"))
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        return target if target.is_file() else _fetch(file, source, target)
    finally:
        lock.release()


def _fetch(file: File, source: Source, target: Path) -> Path:
    part = target.with_name(target.name + ".part")
    with _writing(target.parent):
        part.touch()
    failures = []
    for url in file.urls:
        try:
            _transfer(url, part)
            break
        except (URLError, http.client.HTTPException, OSError) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
    else:
        raise ValueError(
            f"{source.name} is not on this machine and could not be fetched ({'; '.join(failures)}). "
            f"Fetch {file.urls[0]} yourself and save it as {target}, or set MINIMAL_DATA to a folder that holds "
            f"{file.path}. The embedded set {source.instead!r} serves instead, without a network."
        )
    try:
        checked(part, file)
    except ValueError as error:
        part.unlink()
        raise ValueError(f"the download from {url} was thrown away: {error}") from None
    with _writing(target.parent):
        os.replace(part, target)
    return target


def _transfer(url: str, part: Path) -> None:
    """Fetch the bytes that `part` lacks. Raises an OSError or HTTPException when the network fails."""
    have = part.stat().st_size
    headers = {"User-Agent": "minimal"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # killed between the last byte and the renaming: nothing is lacking
        part.write_bytes(b"")
        return _transfer(url, part)
    with response:
        start = have if response.status == 206 else 0  # a server without Range sends everything again
        if start and not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise URLError("the server sent another range than was asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with _writing(part.parent):
            free = shutil.disk_usage(part.parent).free
            if total and free < total - start:
                raise OSError(f"{total - start:,} bytes are needed and {free:,} are free")
        with (
            open(part, "r+b") as output,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable="CI" in os.environ
            ) as bar,
        ):
            output.seek(start)
            while block := response.read(BLOCK):
                with _writing(part.parent):
                    output.write(block)
                bar.update(len(block))
            end = output.tell()
            with _writing(part.parent):
                output.truncate(end)
                output.flush()
                os.fsync(output.fileno())
        if total is not None and end != total:
            raise URLError(f"the connection closed after {end:,} of {total:,} bytes; call again to go on from there")


@contextmanager
def _writing(folder: Path):
    """Trouble with the disk is not trouble with the network: say so, and say what helps."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to the cache folder {folder}: {error}; make room or set MINIMAL_CACHE to another folder"
        ) from None
