"""A few real images without any data set: what foolbox's wheel ships (20 each of CIFAR-10, CIFAR-100 and ImageNet).

The files are read as data; foolbox itself is not imported. Each is named <set>_<number>_<label>.<suffix>.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from robustmim.data.images import fit_image, read_image
from robustmim.data.official import CIFAR10_CLASSES, imagenet_classes
from robustmim.data.sources import ResidentSource
from robustmim.errors import EnvironmentUnusable, RecipeError
from robustmim.registry import register


def _files(name: str) -> list[tuple[Path, int]]:
    found = find_spec("foolbox")
    folder = Path(found.submodule_search_locations[0]) / "data" if found and found.submodule_search_locations else None
    files = sorted(folder.glob(f"{name}_*_*.*")) if folder else []
    if not files:
        raise EnvironmentUnusable(
            "the sample images come with a package that is missing: pip install 'robustmim[samples]'"
        )
    return [(file, int(file.stem.rsplit("_", 1)[1])) for file in files]


def _samples(name: str, classes: tuple[str, ...], size: int, resize: int) -> ResidentSource:
    files = _files(name)
    images = torch.stack([fit_image(read_image(file), size, resize=resize) for file, _ in files])
    labels = torch.tensor([label for _, label in files])
    return ResidentSource(
        name=f"samples-{name}", classes=classes, images=images, labels=labels, ids=torch.arange(len(files))
    )


def _own_size(name: str, size: int | None, own: int) -> None:
    if size not in (None, own):
        raise RecipeError(f"{name} has images of {own} pixels; leave `size` out, or set it to {own}")


@register("data", "samples-cifar10")
def samples_cifar10(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> ResidentSource:
    """Twenty CIFAR-10 images; there is one split, and nothing to look for in `root`."""
    _own_size("samples-cifar10", size, 32)
    return _samples("cifar10", CIFAR10_CLASSES, 32, 32)


@register("data", "samples-cifar100")
def samples_cifar100(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> ResidentSource:
    """Twenty CIFAR-100 images, with class numbers for names."""
    _own_size("samples-cifar100", size, 32)
    return _samples("cifar100", tuple(f"class {number}" for number in range(100)), 32, 32)


@register("data", "samples-imagenet")
def samples_imagenet(
    *, split: str, root: Path | None = None, size: int | None = None, resize: int | None = None
) -> ResidentSource:
    """Twenty ImageNet photographs of 224 pixels."""
    size = size or 224
    return _samples("imagenet", tuple(imagenet_classes().values()), size, resize or size)
