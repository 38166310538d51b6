"""Fetch data sets from their authors' sites: resumable, checked against the published MD5, unpacked without surprises."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from robustmim.data.sources import default_root
from robustmim.errors import EnvironmentUnusable, InputError, RecipeError, suggest

_CHUNK = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """A published file. `target` is what it becomes under the root: itself, or the folder its archive holds."""

    url: str
    md5: str
    target: str

    @property
    def file(self) -> str:
        """The file's name at its site."""
        return self.url.rsplit("/", 1)[1]

    @property
    def is_archive(self) -> bool:
        """Whether it must be unpacked."""
        return self.file.endswith((".tar.gz", ".zip"))


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_HOUSE_NUMBERS = "http://ufldl.stanford.edu/housenumbers"
SETS: dict[str, tuple[Remote, ...]] = {
    "cifar10": (
        Remote(f"{_TORONTO}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
    ),
    "cifar100": (
        Remote(f"{_TORONTO}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
    ),
    "svhn": (
        Remote(f"{_HOUSE_NUMBERS}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", "svhn/train_32x32.mat"),
        Remote(f"{_HOUSE_NUMBERS}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", "svhn/test_32x32.mat"),
    ),
    "svhn-extra": (
        Remote(f"{_HOUSE_NUMBERS}/extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7", "svhn/extra_32x32.mat"),
    ),
    "tiny-imagenet": (
        Remote(
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
        ),
    ),
}
"""What can be fetched: the official files and their published checksums."""


def download(name: str, root: Path | None = None, *, progress: bool = True) -> Path:
    """Fetch a data set and unpack it into the form that `robustmim.data.sources.load` reads.

    A broken transfer leaves a `.part` file, from which the next call goes on. What is there already is not fetched again.

    Args:
        name: cifar10, cifar100, svhn, svhn-extra or tiny-imagenet.
        root: the folder that holds the data sets; default: `robustmim.data.sources.default_root()`.
        progress: show a bar on stderr.

    Returns:
        The root.

    Raises:
        RecipeError: no such name.
        EnvironmentUnusable: a set that may not be fetched freely, a site that cannot be reached, a disk that is full.
        InputError: bytes that are not the published ones.
    """
    root = root or default_root()
    if name == "imagenet":
        raise EnvironmentUnusable(
            f"ImageNet cannot be fetched without accepting its licence. Get it from https://image-net.org and put it into "
            f"{root / 'imagenet'}, as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
        )
    if name not in SETS:
        raise RecipeError(f"there is no data set {name!r} to download. {suggest(name, SETS)}")
    for remote in SETS[name]:
        target = root / remote.target
        if target.exists():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if remote.is_archive:
                archive = fetch(remote.url, root / remote.file, md5=remote.md5, progress=progress)
                extract(archive, target)
                archive.unlink()
            else:
                fetch(remote.url, target, md5=remote.md5, progress=progress)
        except OSError as error:
            raise EnvironmentUnusable(
                f"{name} cannot be written to {root} ({error.strerror or error}); make room or choose another root"
            ) from error
    return root


def fetch(url: str, path: Path, *, md5: str, progress: bool = True) -> Path:
    """Fetch one file. It appears under its name only when it is complete and its checksum right.

    Args:
        url: where it is.
        path: where it goes; until it is complete, its bytes are in the same name with `.part` added.
        md5: the published checksum, hexadecimal.
        progress: show a bar on stderr.

    Raises:
        EnvironmentUnusable: the site cannot be reached, refuses, or breaks off; what came is kept.
        InputError: the checksum is wrong; what came is deleted.
    """
    if path.exists() and _md5(path) == md5:
        return path
    part = path.with_name(path.name + ".part")
    _transfer(url, part, progress=progress)
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise InputError(
            f"{url}: the checksum of what came is {found}, the published one is {md5}; it was deleted. Run the same again; "
            f"if that does not help, the site sends another file, or something on the way changes it"
        )
    return part.replace(path)


def _transfer(url: str, part: Path, *, progress: bool) -> None:
    """Add the missing bytes to a partial file."""
    have = part.stat().st_size if part.exists() else 0
    response = _open(url, part, have)
    if response is None:
        return
    with closing(response):
        if response.status != 206:  # a server that ignores Range sends everything, from the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        received = have
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress)
        with part.open("ab" if have else "wb") as file, bar:
            task = bar.add_task(part.stem, total=total, completed=have)
            for chunk in _chunks(response, url):
                file.write(chunk)
                received += len(chunk)
                bar.update(task, completed=received)
    if total is not None and received < total:
        raise EnvironmentUnusable(
            f"{url} broke off after {received:,} of {total:,} bytes; they are kept: run the same again to go on"
        )


def _open(url: str, part: Path, have: int) -> HTTPResponse | None:
    """Ask for a file from byte `have` on; None where there is no such byte: the checksum will tell whether it is whole."""
    headers = {"User-Agent": "robustmim"}
    if have:
        headers["Range"] = f"bytes={have}-"
    advice = f"fetch the file by other means and put it at {part.with_suffix('')}"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return None
        raise EnvironmentUnusable(f"{url} answers {error.code} {error.reason}; {advice}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise EnvironmentUnusable(f"{url} cannot be reached ({reason}); try again later, or {advice}") from error
    return response


def _chunks(response: HTTPResponse, url: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise EnvironmentUnusable(
                f"{url} broke off ({error}); what came is kept: run the same again to go on"
            ) from error
        if not chunk:
            return
        yield chunk


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def extract(archive: Path, target: Path) -> None:
    """Unpack the folder called `target.name` out of an archive (.tar.gz, .zip) to `target`, whole or not at all.

    Only plain files are written, only inside the folder.

    Raises:
        InputError: a damaged archive, one without that folder, or one that reaches outside it.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        try:
            for name, content in _members(archive):
                place = PurePosixPath(name)
                if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
                    raise InputError(f"{archive}: it would write outside its folder ({name!r}); it was not unpacked")
                path = Path(scratch, *place.parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{archive}: the archive is damaged ({error}); delete it and download it again") from error
        folder = Path(scratch, target.name)
        if not folder.is_dir():
            raise InputError(f"{archive}: the archive holds no folder {target.name}; it is not the published one")
        folder.replace(target)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the plain files of an archive, by name; folders follow from them, links and devices are refused."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir():
                    yield entry.filename, zipped.open(entry)
        return
    with tarfile.open(archive, "r:gz") as tarred:
        for member in tarred:
            content = tarred.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
            elif not member.isdir():
                raise InputError(f"{archive}: {member.name!r} is a link or a device; the archive was not unpacked")
