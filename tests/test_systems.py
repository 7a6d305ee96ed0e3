"""The map of the field is well formed, and what it calls done exists."""

from pathlib import Path

import pytest

from minimal import systems

ROOT = Path(__file__).parents[1]

ENTRY = """
[var]
title = "Visual Autoregressive Modeling"
arxiv = ["2404.02905"]
part = 2
depth = "core"
status = "planned"
"""
DONE = (
    ENTRY.replace('"planned"', '"done"')
    + """
notebook = "2_autoregressive/03_next_scale#the-pyramid"
module = "minimal/ar/scale.py"
test = "tests/ar/test_scale.py::test_a_scale_sees_no_finer_one"
claim = "20 times fewer forwards than raster order"
"""
)

SCRIPT = """# %% [markdown]
# # Scales
# ## The pyramid!

# %%
# # No heading
"""


def load(tmp_path, text):
    path = tmp_path / "systems.toml"
    path.write_text(text, encoding="utf8")
    return systems.load(path)


# The real map


def test_every_done_system_has_its_notebook_section_module_and_test():
    found = systems.broken(systems.load(), ROOT)
    assert not found, "\n".join(found)


def test_the_map_covers_all_parts_and_no_paper_twice():
    entries = systems.load()
    assert {s.part for s in entries} >= set(range(1, 9))
    numbers = [number for s in entries for number in s.arxiv]
    assert len(numbers) == len(set(numbers))


# The tools


@pytest.fixture
def repository(tmp_path):
    """A repository in which the entry DONE is true."""
    files = {
        "notebooks/2_autoregressive/03_next_scale.py": SCRIPT,
        "minimal/ar/scale.py": "",
        "tests/ar/test_scale.py": "def test_a_scale_sees_no_finer_one(): ...\n\n\ndef helper(): ...\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf8")
    return tmp_path


def test_a_true_entry_is_accepted(repository):
    (system,) = load(repository, DONE)
    assert (system.id, system.arxiv, system.status) == ("var", ("2404.02905",), "done")
    assert systems.broken([system], repository) == []


@pytest.mark.parametrize("old, new, said", [
    ("03_next_scale", "04_next_scale", "there is no notebooks/2_autoregressive/04_next_scale.py"),
    ("#the-pyramid", "#the-cone", "no heading #the-cone; it has #scales, #the-pyramid"),
    ("#the-pyramid", "", "no heading #"),
    ("#the-pyramid", "#no-heading", "no heading #no-heading"),  # a comment in a code cell
    ("ar/scale.py", "ar/pyramid.py", "there is no minimal/ar/pyramid.py"),
    ("test_scale.py", "test_pyramid.py", "there is no tests/ar/test_pyramid.py"),
    ("test_a_scale", "test_the_scale", "has no test_the_scale"),
    ("::test_a_scale_sees_no_finer_one", "", "has no test after ::"),
    ("::test_a_scale_sees_no_finer_one", "::helper", "has no helper"),
])  # fmt: skip
def test_a_done_entry_that_names_what_does_not_exist_is_refused(repository, old, new, said):
    assert old in DONE
    (found,) = systems.broken(load(repository, DONE.replace(old, new)), repository)
    assert said in found and found.startswith("[var]")


def test_a_planned_entry_may_name_what_will_come(repository):
    assert systems.broken(load(repository, DONE.replace("done", "planned").replace("scale", "cone")), repository) == []


@pytest.mark.parametrize("old, new, said", [
    ("part = 2", "part = 9", "part is 9, expected 0 to 8"),
    ("part = 2", 'part = "2"', "part is '2', expected int"),
    ("part = 2", "part = true", "part is True"),
    ("part = 2\n", "", "part is missing"),
    ('"core"', '"deep"', "depth is 'deep'"),
    ('"planned"', '"finished"', "status is 'finished', expected one of planned, done"),
    ('"planned"', '"done"', "notebook, module, test, claim is empty"),
    ("2404.02905", "arXiv:2404.02905", "expected a number like 2404.02905"),
    ('["2404.02905"]', '"2404.02905"', "expected list"),
    ("depth =", "dept =", "unknown field dept"),
    ("[var]", "[var", "not valid TOML"),
    ("[var]", "", "outside of any entry"),
])  # fmt: skip
def test_a_malformed_entry_is_refused_by_name(tmp_path, old, new, said):
    assert old in ENTRY
    with pytest.raises(ValueError, match=r"systems\.toml") as error:
        load(tmp_path, ENTRY.replace(old, new))
    assert said in str(error.value)


@pytest.mark.parametrize("heading, anchor", [
    ("Speculative sampling", "speculative-sampling"),
    ("Guess, check: *k* tokens at once?", "guess-check-k-tokens-at-once"),
    ("FM / rectified flow", "fm--rectified-flow"),
    ("AR-Diffusion and VA-π", "ar-diffusion-and-va-π"),
])  # fmt: skip
def test_anchors_are_spelled_as_on_the_site(heading, anchor):
    assert systems.slug(heading) == anchor


def test_the_table_has_one_line_per_system_and_fits(tmp_path):
    entries = systems.load()
    assert len(systems.table(entries).splitlines()) == len(entries) + 3
    assert max(map(len, systems.table(entries, 80).splitlines())) == 80
