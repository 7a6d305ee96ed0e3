"""Exercises in notebooks: how they are written, and how the tests prove that the check of each one can be trusted.

An exercise is four cells in a row, in the script:

    # %% [markdown]
    # ### Exercise 2: the residual (★★, 10 minutes)
    # What to write, and what it is good for.

    # %% tags=["exercise"]
    def residual(p, q):
        ...docstring: shapes...
        return None  # your code

    # %% tags=["exercise-check"]
    answer = residual(p, q)
    if answer is None:
        print("Hint: what p has more of than q is the positive part of p - q.")
    else:
        assert abs(answer.sum() - 1) < 1e-6, "a distribution sums to one: divide by the sum"
        print("Right: ...")

    # %% [markdown] tags=["exercise-solution"]
    # <details><summary>Hint</summary> ... </details>
    # <details><summary>Solution</summary> text, one python block that replaces the stub </details>
    # <details><summary>Wrong: forgets to divide</summary> text, one python block </details>

The folds are written with a blank line after `<summary>...</summary>` and before `</details>`, so that Markdown works
inside. The wrong answer is one that a reader may well give; its fold says why it fails. Whatever stub and check need
stands in earlier cells tagged `exercise-setup`. These, and only these, are run before them, so they hold imports and
small examples, no training. All of these cells are plain Python, without magics. `report` puts the stub, the solution
and the wrong answer in place: the stub gets a hint and no error, the solution passes and says so, the wrong answer
fails with an explanation.
"""

import contextlib
import io
import re
from dataclasses import dataclass

import torch
from nbformat import NotebookNode

FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    title: str
    setup: tuple[str, ...]  # sources of the cells that run first
    stub: str
    check: str
    solution: str
    wrong: str
    mistake: str  # the name of the wrong answer


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """All exercises of a notebook. ValueError names the cell that is not as the format wants it."""
    cells, found, setup, title = notebook.cells, [], [], ""
    for n, cell in enumerate(cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown" and (heading := re.search(r"^#+ (.+)", cell.source, re.MULTILINE)):
            title = heading[1]
        if "exercise-setup" in tags:
            setup.append(cell.source)
        if "exercise" in tags:
            for offset, tag in ((1, "exercise-check"), (2, "exercise-solution")):
                if n + offset >= len(cells) or tag not in cells[n + offset].metadata.get("tags", []):
                    raise ValueError(f"{title!r}: cell {n + offset} follows a stub and should be tagged {tag}")
            solution, wrong, mistake = folds(cells[n + 2].source, f"{title!r}, cell {n + 2}")
            found.append(Exercise(title, tuple(setup), cell.source, cells[n + 1].source, solution, wrong, mistake))
    checks = sum("exercise-check" in cell.metadata.get("tags", []) for cell in cells)
    if checks != len(found):
        raise ValueError(f"{checks} cells are tagged exercise-check, {len(found)} stubs are tagged exercise")
    return found


def folds(text: str, where: str) -> tuple[str, str, str]:
    """The solution, the wrong answer and its name, from the folded parts of a Markdown cell."""
    parts = {summary.strip(): body for summary, body in FOLD.findall(text)}
    kinds = [summary.split(":")[0] for summary in parts]
    if kinds != ["Hint", "Solution", "Wrong"]:
        raise ValueError(f"{where}: expected three folds, Hint, Solution and Wrong: MISTAKE; found {list(parts)}")
    hint, solution, wrong = parts
    for fold in (solution, wrong):
        if len(BLOCK.findall(parts[fold])) != 1:
            raise ValueError(f"{where}: the fold {fold!r} should hold one ```python block, on lines of its own")
    return BLOCK.findall(parts[solution])[0], BLOCK.findall(parts[wrong])[0], wrong.partition(":")[2].strip()


def attempt(exercise: Exercise, answer: str) -> str:
    """Run setup, `answer` and the check in a fresh namespace; returns what the check printed, raises what it raised."""
    namespace = {"__name__": "__main__"}
    with torch.enable_grad():  # restored afterwards, whatever a setup does to gradients
        for source in (*exercise.setup, answer):
            exec(compile(source, exercise.title, "exec"), namespace)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(exercise.check, exercise.title, "exec"), namespace)
    return printed.getvalue().strip()


def report(exercise: Exercise) -> list[str]:
    """What is wrong with an exercise; empty when stub, solution and wrong answer are treated as they should be."""
    found, hint = [], ""
    try:
        hint = attempt(exercise, exercise.stub)
        if not hint:
            found.append("the check prints no hint for the empty stub")
    except Exception as error:
        found.append(f"the check of the empty stub raised {error!r}; it should print a hint instead")
    try:
        praise = attempt(exercise, exercise.solution)
        if not praise or praise == hint:
            found.append(f"the check says {praise!r} to the solution; it should print that the answer is right")
    except Exception as error:
        found.append(f"the solution fails: {error!r}")
    try:
        said = attempt(exercise, exercise.wrong)
        found.append(f"the check lets the wrong answer pass ({exercise.mistake}) and says {said!r}")
    except AssertionError as error:
        if len(str(error)) < 10:
            found.append(f"the check refuses the wrong answer ({exercise.mistake}) without a word; give it a text")
    except Exception as error:
        found.append(f"the wrong answer ({exercise.mistake}) raised {error!r}; the check should explain by an assert")
    return found
