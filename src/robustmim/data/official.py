"""Data sets in the forms their authors publish, and folders of images. Nothing is unpickled.

CIFAR-10 and CIFAR-100 (Krizhevsky 2009), binary version; SVHN (Netzer et al. 2011), cropped digits; Tiny ImageNet
(Stanford CS231n); ImageNet (Russakovsky et al. 2015), one folder a class.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustmim.data.images import SUFFIXES
from robustmim.data.sources import FolderSource, ResidentSource, default_root
from robustmim.errors import InputError
from robustmim.registry import register

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_PIXELS = 3 * 32 * 32


def _files(name: str, folder: Path, split: str, splits: dict[str, list[str]], advice: str) -> list[Path]:
    """Name the files of a split and see that they are there."""
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; use {' or '.join(splits)}")
    paths = [folder / file for file in splits[split]]
    for path in paths:
        if not path.exists():
            raise InputError(_missing(name, path, advice))
    return paths


def _missing(name: str, path: Path, advice: str) -> str:
    return (
        f"{name} is not there: {path} was looked for. Set the environment variable ROBUSTMIM_DATA (or root) to the "
        f"folder that holds {path.parent.name}/, or {advice}"
    )


def _fetched_by(name: str) -> str:
    return f'fetch it with robustmim.data.download.download("{name}")'


def _only_own_size(name: str, size: int | None, resize: int | None) -> None:
    if size not in (None, 32) or resize not in (None, 32):
        raise InputError(f"{name} images are 32 × 32 pixels and are not resized; leave size and resize out")


def _read_records(path: Path, header: int, download: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a CIFAR file of records: `header` label bytes (the last is the class), then 3,072 bytes, channel by channel."""
    record = header + _PIXELS
    found = path.stat().st_size
    if found == 0 or found % record:
        raise InputError(
            f"{path}: {found:,} bytes are not a whole number of records of {record:,} bytes: the file is truncated or of "
            f"another form. Delete it and {_fetched_by(download)}"
        )
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    return rows[:, header:].reshape(-1, 3, 32, 32), rows[:, header - 1]


def _read_cifar(name: str, paths: list[Path], header: int, classes: tuple[str, ...]) -> ResidentSource:
    images, labels = [], []
    for path in paths:
        pixels, numbers = _read_records(path, header, name)
        if numbers.max() >= len(classes):
            raise InputError(
                f"{path}: the label {numbers.max()} is out of range, {name} has classes 0 to {len(classes) - 1}: the file "
                f"is damaged or of another set. Delete it and {_fetched_by(name)}"
            )
        images.append(pixels)
        labels.append(numbers)
    joined = torch.from_numpy(np.concatenate(labels).astype(np.int64))
    return ResidentSource(name, classes, torch.from_numpy(np.concatenate(images)), joined, torch.arange(len(joined)))


@register("data", "cifar10")
def cifar10(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> ResidentSource:
    """Open CIFAR-10, `cifar-10-batches-bin/`: 50,000 train and 10,000 test images of 32 × 32 pixels, 10 classes."""
    _only_own_size("cifar10", size, resize)
    folder = (root or default_root()) / "cifar-10-batches-bin"
    splits = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
    paths = _files("cifar10", folder, split, splits, _fetched_by("cifar10"))
    return _read_cifar("cifar10", paths, 1, CIFAR10_CLASSES)


@register("data", "cifar100")
def cifar100(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> ResidentSource:
    """Open CIFAR-100, `cifar-100-binary/`: 50,000 train and 10,000 test images of 32 × 32 pixels, 100 fine classes."""
    _only_own_size("cifar100", size, resize)
    folder = (root or default_root()) / "cifar-100-binary"
    splits = {name: [f"{name}.bin", "fine_label_names.txt"] for name in ("train", "test")}
    path, listing = _files("cifar100", folder, split, splits, _fetched_by("cifar100"))
    classes = tuple(listing.read_text(encoding="utf-8").split())
    if len(classes) != 100:
        raise InputError(f"{listing}: {len(classes)} class names where 100 are expected; {_fetched_by('cifar100')}")
    return _read_cifar("cifar100", [path], 2, classes)


@register("data", "svhn")
def svhn(*, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None) -> ResidentSource:
    """Open SVHN's cropped digits, `svhn/{train,test,extra}_32x32.mat`: 32 × 32 pixels, 10 classes."""
    from scipy.io import loadmat

    _only_own_size("svhn", size, resize)
    splits = {name: [f"{name}_32x32.mat"] for name in ("train", "test", "extra")}
    download = "svhn-extra" if split == "extra" else "svhn"
    (path,) = _files("svhn", (root or default_root()) / "svhn", split, splits, _fetched_by(download))
    try:
        contents = loadmat(path, variable_names=["X", "y"])
        images, labels = contents["X"], contents["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy raises whatever damaged bytes lead it to
        raise InputError(
            f"{path}: cannot be read as a MATLAB file with X and y ({error}): it is truncated or of another form. Delete it "
            f"and {_fetched_by(download)}"
        ) from error
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[:3] != (32, 32, 3)
        or images.shape[3] != len(labels)
    ):
        raise InputError(
            f"{path}: X is {images.dtype} of shape {images.shape} beside {len(labels)} labels; bytes of shape (32, 32, 3, N) "
            f"beside N labels are expected. Delete the file and {_fetched_by(download)}"
        )
    if len(labels) == 0 or labels.min() < 1 or labels.max() > 10:
        raise InputError(
            f"{path}: labels must be 1 to 10 (10 for the digit 0), but these are not: the file is damaged. Delete it and "
            f"{_fetched_by(download)}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    digits = tuple(str(digit) for digit in range(10))
    return ResidentSource("svhn", digits, pixels, torch.from_numpy(labels % 10), torch.arange(len(labels)))


def _class_names(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Read the lists of classes beside a split or inside it.

    Returns:
        The class folders that classes.txt lists (it defines labels), and the names of class folders from classes.txt and
        words.txt (which may list any number of others).
    """
    names: dict[str, str] = {}
    listed: list[str] = []
    for file in ("words.txt", "classes.txt"):
        for path in (folder / file, folder.parent / file):
            if not path.is_file():
                continue
            pairs = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            names |= {pair[0].strip(): pair[-1].strip() for pair in pairs}
            if file == "classes.txt":
                listed = sorted({pair[0].strip() for pair in pairs})
            break
    return listed, names


def _scan(folder: str) -> list[tuple[str, bool]]:
    """List the visible entries of a folder in order of their names, each with whether it is a folder."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))


def _list_images(folder: Path) -> list[str]:
    """List the images of a class: in its folder, or in the folder `images` inside it (Tiny ImageNet's train split)."""
    inner = folder / "images"
    place = str(inner if inner.is_dir() else folder)
    files = (file for file, is_folder in _scan(place) if not is_folder)
    return [os.path.join(place, file) for file in files if os.path.splitext(file)[1].lower() in SUFFIXES]


def _list_classes(name: str, folder: Path) -> list[tuple[str, list[str]]]:
    try:
        return [(entry, _list_images(folder / entry)) for entry, is_folder in _scan(str(folder)) if is_folder]
    except OSError as error:
        raise InputError(f"{name}: the folder {folder} cannot be listed ({error.strerror})") from error


def _list_annotated(annotations: Path) -> list[tuple[str, list[str]]]:
    """List Tiny ImageNet's val split in its official form: one folder of images and a table of their classes."""
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise InputError(
                f"{annotations}, line {number}: a file name and a class, separated by a tab, are expected; "
                f"{_fetched_by('tiny-imagenet')} again"
            )
        groups.setdefault(columns[1], []).append(str(annotations.parent / "images" / columns[0]))
    # In the order that one folder per class would give, so that ids are the same in both forms.
    return [(wnid, sorted(groups[wnid])) for wnid in sorted(groups)]


def imagenet_classes() -> dict[str, str]:
    """Return the thousand classes of ILSVRC-2012, wnid → name, in the order of their labels."""
    lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return {wnid: name for wnid, _, name in (line.partition("\t") for line in lines)}


def _make_source(
    name: str,
    folder: Path,
    groups: list[tuple[str, list[str]]],
    *,
    size: int,
    resize: int,
    known: dict[str, str] | None = None,
) -> FolderSource:
    """List the files of class folders; `known` fixes the labels where no list of classes lies beside them."""
    groups = [(wnid, paths) for wnid, paths in groups if paths]
    if not groups:
        raise InputError(f"{name}: {folder} holds no images; one folder a class is expected, with images inside")
    listed, names = _class_names(folder)
    present = [wnid for wnid, _ in groups]
    if known is not None and not listed:
        listed, names = sorted(known), known
    strays = sorted(set(present) - set(listed)) if listed else []
    if strays:
        raise InputError(
            f"{name}: {folder / strays[0]} is none of the {len(listed)} classes listed, so labels would be wrong; move it "
            f"away, or put a classes.txt with a line `folder<TAB>name` for every class into {folder.parent}"
        )
    # A list of all classes fixes the labels even where only some have images.
    order = listed or present
    label_of = {wnid: label for label, wnid in enumerate(order)}
    labels = [label_of[wnid] for wnid, paths in groups for _ in paths]
    return FolderSource(
        name,
        tuple(names.get(wnid, wnid) for wnid in order),
        [path for _, paths in groups for path in paths],
        torch.tensor(labels),
        torch.arange(len(labels)),
        size=size,
        resize=resize,
    )


def _photograph_sizes(size: int | None, resize: int | None) -> dict[str, Any]:
    """Fill in what is left open: 224 pixels cut from a shorter side of 256, or the same share of another size."""
    size = 224 if size is None else size
    return {"size": size, "resize": round(size * 256 / 224) if resize is None else resize}


@register("data", "tiny-imagenet")
def tiny_imagenet(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> FolderSource:
    """Open Tiny ImageNet, `tiny-imagenet-200/{train,val}/`: 200 classes, 64 × 64 pixels.

    Two forms of val are read: the official one (`images/` and `val_annotations.txt`) and one folder per class.
    """
    top = (root or default_root()) / "tiny-imagenet-200"
    (folder,) = _files("tiny-imagenet", top, split, {"train": ["train"], "val": ["val"]}, _fetched_by("tiny-imagenet"))
    annotations = folder / "val_annotations.txt"
    official = annotations.is_file() and (folder / "images").is_dir()
    groups = _list_annotated(annotations) if official else _list_classes("tiny-imagenet", folder)
    size = 64 if size is None else size
    return _make_source("tiny-imagenet", folder, groups, size=size, resize=size if resize is None else resize)


@register("data", "imagenet")
def imagenet(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> FolderSource:
    """Open ImageNet, `imagenet/{train,val}/<wnid>/*.JPEG`.

    Labels are those of ILSVRC-2012, even where only some classes have images; another list of classes can be given as
    `imagenet/classes.txt`, with `wnid<TAB>name` lines.
    """
    advice = "put it there by hand: it needs the licence of image-net.org; each split holds one folder per class, named by its wnid"
    top = (root or default_root()) / "imagenet"
    (folder,) = _files("imagenet", top, split, {"train": ["train"], "val": ["val"]}, advice)
    groups = _list_classes("imagenet", folder)
    return _make_source("imagenet", folder, groups, known=imagenet_classes(), **_photograph_sizes(size, resize))


@register("data", "folder")
def folder(*, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None) -> FolderSource:
    """Open a folder of images, `root/<class>/<file>` or `root/<split>/<class>/<file>`."""
    if root is None:
        raise InputError("folder: say which folder with root; it holds one folder per class")
    if not root.is_dir():
        raise InputError(f"folder: {root} is not a folder; root names the one that holds a folder per class")
    splits = [name for name in ("train", "val", "test") if _holds_folders(root / name)]
    if splits and split not in splits:
        raise InputError(f"folder: {root} has no split {split!r}; use {' or '.join(splits)}")
    place = root / split if splits else root
    return _make_source("folder", place, _list_classes("folder", place), **_photograph_sizes(size, resize))


def _holds_folders(path: Path) -> bool:
    # A class may be called "train" too; then it holds images, not folders.
    return path.is_dir() and any(is_folder for _, is_folder in _scan(str(path)))
