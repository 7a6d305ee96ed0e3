"""Shakespeare: cut in two places, nothing lost."""

import hashlib

import pytest

from minimal.data import shakespeare
from minimal.data.frozen import SPLITS
from minimal.data.source import locate


def test_the_parts_make_up_the_whole():
    file = shakespeare.SOURCE.files[0]
    if not locate(file.path):
        pytest.skip("Shakespeare is not on this machine")
    parts = [shakespeare.load(split) for split in SPLITS]
    assert [len(part) for part in parts] == list(shakespeare.SIZES.values())
    whole = "".join(part.text for part in parts)
    assert f"sha256:{hashlib.sha256(whole.encode()).hexdigest()}" == file.digest
    assert parts[0].vocab_size == 65 and {part.vocabulary for part in parts} == {parts[0].vocabulary}


def test_a_missing_text_points_to_the_embedded_one(cache, monkeypatch):
    def no_network(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("minimal.data.download.urlopen", no_network)
    with pytest.raises(ValueError, match="no network.*tinyshakespeare.txt.*'pydoc'"):
        shakespeare.load()
