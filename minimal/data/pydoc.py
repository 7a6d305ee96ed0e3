"""`pydoc`: English text without a download, the help topics that come with Python (`pydoc_data.topics`).

About 380,000 characters on how Python's statements and types work. Each Python version words them a little
differently, so the text itself cannot be frozen: `origin` names the version and the digest, and SHA256 lists the
versions that were measured. Frozen are the vocabulary (newline and printable ASCII, whatever the version) and
the split (by topic), so weights trained under one Python run under another and their test topics stay unseen.

The topics quote each other. A paragraph is kept where it first occurs, in the order test, validation, training.
"""

import hashlib
import platform

from minimal.data.frozen import check_split
from minimal.data.records import Text
from minimal.data.source import Source

VERSION = 1
VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
HELD_OUT = {
    "validation": ("async", "formatstrings", "import"),
    "test": ("comparisons", "debugger", "execmodel"),
}
LONG = 60  # characters: shorter paragraphs are headings and one-line examples, and may repeat
SHA256 = {
    "3.11.2": {
        "train": "b21c6e45f03e9bab502ff3b125fc82f20489ee7df3a33ee4228c4f2aa04a677c",
        "validation": "6cfffed3a30d0f8161df407ba1ec78214424d819f0635dfd40baafa5a1794fbf",
        "test": "3ec5b61c5670b9c2923cc850f9b9f880d7d51dfba7f0d7bfb7c1a634cb3abbd2",
    },
    "3.11.7": {
        "train": "1279521efe9f1c01704248a738a227af0a8ee672e8d8fc165c11a3e168ef1c79",
        "validation": "1cc9ec2dcfa72869716229422aa1f43574af9a46c13274fde668b4afee5d8613",
        "test": "454b0981abb3f1037a6b2c430139da1d8658e1fb369ef623f17c54608cd27459",
    },
    "3.12.1": {
        "train": "71ffc33899566449b20b37a9a3b91626069588bc457d45fad067978a44630fb1",
        "validation": "cdb334ebb1b80f6c8b88f275009e87d3779d4d7bbbcd070dcad3024deb16c6b8",
        "test": "6f174aaf9a7ca31bbf0fc8281dffb276dc10c09506e57b1de23ca2faa35dca52",
    },
    "3.13.0": {
        "train": "bc3e4beca4af1e417d9ee0d97bfd2b057aef3896a244a13064e0648d77f6244b",
        "validation": "d7281bbab554de0e50af2366fd19e1de854789ae970f079a2afe13b1bcc2d5ef",
        "test": "ccb47670293c249b5cf1bb19f02002fa379ab656d358afb954f6a96263323464",
    },
}
SOURCE = Source("pydoc", licence="PSF-2.0", origin="pydoc_data.topics, inside Python")
_PLAIN = str.maketrans(dict(zip("‘’“”–—", "''\"\"--", strict=True)) | {"…": "...", "°": " degrees", "ß": "ss"})


def split_topics(topics: dict[str, str]) -> dict[str, str]:
    """Topics -> the text of each split, every long paragraph once."""
    held_out = [name for part in HELD_OUT.values() for name in part]
    parts = {
        "test": HELD_OUT["test"],
        "validation": HELD_OUT["validation"],
        "train": sorted(topics.keys() - set(held_out)),
    }
    seen: set[str] = set()
    texts = {}
    for split, chosen in parts.items():
        kept = []
        for paragraph in (p for name in chosen for p in topics[name].translate(_PLAIN).split("\n\n")):
            words = " ".join(paragraph.split())
            if len(words) < LONG or words not in seen:
                kept.append(paragraph.strip("\n"))
                seen.add(words)
        text = "\n\n".join(kept) + "\n"
        texts[split] = "".join(character for character in text if character in VOCABULARY)
    return texts


def load(split: str = "train") -> Text:
    """A split of the help topics as text."""
    from pydoc_data.topics import topics

    check_split(split)
    text = split_topics(topics)[split]
    digest = hashlib.sha256(text.encode()).hexdigest()
    origin = f"Python {platform.python_version()}, sha256 {digest}"
    return Text(text, VOCABULARY, name="pydoc", split=split, origin=origin)
