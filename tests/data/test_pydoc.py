"""Python's help as text: one vocabulary for all versions, no paragraph in two splits."""

import platform

import pytest

from minimal.data import pydoc
from minimal.data.frozen import SPLITS


def test_no_long_paragraph_is_in_two_places():
    seen = []
    for split in SPLITS:
        paragraphs = (" ".join(p.split()) for p in pydoc.load(split).text.split("\n\n"))
        seen += [p for p in paragraphs if len(p) >= pydoc.LONG]
    assert len(seen) > 1000 and len(set(seen)) == len(seen)


def test_the_vocabulary_is_the_same_for_every_text():
    topics = {name: "‘quoted’ … 20° – ß \u4e2d" for names in pydoc.HELD_OUT.values() for name in names} | {"if": "x"}
    texts = pydoc.split_topics(topics)
    assert texts["test"].startswith("'quoted' ... 20 degrees - ss ") and texts["train"] == "x\n"
    assert not set("".join(texts.values())) - set(pydoc.VOCABULARY) and len(pydoc.VOCABULARY) == 96


def test_a_paragraph_belongs_to_the_held_out_topic_that_quotes_it():
    long = "word " * 30
    names = [*pydoc.HELD_OUT["validation"], *pydoc.HELD_OUT["test"], "if"]
    topics = {name: "heading\n\n" + long for name in names}
    texts = pydoc.split_topics(topics)
    assert [split for split, text in texts.items() if long.strip() in text] == ["test"]
    assert texts["train"] == "heading\n"


@pytest.mark.parametrize("split", SPLITS)
def test_the_text_of_a_measured_python_is_the_measured_one(split):
    data = pydoc.load(split)
    version = platform.python_version()
    assert data.origin.startswith(f"Python {version}, sha256 ")
    if version not in pydoc.SHA256:
        pytest.skip(f"the text of Python {version} was not measured")
    assert data.origin.endswith(pydoc.SHA256[version][split])
