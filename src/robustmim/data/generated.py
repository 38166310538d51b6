"""Images that a generative model has made, from a file: the form in which the published EDM sets come (Wang et al. 2023)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from robustmim.data.sources import ResidentSource, default_root
from robustmim.errors import InputError


def load_generated(file: str, classes: tuple[str, ...], size: int) -> ResidentSource:
    """Read an npz with `image` [n, H, W, 3], bytes, and `label` [n]; nothing in it is unpickled.

    Images stay where they are read, in the main memory: such sets can be larger than a GPU's. Their ids are negative, so
    that they share no draws with a data set's.

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
            images, labels = content["image"], content["label"]
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
