"""Downloads: whole or not at all, whatever the network and the disk do."""

import gzip
import hashlib
import shutil
import threading

import pytest

from minimal.data import download, source
from minimal.data.download import checked, read
from minimal.data.source import File, Source, cache_folder, data_folders, row

CONTENT = bytes(range(256)) * 1000


def file_at(*urls: str, content: bytes = CONTENT, gunzip: bool = False, **options) -> File:
    return File("set/file.bin", urls, f"md5:{hashlib.md5(content).hexdigest()}", len(content), gunzip, **options)


def source_of(file: File) -> Source:
    return Source("example", licence="none", origin="a test", files=(file,), instead="digits")


def get(file: File) -> bytes:
    return read(file, source_of(file))


def test_a_download_is_whole_leaves_no_part_and_happens_once(cache, serve):
    server = serve(CONTENT)
    file = file_at(server.url)
    assert get(file) == get(file) == CONTENT
    assert {p.name for p in cache.rglob("*") if p.is_file()} == {"file.bin", "file.bin.lock"}
    assert len(server.requests) == 1


def test_a_broken_transfer_goes_on_where_it_stopped(cache, serve):
    server = serve(CONTENT)
    server.fault = "cut"
    file = file_at(server.url)
    with pytest.raises(ValueError, match="closed after 128,000 of 256,000 bytes"):
        get(file)
    assert (cache / "set/file.bin.part").stat().st_size == 128_000
    assert not (cache / "set/file.bin").exists()
    assert get(file) == CONTENT
    assert server.requests == [None, "bytes=128000-"]


def test_a_server_without_ranges_sends_everything_again(cache, serve):
    server = serve(CONTENT)
    server.fault = "no range"
    (cache / "set").mkdir(parents=True)
    (cache / "set/file.bin.part").write_bytes(b"x" * 300_000)  # longer than the file, and wrong
    assert get(file_at(server.url)) == CONTENT


def test_a_part_that_lacks_only_its_name_is_not_fetched_again(cache, serve):
    server = serve(CONTENT)
    (cache / "set").mkdir(parents=True)
    (cache / "set/file.bin.part").write_bytes(CONTENT)
    assert get(file_at(server.url)) == CONTENT
    assert server.requests == ["bytes=256000-"]


def test_a_part_longer_than_the_file_is_started_over(cache, serve):
    server = serve(CONTENT)
    (cache / "set").mkdir(parents=True)
    (cache / "set/file.bin.part").write_bytes(CONTENT + b"more")
    assert get(file_at(server.url)) == CONTENT


def test_an_answer_for_other_bytes_is_refused(cache, serve):
    server = serve(CONTENT)
    server.fault = "wrong range"
    (cache / "set").mkdir(parents=True)
    (cache / "set/file.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError, match="another range"):
        get(file_at(server.url))


def test_the_second_address_serves_when_the_first_does_not(cache, serve):
    broken, sound = serve(CONTENT), serve(CONTENT)
    broken.fault = "missing"
    assert get(file_at(broken.url, sound.url)) == CONTENT


def test_wrong_content_is_thrown_away_and_never_loaded(cache, serve):
    server = serve(CONTENT[:-1] + b"!")
    with pytest.raises(ValueError, match="thrown away.*damaged"):
        get(file_at(server.url))
    assert not [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_without_a_network_the_error_says_what_to_do(cache):
    url = "http://127.0.0.1:9/file"  # nobody listens on the discard port
    with pytest.raises(ValueError) as error:
        get(file_at(url))
    for needed in (url, str(cache / "set/file.bin"), "MINIMAL_DATA", "'digits'", "example"):
        assert needed in str(error.value)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
@pytest.mark.parametrize("gunzip", [False, True])
def test_a_damaged_file_is_reported_by_name(tmp_path, damage, gunzip):
    raw = gzip.compress(CONTENT) if gunzip else CONTENT
    middle = len(raw) // 2
    flipped = raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
    path = tmp_path / "file.bin"
    path.write_bytes({"flip": flipped, "cut": raw[:-20], "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        checked(path, file_at(gunzip=gunzip))


def test_the_wrapper_may_differ_when_the_digest_is_of_the_content(tmp_path):
    path = tmp_path / "file.bin"
    for level in (1, 9):
        path.write_bytes(gzip.compress(CONTENT, level))
        assert checked(path, file_at(gunzip=True)) == CONTENT


def test_a_gzip_bomb_is_not_unpacked_beyond_the_expected_size(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(gzip.compress(bytes(5_000_000)))
    with pytest.raises(ValueError, match="expected 256,000 bytes.*got 256,001"):
        checked(path, file_at(gunzip=True))


def test_no_permission_for_the_cache_is_said_clearly(tmp_path, monkeypatch, cache):
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("MINIMAL_CACHE", str(tmp_path / "a file"))
    with pytest.raises(ValueError, match="cannot write to the cache folder.*MINIMAL_CACHE"):
        get(file_at("http://127.0.0.1:9/file"))


def test_no_room_on_the_disk_is_said_before_a_byte_is_fetched(cache, serve, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ValueError, match="256,000 bytes are needed and 10 are free"):
        get(file_at(serve(CONTENT).url))


def test_a_disk_that_fills_up_meanwhile_is_not_taken_for_the_network(cache, serve, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(ValueError, match="cannot write to the cache folder.*No space left"):
        get(file_at(serve(CONTENT).url))


def test_four_that_want_the_same_file_at_once_all_get_it_from_one_transfer(cache, serve):
    server, answers = serve(CONTENT), []
    file = file_at(server.url)
    threads = [threading.Thread(target=lambda: answers.append(get(file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [CONTENT] * 4
    assert len(server.requests) == 1  # one fetched, three waited


def test_the_chosen_folder_comes_before_the_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMAL_DATA", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="not a folder"):
        data_folders()
    for folder in (tmp_path / "mine", cache):
        (folder / "set").mkdir(parents=True)
        (folder / "set/file.bin").write_bytes(CONTENT)
    assert data_folders() == [tmp_path / "mine", cache]
    assert source.locate("set/file.bin") == tmp_path / "mine/set/file.bin"
    (tmp_path / "mine/set/file.bin").unlink()
    assert source.locate("set/file.bin") == cache / "set/file.bin"


def test_a_row_says_what_is_missing_and_takes_the_stand_in(cache):
    file = file_at("http://nowhere")
    assert row(source_of(file)).missing == "set/file.bin"
    stand_in = Source("example", "none", "a test", files=(file,), stand_in="other.zip")
    assert row(stand_in).where == ""
    cache.mkdir()
    (cache / "other.zip").touch()
    assert (row(stand_in).where, row(stand_in).missing) == (str(cache / "other.zip"), "")


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_outside_a_checkout_the_cache_belongs_to_the_user(monkeypatch, tmp_path, platform):
    monkeypatch.delenv("MINIMAL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(source.sys, "platform", platform)
    monkeypatch.setattr(source, "__file__", str(tmp_path / "site-packages/minimal/data/source.py"))
    assert "minimal" in cache_folder().parts and "site-packages" not in cache_folder().parts
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/pyproject.toml").touch()
    assert cache_folder() == tmp_path / "site-packages/data/cache"
