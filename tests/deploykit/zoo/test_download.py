from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from deploykit.errors import DownloadError, UsageError
from deploykit.zoo import ZooEntry, download

DATA = random.Random(0).randbytes(1_000_000)


def test_a_file_is_fetched_once(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    seen: list[tuple[int, int | None]] = []
    file = download(entry, tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert file.read_bytes() == DATA
    assert [path.name for path in file.parent.iterdir()] == [entry.file_name]
    assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert download(entry, tmp_path / "new") == file
    assert len(server.requests) == 1


def test_a_broken_download_goes_on_where_it_ended(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    server.cut_after = 300_000
    for done in (300_000, 600_000, 900_000):
        with pytest.raises(DownloadError, match=f"ended after {done:,} of 1,000,000 bytes"):
            download(entry, tmp_path)
        assert (tmp_path / f"{entry.file_name}.part").stat().st_size == done
    assert download(entry, tmp_path).read_bytes() == DATA
    asked = [wanted for _, wanted in server.requests]
    assert asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_server_without_ranges_sends_all_again(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    (tmp_path / f"{entry.file_name}.part").write_bytes(b"x" * 1000)
    server.ranges = False
    assert download(entry, tmp_path).read_bytes() == DATA


def test_a_whole_partial_file_needs_only_its_name(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    (tmp_path / f"{entry.file_name}.part").write_bytes(DATA)
    assert download(entry, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("start", [b"", b"wrong", DATA + b"more"], ids=["new", "resumed", "longer"])
def test_another_content_is_refused_and_deleted(server, tmp_path: Path, start: bytes):
    entry = server.publish("model", DATA, "00000000" if not start else None)
    if start:
        (tmp_path / f"{entry.file_name}.part").write_bytes(start)
    with pytest.raises(DownloadError, match="is not what was published: its SHA-256 begins with"):
        download(entry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_in_the_cache_is_fetched_again(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    (tmp_path / entry.file_name).write_bytes(DATA[:-1] + b"?")
    assert download(entry, tmp_path).read_bytes() == DATA


def test_the_server_does_not_have_it(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    server.files.clear()
    with pytest.raises(DownloadError, match="the server answered 404"):
        download(entry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline(tmp_path: Path):
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    entry = ZooEntry("a", "a.py", f"http://127.0.0.1:{port}/a-00000000.pth", {}, "")
    with pytest.raises(DownloadError) as caught:
        download(entry, tmp_path)
    message = str(caught.value)
    assert f"put it at {tmp_path / 'a-00000000.pth'}" in message and "\n" not in message


def test_a_server_that_says_nothing(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a-00000000.pth"
        with pytest.raises(DownloadError, match="cannot be fetched"):
            download(ZooEntry("a", "a.py", address, {}, ""), tmp_path, timeout=0.2)


def test_redirects_to_other_schemes_are_not_followed(server, tmp_path: Path):
    entry = server.publish("model", DATA)
    (tmp_path / "secret").write_bytes(DATA)
    for place in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret"):
        server.redirect = place
        with pytest.raises(DownloadError):
            download(entry, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_mirror(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    local = server.publish("model", DATA)
    url = local.url.replace(server.address, "https://download.openmmlab.com")
    monkeypatch.setenv("DEPLOYKIT_ZOO_MIRROR", f"{server.address}/")
    published = ZooEntry("model", "model.py", url, {}, "")
    assert download(published, tmp_path).read_bytes() == DATA
    monkeypatch.setenv("DEPLOYKIT_ZOO_MIRROR", "/data")
    with pytest.raises(DownloadError, match="must be an http"):
        download(published, tmp_path / "other")


def test_a_folder_that_cannot_be_written(server, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        download(server.publish("model", DATA), tmp_path / "file")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/a-00000000.pth",
        "https://host/a.exe",
        "https://host/..pth",
        "https://host/%2e%2e%2fa-00000000.pth?/",
        "https://host/",
        "https:///a-00000000.pth",
        "a-00000000.pth",
        "https://host/a b.pth",
    ],
)
def test_addresses_that_are_none(url: str):
    if url.endswith("%2fa-00000000.pth?/"):  # a name never holds a folder
        assert ZooEntry("a", "a.py", url, {}, "").file_name == "a-00000000.pth"
        return
    with pytest.raises(UsageError):
        ZooEntry("a", "a.py", url, {}, "")
