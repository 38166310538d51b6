"""Common corruptions at five severities (Hendrycks and Dietterich, ICLR 2019): the 15 of ImageNet-C and 4 extra ones.

The published sets are fixed files; these are made anew from (seed, sample), for images of any size from 32 pixels on.
Under 64 pixels the constants are those of CIFAR-10-C, from there on those of ImageNet-C. The result is made of bytes,
cut off and not rounded, as in the files. What differs from them: frost is synthesised (the photographs are not ours to
ship) and the rims of spattered water are found in another way, so that these two are like the published ones but not the
same; and of course the random draws. Errors measured on these are comparable with each other; before they are set beside
numbers from the published files, measure there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from robustmim.data import corruption_effects as effects
from robustmim.data.corruption_effects import SMALL
from robustmim.data.corruption_kernels import Draws, Picture, to_bytes
from robustmim.data.images import check_images
from robustmim.data.sources import Source
from robustmim.errors import InputError, RecipeError, suggest
from robustmim.rng import Keys, keys
from robustmim.types import Images

LEAST = 32
"""The smallest side that the kernels fit into."""


@dataclass(frozen=True)
class Corruption:
    """What is done, and its constants at the five severities.

    Attributes:
        effect: (picture in [0, 1], the severity's constants, draws) → picture, which is clipped and cut to bytes after.
        small: constants of CIFAR-10-C.
        large: constants of ImageNet-C.
    """

    effect: Callable[[Picture, Any, Draws], Picture]
    small: tuple[Any, ...]
    large: tuple[Any, ...]


# The published elastic transform of images of 224 pixels was scaled for 244.
_ELASTIC = tuple(
    tuple(244 / 224 * constant for constant in constants)
    for constants in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
)

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(effects.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption(effects.shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(effects.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption(
        effects.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        effects.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Corruption(
        effects.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Corruption(
        effects.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Corruption(
        effects.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(
        effects.frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        effects.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(effects.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(effects.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        effects.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        _ELASTIC,
    ),
    "pixelate": Corruption(effects.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Corruption(effects.jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "speckle_noise": Corruption(effects.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": Corruption(effects.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "spatter": Corruption(
        effects.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    ),
    "saturate": Corruption(
        effects.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}
"""All corruptions by name, in the order of the paper."""

BENCHMARK = tuple(CORRUPTIONS)[:15]
"""The fifteen that the mean corruption error is over."""
EXTRA = tuple(CORRUPTIONS)[15:]
"""Four more, meant for choosing hyperparameters."""
SEVERITIES = (1, 2, 3, 4, 5)


def check_corruption(name: str, severity: int) -> None:
    """Raise RecipeError unless the corruption and its severity exist; the message gives the nearest."""
    if name not in CORRUPTIONS:
        raise RecipeError(f"there is no corruption called {name!r}. {suggest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        nearest = min(max(severity, SEVERITIES[0]), SEVERITIES[-1])
        raise RecipeError(f"{name} has no severity {severity}; use 1 to 5. Did you mean {nearest}?")


def corrupt(x: Images, name: str, severity: int, keys: Keys) -> Images:
    """Corrupt images; each result depends on its image's bytes and its key alone.

    Args:
        x: `[B, 3, H, W]` in [0, 1], sides of 32 pixels or more; rounded to bytes first, for photographs are bytes.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        keys: one per image; corruptions and severities draw independently from the same keys.

    Returns:
        Float32 images of the same shape on the same device; each value is a whole byte / 255.

    Raises:
        RecipeError: no such corruption or severity.
        InputError: not images, images too small, or another number of keys.
    """
    check_corruption(name, severity)
    check_images(x)
    height, width = x.shape[-2:]
    if min(height, width) < LEAST:
        raise InputError(f"images of {height} × {width} pixels are too small to be corrupted; {LEAST} are needed")
    if len(keys) != len(x):
        raise InputError(f"{len(x)} images but {len(keys)} keys; there must be one of each")
    corruption = CORRUPTIONS[name]
    constants = (corruption.small if min(height, width) < SMALL else corruption.large)[severity - 1]
    own = keys.to("cpu").fold(name, severity)
    pictures = (x.detach().cpu().double().clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy() / 255
    done = [
        to_bytes(corruption.effect(picture, constants, Draws(own[place : place + 1])))
        for place, picture in enumerate(pictures)
    ]
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).to(x.device, torch.float32).contiguous() / 255


@final
class Corrupted:
    """A data set whose images are corrupted as they are fetched; the same image is always corrupted alike.

    Args:
        source: the clean data set.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the draws, which also depend on each sample's id.

    Raises:
        RecipeError: no such corruption or severity.
    """

    def __init__(self, source: Source, name: str, severity: int, seed: int = 0) -> None:
        check_corruption(name, severity)
        self.name = f"{source.name} with {name} {severity}"
        self.classes, self.labels, self.ids = source.classes, source.labels, source.ids
        self._source, self._corruption, self._severity, self._seed = source, name, severity, seed

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, indices: Int64[Tensor, " b"]) -> UInt8[Tensor, "b 3 h w"]:
        """Return the corrupted images at these places."""
        clean = self._source.fetch(indices)
        if not len(clean):
            return clean
        drawn = keys(self._seed, "corruption", self.ids[indices.to(self.ids.device)])
        return (corrupt(clean.float() / 255, self._corruption, self._severity, drawn) * 255).round().to(torch.uint8)
