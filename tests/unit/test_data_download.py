"""Downloads from a server on this machine: resumed, refused, broken off, changed on the way, malicious."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from robustmim.data import download as module
from robustmim.data.download import Remote, download, extract, fetch
from robustmim.errors import EnvironmentUnusable, InputError, RecipeError

CONTENT = bytes(range(256)) * 4000


class Site:
    """What the server holds, how it behaves, and what was asked of it."""

    def __init__(self) -> None:
        self.files = {"/file.bin": CONTENT}
        self.ranges = True
        self.break_after: int | None = None
        self.asked: list[str | None] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.asked.append(asked)
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
            if first and first >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            self.wfile.write(content[first:][: site.break_after])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def get(site: Site, path: Path, expected: str = md5(CONTENT)) -> Path:
    return fetch(f"{site.url}/file.bin", path, md5=expected, progress=False)


def tar(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_whole_file(site: Site, tmp_path: Path) -> None:
    assert get(site, tmp_path / "x").read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    get(site, tmp_path / "x")
    assert site.asked == [None]  # what is there is not fetched again


def test_half_a_file_is_resumed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT[:5000])
    assert get(site, tmp_path / "x").read_bytes() == CONTENT
    assert site.asked == ["bytes=5000-"]


def test_a_server_without_ranges(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    (tmp_path / "x.part").write_bytes(CONTENT[:5000])
    assert get(site, tmp_path / "x").read_bytes() == CONTENT


def test_a_part_that_was_complete(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT)
    assert get(site, tmp_path / "x").read_bytes() == CONTENT


def test_a_part_of_something_longer(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match="checksum"):
        get(site, tmp_path / "x")
    assert get(site, tmp_path / "x").read_bytes() == CONTENT


def test_a_broken_connection_keeps_what_came(site: Site, tmp_path: Path) -> None:
    site.break_after = 7000
    with pytest.raises(EnvironmentUnusable, match=rf"broke off after 7,000 of {len(CONTENT):,} bytes.*same again"):
        get(site, tmp_path / "x")
    site.break_after = None
    assert get(site, tmp_path / "x").read_bytes() == CONTENT
    assert site.asked == [None, "bytes=7000-"]


def test_a_wrong_checksum(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"is {md5(CONTENT)}, the published one is {md5(b'')}; it was deleted"):
        get(site, tmp_path / "x", md5(b""))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_and_a_missing_server(site: Site, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match=r"answers 404 .*put it at .*/x$"):
        fetch(f"{site.url}/other", tmp_path / "x", md5="", progress=False)
    with pytest.raises(EnvironmentUnusable, match="cannot be reached"):
        fetch("http://127.0.0.1:9/file", tmp_path / "x", md5="", progress=False)


@pytest.mark.parametrize(("file", "pack"), [("set.tar.gz", tar), ("set.zip", zipped)])
def test_a_set_is_unpacked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, file: str, pack
) -> None:
    content = pack({"folder/a.bin": b"a", "folder/deep/b.bin": b"b"})
    site.files[f"/{file}"] = content
    monkeypatch.setitem(module.SETS, "mine", (Remote(f"{site.url}/{file}", md5(content), "folder"),))
    root = tmp_path / "root"
    assert download("mine", root) == root
    assert (root / "folder" / "deep" / "b.bin").read_bytes() == b"b"
    assert [path.name for path in root.iterdir()] == ["folder"]  # neither the archive nor scratch folders stay
    assert capsys.readouterr().out == ""  # progress is for people: on stderr
    download("mine", root, progress=False)
    assert len(site.asked) == 1


def test_files_that_need_no_unpacking(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SETS, "mine", (Remote(f"{site.url}/file.bin", md5(CONTENT), "mine/file.bin"),))
    download("mine", tmp_path, progress=False)
    assert (tmp_path / "mine" / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../out", "folder/../../out", "/tmp/out", "..\\out", "C:out"])
@pytest.mark.parametrize(("file", "pack"), [("set.tar.gz", tar), ("set.zip", zipped)])
def test_an_archive_that_reaches_outside(tmp_path: Path, file: str, pack, name: str) -> None:
    (tmp_path / file).write_bytes(pack({"folder/a": b"a", name: b"b"}))
    with pytest.raises(InputError, match="outside its folder"):
        extract(tmp_path / file, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_an_archive_with_a_link(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(tar({"folder/a": b"a"}, link="folder/passwords"))
    with pytest.raises(InputError, match="'folder/passwords' is a link or a device"):
        extract(tmp_path / "set.tar.gz", tmp_path / "folder")


@pytest.mark.parametrize(("file", "pack"), [("set.tar.gz", tar), ("set.zip", zipped)])
def test_damaged_and_foreign_archives(tmp_path: Path, file: str, pack) -> None:
    content = pack({"folder/a": CONTENT})
    for damaged in (content[: len(content) // 2], b"nothing of the kind"):
        (tmp_path / file).write_bytes(damaged)
        with pytest.raises(InputError, match="archive is damaged"):
            extract(tmp_path / file, tmp_path / "folder")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match="holds no folder another"):
        extract(tmp_path / file, tmp_path / "another")


def test_imagenet_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match=r"licence.*image-net.org.*imagenet, as train/<wnid>"):
        download("imagenet", tmp_path)
    with pytest.raises(RecipeError, match="Did you mean 'cifar10'"):
        download("cifar-10", tmp_path)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnusable, match="cannot be written to"):
        download("svhn", tmp_path / "file", progress=False)
