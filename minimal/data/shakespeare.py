"""`shakespeare`: 1.1 million characters of Shakespeare's plays, the usual text of character-level models.

Downloaded on first use. One token per character, 65 of them. The text is cut in two places: the first 90 per cent
are for training, the next 5 for validation, the last 5 for the test (a play that starts in one may end in the next).
"""

from minimal.data.download import read
from minimal.data.frozen import check_split
from minimal.data.records import Text
from minimal.data.source import File, Source

VERSION = 1
SIZES = {"train": 1_003_854, "validation": 55_770, "test": 55_770}
SOURCE = Source(
    "shakespeare",
    licence="public domain",
    origin="https://github.com/karpathy/char-rnn",
    files=(
        File(
            "tinyshakespeare.txt",
            ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            1_115_394,
        ),
    ),
    instead="pydoc",
)


def load(split: str = "train") -> Text:
    """A split of the text; the vocabulary is that of the whole."""
    check_split(split)
    text = read(SOURCE.files[0], SOURCE).decode("ascii")
    first, second = SIZES["train"], SIZES["train"] + SIZES["validation"]
    part = {"train": text[:first], "validation": text[first:second], "test": text[second:]}[split]
    return Text(part, "".join(sorted(set(text))), name="shakespeare", split=split)
