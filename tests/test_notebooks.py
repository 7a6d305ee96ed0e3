"""Every notebook agrees with its script, shows its outputs and has sound exercises; and the tools that say so work."""

import shutil
import subprocess
import sys

import nbformat
import pytest
import torch

from minimal import exercises, notebooks
from minimal.notebooks import problems, read_script, sync, to_script

SCRIPTS = notebooks.scripts()
EXERCISES = [(script, exercise) for script in SCRIPTS for exercise in exercises.exercises(read_script(script))]


def name(value):
    return value.stem if hasattr(value, "stem") else value.title


# The notebooks of the course


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_script_and_executed_notebook_agree(script):
    if found := problems(script):
        pytest.fail("\n".join(found), pytrace=False)


def test_no_notebook_is_without_its_script():
    alone = [path.name for path in notebooks.FOLDER.glob("*/*.ipynb") if path.with_suffix(".py") not in SCRIPTS]
    assert not alone, f"{alone} have no script; write it by `python -m minimal.notebooks pull PATH`"


@pytest.mark.parametrize("script, exercise", EXERCISES, ids=name)
def test_exercise_hints_accepts_the_solution_and_refuses_the_wrong_answer(script, exercise, monkeypatch):
    monkeypatch.chdir(script.parent)
    if found := exercises.report(exercise):
        pytest.fail("\n".join(found), pytrace=False)


# The tools, on a notebook small enough to read

SCRIPT = '''# %% [markdown]
# # Halves
#
# A notebook about $x / 2$.

# %% tags=["exercise-setup"]
numbers = [2, 4, 6]

# %% METADATA
print(sum(numbers))

# %% [markdown]
# ## Exercise 1: one half (★, 1 minute)

# %% tags=["exercise"]
def half(x):
    """Half of a number."""
    return None  # your code


# %% tags=["exercise-check"]
answer = [half(x) for x in numbers]
if answer[0] is None:
    print("Hint: what times two is x?")
else:
    assert answer == [1, 2, 3], f"half of {numbers} is [1, 2, 3], not {answer}"
    print("Right.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Divide.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def half(x):
#     return x / 2
# ```
#
# </details>
# <details><summary>Wrong: doubles</summary>
#
# ```python
# def half(x):
#     return x * 2
# ```
#
# </details>
'''
METADATA = 'tags=["nbval-check-output"] mystnb={"image": {"alt": "3"}, "figure": {"name": "sum"}}'
SCRIPT = SCRIPT.replace("METADATA", METADATA)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A pair of files as `sync` leaves them."""
    script = tmp_path_factory.mktemp("part one") / "01_halves.py"
    script.write_text(SCRIPT, encoding="utf8")
    assert sync(script).startswith("executed")
    return script


@pytest.fixture
def pair(executed, tmp_path):
    """A copy of that pair, to be spoiled."""
    for file in (executed, executed.with_suffix(".ipynb")):
        shutil.copy(file, tmp_path)
    return tmp_path / executed.name


def edit(script, change):
    """Change the executed notebook of a pair, as Jupyter would."""
    path = script.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)


def no_kernel(*_):
    raise AssertionError("nothing should be executed here")


def test_a_synced_pair_is_in_order_and_not_run_again(pair, monkeypatch):
    monkeypatch.setattr(notebooks, "run", no_kernel)
    assert problems(pair) == []
    assert sync(pair) == "up to date"


def test_both_forms_give_one_script_whatever_the_order_of_metadata(pair):
    in_order = 'mystnb={"figure": {"name": "sum"}, "image": {"alt": "3"}} tags=["nbval-check-output"]'
    ordered = SCRIPT.replace(METADATA, in_order)
    assert to_script(read_script(pair)) == ordered
    assert to_script(nbformat.read(pair.with_suffix(".ipynb"), as_version=4)) == ordered


@pytest.mark.slow
def test_a_synced_notebook_holds_nothing_that_changes_from_run_to_run(pair):
    path = pair.with_suffix(".ipynb")
    before = path.read_bytes()
    sync(pair, execute=True)
    assert path.read_bytes() == before
    assert b"timestamp" not in before and b'"execution"' not in before and b'"version"' not in before


def test_prose_is_updated_without_running_anything(pair, monkeypatch):
    monkeypatch.setattr(notebooks, "run", no_kernel)
    pair.write_text(SCRIPT.replace("A notebook about", "All about"), encoding="utf8")
    assert "differ" in problems(pair)[0]
    assert sync(pair) == "prose changed, outputs kept"
    assert problems(pair) == []


@pytest.mark.slow
def test_notebooks_run_in_their_folder_without_progress_bars(pair):
    pair.write_text("# %%\nimport os\nprint(os.path.exists('01_halves.py'), os.environ['TQDM_DISABLE'])\n")
    sync(pair)
    assert nbformat.read(pair.with_suffix(".ipynb"), as_version=4).cells[0].outputs[0].text == "True 1\n"


@pytest.mark.slow
def test_changed_code_is_run_again(pair):
    pair.write_text(SCRIPT.replace("sum(numbers)", "max(numbers)"), encoding="utf8")
    sync(pair)
    assert problems(pair) == []
    assert nbformat.read(pair.with_suffix(".ipynb"), as_version=4).cells[2].outputs[0].text == "6\n"


@pytest.mark.slow
def test_text_typed_in_jupyter_is_never_overwritten_silently(pair):
    edit(pair, lambda cells: cells[0].update(source="# Typed in Jupyter"))
    message = problems(pair)[0]
    assert "+# # Typed in Jupyter" in message and "-# # Halves" in message and "pull" in message
    with pytest.raises(ValueError, match="edited by hand"):
        sync(pair)
    notebooks.pull(pair.with_suffix(".ipynb"))
    assert "# # Typed in Jupyter" in pair.read_text(encoding="utf8")
    assert "outputs" in problems(pair)[0]  # they were made by what stood there before
    assert sync(pair).startswith("executed")
    assert problems(pair) == []


@pytest.mark.slow
def test_what_was_typed_in_jupyter_can_be_dropped(pair):
    edit(pair, lambda cells: cells[0].update(source="# Typed in Jupyter"))
    sync(pair, discard=True)
    assert problems(pair) == []


def test_a_missing_notebook_is_reported(pair):
    pair.with_suffix(".ipynb").unlink()
    assert "make sync" in problems(pair)[0]


@pytest.mark.parametrize("change, said", [
    (lambda cell: cell.update(outputs=[], execution_count=None), "were not all run"),
    (lambda cell: cell.update(execution_count=7), "were not all run"),
    (lambda cell: cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="UserWarning")), "stderr"),
    (lambda cell: cell.outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="")), "stopped with"),
    (lambda cell: cell.outputs[0].update(text="see /home/ada/minimal"), "a local path: /home/ada"),
    (lambda cell: cell.outputs[0].update(text="<object at 0x7f1234567890>"), "a memory address"),
    (lambda cell: cell.outputs[0].update(text="x" * 1_000_001), "bytes"),
    (lambda cell: cell.metadata.update(tags=["skip-execution"]), "nbval-skip"),
])  # fmt: skip
def test_outputs_that_no_reader_should_see_are_refused(pair, change, said):
    edit(pair, lambda cells: change(cells[2]))
    assert any(said in problem for problem in problems(pair))


@pytest.mark.slow
def test_a_notebook_that_fails_leaves_the_old_one_and_names_the_error(pair):
    path = pair.with_suffix(".ipynb")
    before = path.read_bytes()
    pair.write_text(SCRIPT.replace("sum(numbers)", "numbers / 2"), encoding="utf8")
    with pytest.raises(ValueError, match="TypeError: unsupported operand"):
        sync(pair)
    assert path.read_bytes() == before


def test_the_command_line_reports_by_its_exit_code(pair, capsys):
    assert notebooks.main(["check", str(pair)]) == 0
    assert "in order" in capsys.readouterr().out
    edit(pair, lambda cells: cells[2].update(outputs=[], execution_count=None))
    assert notebooks.main(["check", str(pair.with_suffix(".ipynb"))]) == 1


# Exercises


def only_exercise(text):
    (exercise,) = exercises.exercises(read_from(text))
    return exercise


def read_from(text):
    return notebooks.jupytext.reads(text, notebooks.FORMAT)


def test_a_sound_exercise_has_nothing_to_report():
    exercise = only_exercise(SCRIPT)
    assert (exercise.title, exercise.mistake) == ("Exercise 1: one half (★, 1 minute)", "doubles")
    assert exercises.report(exercise) == []


@pytest.mark.parametrize("old, new, said", [
    ("if answer[0] is None:", "if False:", "empty stub raised"),
    ('print("Hint: what times two is x?")', "pass", "no hint"),
    ("return x / 2", "return x // 3", "the solution fails"),
    ("return x / 2", "return None", "to the solution"),
    ("return x * 2", "return x * 0.5", "lets the wrong answer pass (doubles)"),
    ("return x * 2", "return y", "should explain by an assert"),
    (', f"half of {numbers} is [1, 2, 3], not {answer}"', "", "without a word"),
    ('print("Right.")', "pass", "to the solution"),
])  # fmt: skip
def test_an_unsound_exercise_is_reported(old, new, said):
    assert old in SCRIPT
    assert any(said in problem for problem in exercises.report(only_exercise(SCRIPT.replace(old, new))))


@pytest.mark.parametrize("old, new, said", [
    ('tags=["exercise-check"]', "", "should be tagged exercise-check"),
    ('tags=["exercise"]', "", "1 cells are tagged exercise-check, 0 stubs"),
    ("Wrong: doubles", "Answer", "expected three folds"),
    ("# ```python\n# def half(x):\n#     return x * 2\n# ```", "# Double it.", "one ```python block"),
])  # fmt: skip
def test_an_exercise_in_another_format_is_refused(old, new, said):
    assert old in SCRIPT
    with pytest.raises(ValueError, match=said):
        exercises.exercises(read_from(SCRIPT.replace(old, new)))


def test_only_setup_cells_run_before_an_exercise():
    slow = SCRIPT.replace("print(sum(numbers))", "raise RuntimeError('a long training')")
    assert exercises.report(only_exercise(slow)) == []


def test_a_setup_that_switches_gradients_off_does_so_for_its_exercise_only():
    setup = '# %% tags=["exercise-setup"]\n'
    assert setup in SCRIPT
    switched = SCRIPT.replace(setup, setup + "import torch\n\ntorch.set_grad_enabled(False)\n", 1)
    assert exercises.report(only_exercise(switched)) == [] and torch.is_grad_enabled()


# The tests of notebooks


@pytest.mark.slow
def test_only_a_strict_notebook_has_all_its_outputs_compared(tmp_path):
    """All three notebooks store a wrong output: lax passes, a strict notebook and a tagged cell do not."""
    shutil.copy(notebooks.FOLDER / "conftest.py", tmp_path)
    for name, card, cell in (("lax", [], []), ("strict", ["strict"], []), ("tagged", [], ["nbval-check-output"])):
        code = nbformat.v4.new_code_cell("print(2)", metadata={"tags": cell}, execution_count=1)
        code.outputs = [nbformat.v4.new_output("stream", name="stdout", text="1\n")]
        cells = [nbformat.v4.new_markdown_cell("# Card", metadata={"tags": card}), code]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    command = "-m pytest --nbval-lax --nbval-current-env -rA -p no:cacheprovider .".split()
    said = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True).stdout
    assert {line.split(".ipynb")[0] for line in said.splitlines() if line.startswith(("PASSED", "FAILED"))} == {
        "PASSED lax",
        "FAILED strict",
        "FAILED tagged",
    }, said
