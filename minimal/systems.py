"""The map of the field: every published system that the course covers, and where in the course it stands.

`systems.toml` beside this file holds the entries and explains their fields. A planned entry is a promise; a done one
names the notebook section that teaches the system, the module that implements it, the test that checks it and the claim
that was measured. `load` refuses a malformed map, `broken` lists what done entries name and the repository lacks.
"""

import ast
import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

MAP = Path(__file__).with_name("systems.toml")
DEPTHS = ("core", "variant", "exhibit", "survey", "foundation")
STATUSES = ("planned", "done")
PARTS = range(9)


@dataclass(frozen=True)
class System:
    """One entry of the map. The last four fields are empty while the status is "planned"."""

    id: str
    title: str
    part: int
    depth: str
    status: str
    arxiv: tuple[str, ...] = ()
    notebook: str = ""  # "0_start/01_tour#speculative-sampling"
    module: str = ""  # "minimal/samplers/speculative.py"
    test: str = ""  # "tests/samplers/test_speculative.py::test_name"
    claim: str = ""

    def __post_init__(self):
        def refuse(what):
            raise ValueError(f"systems.toml, [{self.id}]: {what}")

        if self.part not in PARTS:
            refuse(f"part is {self.part!r}, expected {PARTS[0]} to {PARTS[-1]}")
        if self.depth not in DEPTHS:
            refuse(f"depth is {self.depth!r}, expected one of {', '.join(DEPTHS)}")
        if self.status not in STATUSES:
            refuse(f"status is {self.status!r}, expected one of {', '.join(STATUSES)}")
        for number in self.arxiv:
            if not re.fullmatch(r"\d{4}\.\d{4,5}", str(number)):
                refuse(f"arxiv has {number!r}, expected a number like 2404.02905")
        missing = [name for name in ("notebook", "module", "test", "claim") if not getattr(self, name)]
        if self.status == "done" and missing:
            refuse(f"status is done but {', '.join(missing)} is empty; fill it in or set the status back to planned")


def load(path: Path | str = MAP) -> list[System]:
    """All systems in the order of the file. ValueError names the entry and field that is wrong."""
    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    return [read(name, entry) for name, entry in entries.items()]


def read(name: str, entry: dict) -> System:
    """A system from its table; says which field is unknown, missing or of the wrong type."""
    if not isinstance(entry, dict):
        raise ValueError(f"systems.toml: {name} = {entry!r} stands outside of any entry; entries are tables like [var]")
    known = {field.name: field for field in fields(System) if field.name != "id"}
    if unknown := sorted(set(entry) - set(known)):
        raise ValueError(f"systems.toml, [{name}]: unknown field {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [key for key, field in known.items() if field.default is MISSING and key not in entry]:
        raise ValueError(f"systems.toml, [{name}]: {', '.join(missing)} is missing")
    for key, value in entry.items():
        expected = {"part": int, "arxiv": list}.get(key, str)
        if type(value) is not expected:
            raise ValueError(f"systems.toml, [{name}]: {key} is {value!r}, expected {expected.__name__}")
    return System(name, **{**entry, "arxiv": tuple(entry.get("arxiv", ()))})


def broken(systems: list[System], root: Path | str) -> list[str]:
    """What done entries name and the repository at `root` does not hold: one sentence each, empty when all is well."""
    root, found = Path(root), []
    for system in systems:
        if system.status != "done":
            continue
        notebook, _, section = system.notebook.partition("#")
        script = root / "notebooks" / f"{notebook}.py"
        if not script.is_file():
            found.append(f"[{system.id}] notebook: there is no {script.relative_to(root)}")
        elif section not in headings(script):
            found.append(
                f"[{system.id}] notebook: {notebook} has no heading #{section}; "
                f"it has {', '.join('#' + slug for slug in headings(script))}"
            )
        if not (root / system.module).is_file():
            found.append(f"[{system.id}] module: there is no {system.module}")
        file, _, name = system.test.partition("::")
        if not (root / file).is_file():
            found.append(f"[{system.id}] test: there is no {file}")
        elif name not in tests(root / file):
            found.append(f"[{system.id}] test: {file} has no {name or 'test after ::'}")
    return found


def headings(script: Path) -> list[str]:
    """The anchors of all headings in the Markdown cells of a notebook (percent script), as the site spells them."""
    cells = re.split(r"^# %%", script.read_text(encoding="utf8"), flags=re.MULTILINE)
    lines = [line for cell in cells if cell.startswith(" [markdown]") for line in cell.splitlines()]
    return [slug(found[1]) for line in lines if (found := re.match(r"# #{1,6} (.+)", line))]


def slug(heading: str) -> str:
    """The anchor of a heading: "Speculative sampling: guess, check" -> "speculative-sampling-guess-check"."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def tests(file: Path) -> list[str]:
    """The tests that a file defines: "test_name", or "TestClass::test_name"."""
    names = []
    for node in ast.parse(file.read_text(encoding="utf8")).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.ClassDef):
            names += [f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)]
    return [name for name in names if name.split("::")[-1].startswith("test")]


def table(systems: list[System], width: int | None = None) -> str:
    """The map as text, one line per system; titles are cut so that lines fit into `width` characters."""
    rows = [("id", "part", "depth", "status", "title")]
    rows += [(s.id, str(s.part), s.depth, s.status, s.title) for s in systems]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join([cell.ljust(size) for cell, size in zip(row, widths)] + [row[4]]) for row in rows]
    if width:
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    done = sum(system.status == "done" for system in systems)
    return "\n".join([*lines, "", f"{len(systems)} systems, {done} of them done"])
