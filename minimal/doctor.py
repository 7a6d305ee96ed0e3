"""`minimal doctor`: what this machine has and what is missing, as a block to paste into a bug report."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tomllib
from pathlib import Path

PACKAGE = Path(__file__).parent


def report() -> str:
    """The whole report, Markdown code fences included. The name of the home folder is left out."""
    blocks = []
    for section in (versions, machine, contents, missing):
        try:
            blocks.append(section())
        except Exception as error:  # a broken installation is what this is for: say so and go on
            blocks.append([f"FAILED      {section.__name__}: {error!r}"])
    lines = "\n\n".join("\n".join(block) for block in blocks)
    return f"```\n{lines}\n```".replace(str(Path.home()), "~")


def versions() -> list[str]:
    """The package, Python, and everything that the package itself needs."""
    import minimal

    packages = [f"{name} {installed(name) or 'MISSING'}" for name in requirements().get("", [])]
    return [
        f"minimal     {minimal.__version__} in {PACKAGE}",
        f"python      {platform.python_version()} in {sys.prefix}",
        f"packages    {', '.join(packages)}",
    ]


def machine() -> list[str]:
    """Operating system, cores, threads, devices, memory of the devices, free disk where downloads go."""
    import torch

    from minimal.data.source import cache_folder

    devices = ["cpu"]
    for n in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(n)
        devices.append(f"cuda:{n} ({card.name}, {card.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    folder = cache_folder()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    writable = "" if os.access(existing, os.W_OK) else ", NOT WRITABLE"
    limits = [f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ]
    return [
        f"system      {platform.system()} {platform.release()} {platform.machine()}",
        f"cores       {os.cpu_count()}; torch uses {torch.get_num_threads()} threads {' '.join(limits)}".rstrip(),
        f"devices     {', '.join(devices)}",
        f"free disk   {shutil.disk_usage(existing).free / 1e9:.1f} GB in {folder}{writable}",
    ]


def contents() -> list[str]:
    """Checkpoints and data sets that are here. A damaged checkpoint is named as such."""
    from minimal import checkpoints, data

    def state(name):
        try:
            checkpoints.header(name)
            return name
        except ValueError:
            return f"{name} DAMAGED"

    networks = ", ".join(map(state, checkpoints.names())) or "NONE"
    embedded = [row.name for row in data.found() if row.kind == "embedded"]
    files = [f"data        {row.name} in {row.where}" for row in data.found() if row.kind != "embedded" and row.where]
    return [f"checkpoints {networks}", f"data        {', '.join(embedded)}", *files]


def missing() -> list[str]:
    """What is not here, and what it would be good for."""
    from minimal import data

    lines = [f"missing     {row.name} (downloaded when first used)" for row in data.found() if row.missing]
    for extra, names in requirements().items():
        absent = [name for name in names if not installed(name)]
        if absent and extra:
            lines.append(f"missing     {', '.join(absent)} (only for pip install 'minimal[{extra}]')")
        elif absent:
            lines.append(f"MISSING     {', '.join(absent)}: the package does not work without; install it again")
    return lines or ["missing     nothing"]


def requirements() -> dict[str, list[str]]:
    """Names of the packages needed: those of the package itself under "", and those of each optional extra."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.exists():
        table = tomllib.loads(project.read_text(encoding="utf8"))["project"]
        lists = {"": table["dependencies"], **table["optional-dependencies"]}
    else:
        lists = {}
        for line in importlib.metadata.requires("minimal") or []:
            extra = re.search(r"extra == ['\"](\w+)", line)
            lists.setdefault(extra[1] if extra else "", []).append(line)
    return {extra: [re.match(r"[\w.-]+", line)[0] for line in lines] for extra, lines in lists.items()}


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
