"""The site: the pages that are made from what the repository holds, and its build.

    python -m minimal.book          write the generated pages, build the site, check it: `make book`
    python -m minimal.book times    run every notebook on one thread and note its seconds in book/run_times.toml

Prose lives in book/*.md and in the notebooks. Generated, into book/_generated: the map of the field (from
systems.toml), the chapters and systems of each part, the graph of chapters (from book/chapters.toml), the run times.
"""

import argparse
import html
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from minimal import systems

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
GENERATED = BOOK / "_generated"
SITE = BOOK / "_build" / "html"
ARXIV = "https://arxiv.org/abs/"
PARTS = ("0", "1", "2", "3", "4", "5a", "5b", "6", "7", "8")
CARD = ("You will build", "Time", "You need", "Of the five nouns", "Systems")


# What there is


@dataclass(frozen=True)
class Chapter:
    """A notebook: its path below notebooks/ without ending, its title, its card and the chapters it leans on."""

    name: str  # "0_start/01_tour"
    title: str
    card: dict[str, str]
    needs: tuple[str, ...]

    @property
    def part(self) -> str:
        return self.name.split("_")[0]

    @property
    def number(self) -> str:
        """ "0.1" for the first chapter of Part 0."""
        return f"{self.part}.{int(self.name.split('/')[1][:2])}"

    @property
    def page(self) -> str:
        return f"notebooks/{self.name}.html"

    @property
    def link(self) -> str:
        """A Markdown link from a page of the book."""
        return f"[{self.title}](../notebooks/{self.name}.ipynb)"


def chapters(root: Path = ROOT) -> list[Chapter]:
    """All chapters in the order of book/chapters.toml. ValueError names a notebook or an entry that lacks the other."""
    listed = tomllib.loads((root / "book" / "chapters.toml").read_text(encoding="utf8"))
    there = {f"{p.parent.name}/{p.stem}" for p in (root / "notebooks").glob("*/[0-9]*.py")}
    if missing := sorted(there ^ set(listed)):
        raise ValueError(f"book/chapters.toml and notebooks/ differ in {', '.join(missing)}; list every notebook once")
    found = []
    for name, needs in listed.items():
        if unknown := [need for need in needs if need not in [chapter.name for chapter in found]]:
            raise ValueError(f"book/chapters.toml: {name} needs {', '.join(unknown)}, which does not come before it")
        text = (root / "notebooks" / f"{name}.py").read_text(encoding="utf8")
        found.append(Chapter(name, *title_and_card(text, name), tuple(needs)))
    return found


def title_and_card(script: str, name: str) -> tuple[str, dict[str, str]]:
    """The heading and the card of a notebook; every chapter opens with both."""
    first = script.split("# %%")[1]
    title = re.search(r"^# # (.+)$", first, re.MULTILINE)
    card = dict(re.findall(r"^# \| \*\*(.+?)\*\* \| (.+?) \|$", first, re.MULTILINE))
    if not title or list(card) != list(CARD):
        raise ValueError(
            f"{name} must open with a heading and a card of these rows: {', '.join(CARD)}; has {list(card)}"
        )
    return title[1], card


def run_times() -> dict:
    return tomllib.loads((BOOK / "run_times.toml").read_text(encoding="utf8"))


# The generated pages, in Markdown and HTML


def write_pages() -> None:
    GENERATED.mkdir(exist_ok=True)
    all_chapters, all_systems, times = chapters(), systems.load(), run_times()
    for part in PARTS:
        write(f"part_{part}.md", part_page(part, all_chapters, all_systems, times["seconds"]))
    write("map.html", map_table(all_systems))
    write("order.html", graph(all_chapters))
    write("run_times.md", run_times_page(all_chapters, times))


def write(name: str, text: str) -> None:
    (GENERATED / name).write_text(text, encoding="utf8", newline="\n")


def part_page(part: str, all_chapters: list[Chapter], all_systems: list[systems.System], seconds: dict) -> str:
    """The chapters that are there, each with its card and seconds, and the systems that the part covers."""
    lines = ["## Chapters", ""]
    here = [chapter for chapter in all_chapters if chapter.part == part]
    if not here:
        lines += ["None of the chapters of this part is written yet.", ""]
    for chapter in here:
        runs = f" It runs in {seconds[chapter.name]:.0f} seconds on one thread." if chapter.name in seconds else ""
        lines += [
            f"**{chapter.number} {chapter.link}**",
            f": You will build {chapter.card['You will build']}.{runs}",
            "",
        ]
    listed = [s for s in all_systems if str(s.part) == part[0] and s.depth != "foundation"]
    if part == "5b":
        lines += ["The systems of Parts 5a and 5b are listed together in the [map of the field](map.md).", ""]
    elif listed:
        done = sum(s.status == "done" for s in listed)
        lines += ["## Systems", "", f"{len(listed)} published systems belong here, {done} of them done:", ""]
        lines += [f"* {s.title}{'' if s.status == 'planned' else ' (done)'}" for s in listed]
        lines += ["", "The [map of the field](map.md) links each to what there is.", ""]
    return "\n".join(lines)


def map_table(all_systems: list[systems.System]) -> str:
    """The map: filters, and a row for each system. Without JavaScript it is simply the whole table."""

    def choice(name, values):
        options = "".join(f'<option value="{v}">{v}</option>' for v in values)
        menu = f'<select data-filter="{name.lower()}"><option value="">all</option>{options}</select>'
        return f"<label>{name} {menu}</label>"

    done = sum(s.status == "done" for s in all_systems)
    rows = "\n".join(map_row(s) for s in all_systems)
    return f"""<form class="map-filters" hidden>
{choice("Part", map(str, systems.PARTS))}
{choice("Depth", systems.DEPTHS)}
{choice("Status", systems.STATUSES)}
<label>Search <input type="search" data-filter="text" placeholder="title, claim, arXiv number"></label>
<output aria-live="polite">{len(all_systems)} systems</output>
</form>
<noscript><p>{len(all_systems)} systems.</p></noscript>
<p>{done} of them are done. All source files: <a href="../source/index.html">index</a>.</p>
<div class="map-scroll" role="region" aria-label="Map of the field" tabindex="0">
<table class="map-table">
<thead><tr><th scope="col">Part</th><th scope="col">System</th><th scope="col">Depth</th><th scope="col">Status</th>
<th scope="col">Where it stands, and what was measured</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
<script src="../_static/map.js" defer></script>
"""


def map_row(s: systems.System) -> str:
    papers = " ".join(f'<a href="{ARXIV}{number}">{number}</a>' for number in s.arxiv)
    where = ""
    if s.status == "done":
        notebook, _, section = s.notebook.partition("#")
        test, _, function = s.test.partition("::")
        links = {
            "chapter": f"../notebooks/{notebook}.html#{section}",
            "source": f"../source/{s.module}.html",
            "test": f"../source/{test}.html#{function.replace('::', '.')}",
        }
        name = html.escape(s.title.split(":")[0], quote=True)
        links = [f'<a href="{to}" aria-label="{what} of {name}">{what}</a>' for what, to in links.items()]
        where = f"{html.escape(s.claim)}<br>{' · '.join(links)}"
    return (
        f'<tr id="{s.id}" data-part="{s.part}" data-depth="{s.depth}" data-status="{s.status}"><td>{s.part}</td>'
        f"<td>{html.escape(s.title)}<br>{papers}</td><td>{s.depth}</td><td>{s.status}</td><td>{where}</td></tr>"
    )


def graph(all_chapters: list[Chapter]) -> str:
    """The chapters as a graph from top to bottom: a row holds what needs only the rows above it. And as a list.

    Three boxes are as wide as a page: more of them go on in the next row.
    """
    rows: list[list[Chapter]] = []
    row_of = {}
    for chapter in all_chapters:
        row = row_of[chapter.name] = 1 + max((row_of[need] for need in chapter.needs), default=-1)
        if row == len(rows):
            rows.append([])
        rows[row].append(chapter)
    rows = [row[i : i + 3] for row in rows for i in range(0, len(row), 3)]
    wide, high, gap_x, gap_y = 200, 58, 24, 52
    width = max(map(len, rows)) * (wide + gap_x) + gap_x
    place = {}
    for r, row in enumerate(rows):
        left = (width - len(row) * (wide + gap_x) + gap_x) / 2
        place |= {c.name: (left + i * (wide + gap_x), gap_y / 2 + r * (high + gap_y)) for i, c in enumerate(row)}
    edges, boxes = [], []
    for chapter in all_chapters:
        x, y = place[chapter.name]
        for need in chapter.needs:
            from_x, from_y = place[need]
            a, b, c, d = from_x + wide / 2, from_y + high, x + wide / 2, y
            middle = (b + d) / 2
            edges.append(f'<path d="M{a:.0f} {b:.0f} C{a:.0f} {middle:.0f} {c:.0f} {middle:.0f} {c:.0f} {d:.0f}"/>')
        lines = wrap(chapter.title, 26)
        words = "".join(
            f'<tspan x="{x + wide / 2:.0f}" dy="{15 if i else 0}">{html.escape(t)}</tspan>' for i, t in enumerate(lines)
        )
        boxes.append(
            f'<a href="../{chapter.page}"><rect x="{x:.0f}" y="{y:.0f}" width="{wide}" height="{high}" rx="8"/>'
            f'<text x="{x + wide / 2:.0f}" y="{y + 18:.0f}" class="number">{chapter.number}</text>'
            f'<text y="{y + 34:.0f}">{words}</text></a>'
        )
    number = {c.name: c.number for c in all_chapters}
    items = "\n".join(
        f'<li><a href="../{c.page}">{c.number} {html.escape(c.title)}</a>'
        + (f" needs {', '.join(number[need] for need in c.needs)}" if c.needs else " needs nothing before it")
        + "</li>"
        for c in all_chapters
    )
    height = len(rows) * (high + gap_y)
    return f"""<div class="graph-scroll" role="region" aria-label="Graph of chapters" tabindex="0">
<svg class="chapter-graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group"
 aria-label="Each chapter below those that it needs; the list says the same">
{"".join(edges)}
{"".join(boxes)}
</svg></div>
<ul>
{items}
</ul>
"""


def wrap(title: str, width: int) -> list[str]:
    """A title on at most two lines."""
    lines = [""]
    for word in title.split():
        if len(lines[-1]) + len(word) >= width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) <= 2 else [lines[0], lines[1][: width - 1] + "…"]


def run_times_page(all_chapters: list[Chapter], times: dict) -> str:
    """Seconds of each notebook, and the versions that this build saw."""
    lines = ["| chapter | seconds |", "| --- | ---: |"]
    for c in all_chapters:
        seconds = f"{times['seconds'][c.name]:.0f}" if c.name in times["seconds"] else "not measured"
        lines.append(f"| {c.number} {c.link} | {seconds} |")
    total = sum(times["seconds"].values())
    lines += ["", f"Together {total:.0f} seconds, measured on {times['machine']}, one thread per notebook."]
    lines += ["", "| package | version |", "| --- | --- |", f"| Python | {platform.python_version()} |"]
    for name in ("torch", "numpy", "matplotlib", "scikit-learn", "safetensors", "jupyter-book"):
        lines.append(f"| {name} | {importlib.metadata.version(name)} |")
    return "\n".join(lines) + "\n"


# Build


def build() -> list[str]:
    """Pages, site, check. Returns what is wrong with the site."""
    from minimal.site_check import problems

    write_pages()
    shutil.rmtree(SITE.parent, ignore_errors=True)  # an old page would keep an old table of contents
    command = ["jupyter-book", "build", ".", "--config", "book/_config.yml", "--toc", "book/_toc.yml"]
    command += ["--path-output", "book", "--warningiserror", "--keep-going", "--quiet"]
    program = Path(sys.executable).with_name(command[0])
    subprocess.run([program, *command[1:]], cwd=ROOT, check=True)
    return problems(SITE, expected())


def expected() -> list[str]:
    """The pages that must be there, and the figures (page.html#fig-name) that the notebooks name."""
    found = [f"book/{page.stem}.html" for page in BOOK.glob("*.md")]
    for chapter in chapters():
        script = (ROOT / "notebooks" / f"{chapter.name}.py").read_text(encoding="utf8")
        named = re.findall(r'^# %%.*"figure": \{.*"name": "(fig-[\w-]+)"', script, re.MULTILINE)
        found += [chapter.page, *(f"{chapter.page}#{name}" for name in named)]
    return found


def measure() -> None:
    """Run all notebooks, one after the other on one thread, and note the seconds."""
    from minimal import notebooks

    seconds = {}
    for chapter in chapters():
        script, started = ROOT / "notebooks" / f"{chapter.name}.py", time.perf_counter()
        notebooks.run(notebooks.read_script(script), script)
        seconds[chapter.name] = round(time.perf_counter() - started, 1)
        print(f"{chapter.name}: {seconds[chapter.name]} s", flush=True)
    machine = f"a machine with {os.cpu_count()} cores ({platform.machine()})"
    lines = [f'machine = "{machine}"', "", "[seconds]", *[f'"{name}" = {value}' for name, value in seconds.items()]]
    (BOOK / "run_times.toml").write_text("\n".join(lines) + "\n", encoding="utf8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minimal.book", description="Build the site, or time the notebooks."
    )
    parser.add_argument("command", nargs="?", choices=("build", "times"), default="build")
    if parser.parse_args(argv).command == "times":
        measure()
        return 0
    try:
        found = build()
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"the site was not built: {error}", file=sys.stderr)
        return 1
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{SITE.relative_to(ROOT)}/index.html: {f'{len(found)} problems' if found else 'in order'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
