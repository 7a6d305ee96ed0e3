"""Records refuse what later parts could only fail on, and keep together what belongs together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimal.data.records import Images, Text


def some_images(n=4, **changes):
    fields = dict(images=torch.zeros(n, 1, 2, 2), labels=torch.arange(n) % 2, class_names=("a", "b"))
    fields["captions"] = ("x",) * n
    return Images(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(4, 2, 2)}, "N, C, H, W"),
        ({"images": torch.zeros(4, 1, 2, 2, dtype=torch.float64)}, "float32"),
        ({"images": torch.full((4, 1, 2, 2), 255.0)}, "scale them"),
        ({"images": torch.full((4, 1, 2, 2), float("nan"))}, "lie in"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"long \(4,\)"),
        ({"labels": torch.zeros(4)}, "float32"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "0..1"),
        ({"labels": torch.tensor([0, 1, -1, 0])}, "0..1"),
        ({"captions": ("x",)}, "captions has 1"),
        ({"attributes": {"x": torch.zeros(5)}}, "x has 5"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        some_images(**changes)


def test_a_selection_takes_everything_along():
    data = some_images(attributes={"place": torch.arange(4)}, captions=("p", "q", "r", "s"))
    for index in ([3, 1], torch.tensor([3, 1]), slice(1, 4), torch.tensor([True, False, False, True])):
        part = data.select(index)
        assert "".join(part.captions) == "".join("pqrs"[i] for i in part.attributes["place"])
        assert torch.equal(part.labels, part.attributes["place"] % 2)
        assert len(part) == len(part.captions) and part.image_shape == (1, 2, 2) and part.num_classes == 2


@given(st.text(alphabet="abc \n", max_size=50))
def test_text_becomes_tokens_and_text_again(text):
    record = Text(text, "\n abc")
    assert record.tokens.dtype == torch.long and len(record) == len(record.tokens)
    assert record.decode(record.tokens) == text


@given(st.text(min_size=1, max_size=20).filter(lambda text: set(text) - set("abc")))
def test_foreign_characters_and_tokens_are_named(text):
    record = Text("abc", "abc", name="letters")
    with pytest.raises(ValueError, match="not in the vocabulary of letters"):
        record.encode(text)
    with pytest.raises(ValueError, match="0..2"):
        record.decode([0, 3])
