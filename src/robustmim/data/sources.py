"""What a data set is here: bytes, labels and an id for each sample, in the order its authors gave them.

`load("cifar10", "test")` opens a registered set. The readers of official forms are in `official`, the photographs that
installed packages ship in `samples`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustmim.data.images import check_sizes, open_image, resize_and_crop, to_tensor
from robustmim.errors import InputError
from robustmim.registry import build

Part = Literal["all", "development", "held-out"]

_CHUNK = 256  # images decoded between two copies into the resident tensor


@runtime_checkable
class Source(Protocol):
    """A data set: images by place, and for each a label and an id.

    `ids` are the samples' places in the official split, whatever part of it this is: they name samples for random draws.
    """

    name: str
    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]

    def __len__(self) -> int: ...

    def fetch(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images at these places."""


def _check_labels(name: str, classes: tuple[str, ...], labels: Tensor, ids: Tensor, images: int) -> None:
    if not len(labels) == len(ids) == images:
        raise InputError(f"{name}: {images} images, {len(labels)} labels and {len(ids)} ids; there must be one of each")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"{name}: labels from {int(labels.min())} to {int(labels.max())}, but the {len(classes)} classes are "
            f"numbered from 0 to {len(classes) - 1}"
        )


@final
class ResidentSource:
    """A data set held in memory, on any device.

    Args:
        name: what messages and records call it.
        classes: class names; a label is a place in them.
        images: all images as bytes.
        labels: a class for each image.
        ids: a stable id for each image.

    Raises:
        InputError: numbers of images, labels and ids that differ, or labels without a class.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        images: UInt8[Tensor, "n 3 h w"],
        labels: Int64[Tensor, " m"],
        ids: Int64[Tensor, " k"],
    ) -> None:
        _check_labels(name, classes, labels, ids, len(images))
        self.name, self.classes, self.images, self.labels, self.ids = name, classes, images, labels, ids

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images at these places, on the source's device."""
        return self.images[indices.to(self.images.device)]

    def to(self, device: torch.device | str) -> ResidentSource:
        """Return the same data set on another device."""
        images, labels, ids = (tensor.to(device) for tensor in (self.images, self.labels, self.ids))
        return ResidentSource(self.name, self.classes, images, labels, ids)

    def select(self, indices: Int64[Tensor, " b"]) -> ResidentSource:
        """Return the samples at these places; they keep their ids."""
        indices = indices.to(self.images.device)
        return ResidentSource(self.name, self.classes, self.images[indices], self.labels[indices], self.ids[indices])


@final
class FolderSource:
    """Image files, decoded on demand by a few threads.

    Each image is turned upright, made RGB, resized (shorter side, bicubic, antialiased) and cropped to its middle square.

    Args:
        name: what messages and records call it.
        classes: class names; a label is a place in them.
        paths: the files; strings, for a million Path objects would take half a gigabyte.
        labels: a class for each file.
        ids: a stable id for each file.
        size: side of the square images.
        resize: shorter side before the crop.

    Raises:
        InputError: as for `ResidentSource`, or a crop larger than the resized image.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        paths: Sequence[str],
        labels: Int64[Tensor, " m"],
        ids: Int64[Tensor, " k"],
        *,
        size: int,
        resize: int,
    ) -> None:
        _check_labels(name, classes, labels, ids, len(paths))
        check_sizes(size, resize)
        self.name, self.classes, self.paths, self.labels, self.ids = name, classes, paths, labels, ids
        self.size, self.resize = size, resize
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Decode the images at these places.

        Raises:
            InputError: a file that is missing or damaged; the message names it.
        """
        images = list(self._threads.map(self._decode, indices.tolist()))
        return torch.stack(images) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)

    def _decode(self, index: int) -> Tensor:
        return to_tensor(resize_and_crop(open_image(Path(self.paths[index])), self.size, self.resize))

    def resident(self) -> ResidentSource:
        """Decode everything into memory.

        Raises:
            InputError: a file that is missing or damaged; the message names it.
        """
        images = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        for indices in torch.arange(len(self)).split(_CHUNK):
            images[indices] = self.fetch(indices)
        return ResidentSource(self.name, self.classes, images, self.labels, self.ids)

    def select(self, indices: Int64[Tensor, " b"]) -> FolderSource:
        """Return the samples at these places; they keep their ids."""
        paths = [self.paths[index] for index in indices.tolist()]
        labels, ids = self.labels[indices], self.ids[indices]
        return FolderSource(self.name, self.classes, paths, labels, ids, size=self.size, resize=self.resize)


@final
class Selection:
    """Some samples of a data set of any kind, such as a plug-in's.

    Args:
        source: the whole.
        indices: places in it.
    """

    def __init__(self, source: Source, indices: Int64[Tensor, " b"]) -> None:
        self.name, self.classes = source.name, source.classes
        self.labels, self.ids = source.labels[indices], source.ids[indices]
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def fetch(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images at these places."""
        return self._source.fetch(self._indices[indices])


def default_root() -> Path:
    """Return the folder that holds the data sets: ROBUSTMIM_DATA, else `~/.cache/robustmim/data`."""
    value = os.environ.get("ROBUSTMIM_DATA")
    return Path(value).expanduser() if value else Path.home() / ".cache" / "robustmim" / "data"


def load(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    size: int | None = None,
    resize: int | None = None,
    skip: int = 0,
    limit: int | None = None,
    part: Part = "all",
) -> Source:
    """Open a data set.

    Args:
        name: a registered name (`robustmim list data`).
        split: the set's own split: train, val or test.
        root: the folder that holds the data sets (for `folder`: the folder of images); default: `default_root()`.
        size: side of the square images, for sets of photographs.
        resize: shorter side before the centre crop to `size`.
        skip: leave out the first so many, after `part`.
        limit: keep only the first so many, after `skip`.
        part: all; every fourth sample in official order, beginning with the first ("held-out"); or the others
            ("development"). So what is tested on can be kept out of training where a set has but one split.

    Raises:
        RecipeError: no such name.
        InputError: the files are missing or damaged, or an option does not fit the set.
        EnvironmentUnusable: the package that ships a set of samples is not installed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: at least one image is needed")
    if skip < 0:
        raise InputError(f"skip={skip}: a number of images cannot be negative")
    given = {"root": root, "size": size, "resize": resize}
    source: Source = build(
        "data", name, split=split, **{option: value for option, value in given.items() if value is not None}
    )
    if part == "all" and not skip and (limit is None or limit >= len(source)):
        return source
    places = torch.arange(len(source))
    if part != "all":
        places = places[(places % 4 == 0) == (part == "held-out")]
    places = places[skip:][:limit]
    if len(places) == 0:
        raise InputError(f"{name}: skip={skip} leaves no images of {len(source)} ({part})")
    if isinstance(source, ResidentSource | FolderSource):
        return source.select(places)
    return Selection(source, places)
