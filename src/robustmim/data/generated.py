"""Images that a generative model has made, from a file: the form in which the published EDM sets come (Wang et al. 2023)."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robustmim.data.sources import ResidentSource, default_root
from robustmim.errors import InputError


def _array(path: Path, content: np.lib.npyio.NpzFile, name: str) -> NDArray[np.generic]:
    """Return an array of an npz; one that lies in it as it is is mapped, so that processes share what they look at."""
    with zipfile.ZipFile(path) as archive:
        about = archive.getinfo(f"{name}.npy")
        with archive.open(about) as member:
            if np.lib.format.read_magic(member) != (1, 0):
                return content[name]
            shape, columns_first, kind = np.lib.format.read_array_header_1_0(member)
            header = member.tell()
    if about.compress_type != zipfile.ZIP_STORED or columns_first or kind.hasobject or not np.prod(shape):
        return content[name]
    with path.open("rb") as file:
        file.seek(about.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of the name and of what follows it, before the member begins
    start = about.header_offset + 30 + sum(lengths) + header
    return np.memmap(path, kind, mode="c", offset=start, shape=shape)


def load_generated(file: str, classes: tuple[str, ...], size: int) -> ResidentSource:
    """Read an npz with `image` [n, H, W, 3], bytes, and `label` [n]; nothing in it is unpickled.

    Images stay in the file if it is not compressed, as `numpy.savez` leaves it, and every process maps it; of a compressed
    one each process holds its own copy in the main memory. Their ids are negative, so that they share no draws with a data
    set's.

    Args:
        file: a path, or a name in the folder of data sets.
        classes: of the data set they stand beside.
        size: side of its images.

    Raises:
        InputError: missing, damaged, of another form, or with labels or sizes that do not fit.
    """
    path = next((path for path in (Path(file), default_root() / file) if path.is_file()), None)
    if path is None:
        raise InputError(f"{file} is not there, and not in {default_root()} either; give the path of an npz file")
    try:
        with np.load(path, allow_pickle=False) as content:
            if missing := {"image", "label"} - set(content.files):
                raise InputError(f"{path} has no array {min(missing)!r}; it has {', '.join(content.files)}")
            images, labels = (_array(path, content, name) for name in ("image", "label"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged, or no npz file of plain arrays ({error})") from error
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise InputError(
            f"{path}: images are {images.dtype} of {' × '.join(map(str, images.shape[1:]))}; bytes of {size} × {size} × 3 "
            "are needed"
        )
    return ResidentSource(
        name=path.name,
        classes=classes,
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels.astype(np.int64).reshape(-1)),
        ids=-1 - torch.arange(len(images)),
    )
