"""Notebooks live twice: as a script (`NN_name.py`, edited, reviewed) and executed (`NN_name.ipynb`, read on the web).

    python -m minimal.notebooks sync [PATH ...]    from .py to .ipynb, the direction of every day: `make sync`
    python -m minimal.notebooks pull PATH ...      from .ipynb to .py: take over what was typed in Jupyter
    python -m minimal.notebooks check [PATH ...]   say what is wrong; the tests do the same

The script is in jupytext's percent format, without a header. File times do not show which of two files is newer, and
outputs can stand beside code that never made them. So `sync` goes one way only, runs the notebook from top to bottom,
and leaves in the .ipynb the hash of the script that it ran. By that hash it knows what is up to date, and an .ipynb
that was edited by hand, which it never overwrites unless told to. Agreement is proved by regenerating the script from
the .ipynb.

Notebooks run in their own folder with the kernel of this environment, progress bars off. What is stored is the same on
every machine as far as it can be: no time stamps, no Python version, cell ids made from the cell's text.
"""

import argparse
import copy
import difflib
import hashlib
import json
import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FORMAT = {"extension": ".py", "format_name": "percent"}
MAX_BYTES = 1_000_000
VOLATILE = set("execution ExecuteTime collapsed scrolled autoscroll trusted jupyter vscode editable".split())
LOCAL_PATH = re.compile(r"(?<![\w.:/])/(home|Users|root|tmp|private|work|opt|mnt|var|usr)/[\w.-]+|\b[A-Z]:\\+Users")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")


# Two forms of one notebook


def scripts(folder: Path = FOLDER) -> list[Path]:
    """The scripts of all notebooks, in order of reading. A notebook's name begins with a number."""
    return sorted(folder.glob("*/[0-9]*.py"))


def read_script(path: Path) -> NotebookNode:
    """The notebook that a percent script describes, without outputs."""
    notebook = jupytext.reads(path.read_text(encoding="utf8"), FORMAT)
    notebook.metadata = standard_metadata()
    seen = set()
    for cell in notebook.cells:
        cell.id = cell_id(cell, seen)
    return notebook


def to_script(notebook: NotebookNode) -> str:
    """The percent script that describes a notebook: cells, tags and cell metadata, and nothing else."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = {"jupytext": {"notebook_metadata_filter": "-all", "cell_metadata_filter": "all"}}
    for cell in notebook.cells:
        cell.metadata = lasting(cell.metadata)
    return jupytext.writes(notebook, FORMAT)


def lasting(metadata: dict) -> NotebookNode:
    """Metadata without what executing or viewing leaves in it; keys in order, as an .ipynb stores them."""
    kept = {key: value for key, value in metadata.items() if key not in VOLATILE}
    return nbformat.from_dict(json.loads(json.dumps(kept, sort_keys=True)))


def digest(notebook: NotebookNode) -> str:
    return hashlib.sha256(to_script(notebook).encode()).hexdigest()


def signature(notebook: NotebookNode) -> str | None:
    """The hash of the script that made the outputs, as `finish` left it."""
    return notebook.metadata.get("minimal", {}).get("source")


def standard_metadata() -> NotebookNode:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})


def cell_id(cell: NotebookNode, seen: set[str]) -> str:
    """An id from the cell's text, so that an unchanged cell keeps its id when others come and go."""
    base = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    name, n = base, 1
    while name in seen:
        name, n = f"{base}-{n}", n + 1
    seen.add(name)
    return name


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def runs(cell: NotebookNode) -> bool:
    """Whether executing the notebook executes this cell."""
    return cell.cell_type == "code" and bool(cell.source.strip()) and "skip-execution" not in tags(cell)


def code(notebook: NotebookNode) -> list[tuple[str, list[str]]]:
    return [(cell.source, tags(cell)) for cell in notebook.cells if cell.cell_type == "code"]


def executed(notebook: NotebookNode) -> bool:
    """Whether all cells were run once, in order, in a fresh kernel."""
    counts = [cell.execution_count for cell in notebook.cells if runs(cell)]
    return counts == list(range(1, len(counts) + 1))


def quote(path: Path) -> str:
    """A path as one types it."""
    return shlex.quote(str(path))


# Sync: .py -> .ipynb


def sync(script: Path, *, execute: bool = False, discard: bool = False) -> str:
    """Bring the .ipynb of `script` up to date; returns what was done. Raises ValueError when that would lose an edit.

    `execute` runs the notebook even if nothing changed (after a change in the package). `discard` drops what was typed
    in the .ipynb. A change of prose alone keeps the outputs and runs nothing.
    """
    path = script.with_suffix(".ipynb")
    new = read_script(script)
    if path.exists():
        old = nbformat.read(path, as_version=4)
        same, edited = to_script(old) == to_script(new), signature(old) != digest(old)
        if edited and not same and not discard:
            raise ValueError(
                f"{path} was edited by hand and {script.name} differs. Keep what was typed there:\n"
                f"    python -m minimal.notebooks pull {quote(path)}\nor drop it:\n"
                f"    python -m minimal.notebooks sync --discard {quote(script)}"
            )
        good = not edited and executed(old) and not execute
        if good and same:
            return "up to date"
        if good and code(old) == code(new):
            copy_outputs(old, new)
            finish(new, path)
            return "prose changed, outputs kept"
    start = time.perf_counter()
    run(new, script)
    finish(new, path)
    return f"executed in {time.perf_counter() - start:.0f} s"


def run(notebook: NotebookNode, script: Path) -> None:
    """Execute all cells in a fresh kernel, in the notebook's folder. ValueError quotes the cell that failed."""
    # progress bars are noise on a page, and one thread is what the tests run with
    environment = {**os.environ, "CI": "true", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    total = sum(runs(cell) for cell in notebook.cells)
    with tqdm(total=total, desc=script.stem, unit="cell", disable=not sys.stderr.isatty()) as bar:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(script.parent)}},
            on_cell_executed=lambda cell, **_: bar.update(runs(cell)),
        )
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the colours of a terminal
            raise ValueError(f"{script} does not run; its .ipynb is left as it was.\n{plain}") from error


def copy_outputs(old: NotebookNode, new: NotebookNode) -> None:
    cells = ([cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (old, new))
    for before, after in zip(*cells):
        after.outputs, after.execution_count = before.outputs, before.execution_count


def finish(notebook: NotebookNode, path: Path) -> None:
    """Strip what changes from run to run, sign with the hash of the script, and write."""
    notebook.metadata = standard_metadata()
    for cell in notebook.cells:
        cell.metadata = lasting(cell.metadata)
    notebook.metadata["minimal"] = {"source": digest(notebook)}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    partial = path.with_suffix(".partial")
    partial.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf8", newline="\n")
    os.replace(partial, path)


def pull(path: Path) -> str:
    """.ipynb -> .py: take over what was typed in Jupyter. Returns what to do next."""
    script = path.with_suffix(".py")
    script.write_text(to_script(nbformat.read(path, as_version=4)), encoding="utf8", newline="\n")
    return f"now as in {path.name}; `make sync` executes it"


# Check


def problems(script: Path) -> list[str]:
    """What is wrong with a pair of files; empty when all is well."""
    path = script.with_suffix(".ipynb")
    if not path.exists():
        return [f"{path.name} is missing; `make sync` makes it"]
    notebook = nbformat.read(path, as_version=4)
    return [*disagreement(script, notebook), *output_problems(notebook), *size_problem(path)]


def disagreement(script: Path, notebook: NotebookNode) -> list[str]:
    """Whether the script regenerated from the .ipynb is the script; the message shows what differs and the ways out."""
    path = script.with_suffix(".ipynb")
    ours, theirs = to_script(read_script(script)), to_script(notebook)
    if ours != theirs:
        diff = difflib.unified_diff(ours.splitlines(), theirs.splitlines(), script.name, path.name, n=2, lineterm="")
        return [
            f"{script.name} and {path.name} differ. Is the script right? `make sync`. Is the notebook right?\n"
            f"    python -m minimal.notebooks pull {quote(path)}\n"
            f"Was neither meant to change? git checkout -- {quote(script)} {quote(path)}\n" + "\n".join(diff)
        ]
    if signature(notebook) != digest(notebook):
        return [f"the outputs of {path.name} were made by another version of its code; `make sync` runs it again"]
    return []


def output_problems(notebook: NotebookNode) -> list[str]:
    """Outputs that are missing, or that no reader should see."""
    found = []
    if not executed(notebook):
        counts = [cell.execution_count for cell in notebook.cells if runs(cell)]
        found.append(f"cells were not all run once and in order, their counts are {counts}; `make sync` runs them")
    host = socket.gethostname()
    for n, cell in enumerate(notebook.cells):
        if "skip-execution" in tags(cell) and "nbval-skip" not in tags(cell):
            found.append(f"cell {n} is tagged skip-execution but not nbval-skip, so the tests would run it; set both")
        for output in cell.get("outputs", []):
            text = output_text(output)
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                found.append(f"cell {n} stopped with {output.ename}: {output.evalue}")
            elif output.get("name") == "stderr":
                found.append(f"cell {n} wrote to stderr, which readers see as a red box: {text.strip()[:200]}")
            for what, hit in (("a local path", LOCAL_PATH.search(text)), ("a memory address", ADDRESS.search(text))):
                if hit:
                    found.append(f"cell {n} shows {what}: {hit[0]}")
            if len(host) > 5 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
                found.append(f"cell {n} shows the name of this machine")
    return found


def output_text(output: NotebookNode) -> str:
    """All text of an output; pictures are left out."""
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def size_problem(path: Path) -> list[str]:
    size = path.stat().st_size
    return [f"{path.name} has {size:,} bytes, more than {MAX_BYTES:,}; make its pictures smaller"] * (size > MAX_BYTES)


# Command line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minimal.notebooks", description="Notebooks and their scripts.")
    parser.add_argument("command", choices=("sync", "pull", "check"))
    parser.add_argument("paths", nargs="*", type=Path, help="scripts or notebooks; all of them if none is given")
    parser.add_argument("--execute", action="store_true", help="sync: run even what has not changed")
    parser.add_argument("--discard", action="store_true", help="sync: drop what was typed in the .ipynb")
    args = parser.parse_args(argv)
    if args.command == "pull" and not args.paths:
        parser.error("pull needs the notebooks whose text should replace their scripts")
    failed = False
    chosen = [path.with_suffix(".py") for path in args.paths] or scripts()
    for n, script in enumerate(chosen, 1):
        try:
            if args.command == "sync":
                outcome = sync(script, execute=args.execute, discard=args.discard)
                found = output_problems(nbformat.read(script.with_suffix(".ipynb"), as_version=4))
            elif args.command == "pull":
                outcome, found = pull(script.with_suffix(".ipynb")), []
            else:
                found = problems(script)
                outcome = "not in order" if found else "in order"
        except (ValueError, OSError) as error:
            outcome, found = "failed", [str(error)]
        failed = failed or bool(found)
        print(f"[{n}/{len(chosen)}] {script.parent.name}/{script.stem}: {outcome}", *found, sep="\n  ", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
