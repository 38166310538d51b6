"""RandAugment and random erasing, for a whole batch at once; every draw is a sample's own.

RandAugment (Cubuk et al. 2020) applies a few of fourteen operations to each image. Here each kind of operation is computed
for all images and taken where it was drawn: nothing is gathered, and the device never waits. Strengths are those of the
paper's reference, 0 to 10; signs are drawn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustmim.rng import Keys
from robustmim.types import Images, PerSample

OPERATIONS = (
    "identity",
    "auto-contrast",
    "equalize",
    "solarize",
    "posterize",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "rotate",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
)
"""The fourteen operations of the paper (its Section 3)."""

_GREY = 0.5  # what comes in from beyond the border
_LUMA = (0.299, 0.587, 0.114)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def grey(x: Images) -> Float[Tensor, "batch 1 height width"]:
    """Return the brightness of each pixel (ITU-R 601)."""
    return (x * torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def auto_contrast(x: Images) -> Images:
    """Stretch each channel of each image to [0, 1]; a flat one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, x, (x - low) / (high - low + flat))


def equalize(x: Images) -> Images:
    """Level the histogram of each channel of each image, over 256 grey levels."""
    levels = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, device=x.device).scatter_add_(
        2, levels, torch.ones_like(levels, dtype=torch.float32)
    )
    below = counts.cumsum(2) - counts
    # The step is what is left without the highest level, spread over 255; no step, no change.
    highest = counts.gather(2, levels.amax(2, keepdim=True))
    step = ((levels.shape[2] - highest) / 255).floor()
    table = ((below + (step / 2).floor()) / step.clamp(min=1)).floor().clamp(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device).float())
    return (table.gather(2, levels) / 255).view_as(x)


def solarize(x: Images, threshold: PerSample) -> Images:
    """Invert what is as bright as the threshold or brighter."""
    return torch.where(x < _wide(threshold), x, 1 - x)


def posterize(x: Images, bits: PerSample) -> Images:
    """Keep the highest bits of each byte."""
    unit = 2.0 ** (8 - _wide(bits).round())
    return ((x * 255).round() / unit).floor() * unit / 255


def blend(x: Images, other: Tensor, factor: PerSample) -> Images:
    """Move from `other` (factor 0) over the image (factor 1) and beyond."""
    return (other + (x - other) * _wide(factor)).clamp(0, 1)


def smooth(x: Images) -> Images:
    """Average each pixel with its neighbours, itself counting five times of thirteen; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    inner = F.conv2d(x, kernel / 13, groups=3)
    result = x.clone()
    result[:, :, 1:-1, 1:-1] = inner
    return result


def warp(x: Images, matrix: Float[Tensor, "batch 2 2"], shift: Float[Tensor, "batch 2"]) -> Images:
    """Move each image: its pixel at p comes from matrix · p + shift, in pixels (x, y) from the middle; bilinear."""
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device) - (height - 1) / 2
    column = torch.arange(width, device=x.device) - (width - 1) / 2
    down, right = torch.meshgrid(row, column, indexing="ij")
    # Written out: a product of matrices would add up in another order for another batch.
    place = [_flat(matrix[:, i, 0]) * right + _flat(matrix[:, i, 1]) * down + _flat(shift[:, i]) for i in (0, 1)]
    grid = torch.stack([place[0] * 2 / width, place[1] * 2 / height], dim=-1)
    return F.grid_sample(x - _GREY, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + _GREY


def _flat(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def rand_augment(x: Images, keys: Keys, *, operations: int, magnitude: float, deviation: float) -> Images:
    """Apply `operations` operations to each image, drawn with replacement.

    Args:
        x: images.
        keys: a sample's operations, strengths and signs depend on its key alone.
        operations: N.
        magnitude: M, 0 to 10.
        deviation: of the strength, from operation to operation.
    """
    for number in range(operations):
        own = keys.fold("rand-augment", number)
        chosen = (own.fold("operation").uniform(1)[:, 0] * len(OPERATIONS)).long()
        strength = (magnitude + deviation * own.fold("strength").normal(1)[:, 0]).clamp(0, 10) / 10
        sign = 1 - 2 * (own.fold("sign").uniform(1)[:, 0] < 0.5).float()
        x = apply(x, chosen, strength, sign)
    return x


def apply(x: Images, chosen: Tensor, strength: PerSample, sign: PerSample) -> Images:
    """Apply to each image the operation of its number in `OPERATIONS`.

    Args:
        x: images.
        chosen: `[B]`, numbers of operations.
        strength: 0 to 1.
        sign: −1 or 1, for operations that have two directions.
    """

    def is_any(*names: str) -> Bool[Tensor, "batch 1 1 1"]:
        return _wide(torch.stack([chosen == OPERATIONS.index(name) for name in names]).any(0))

    factor = 1 + 0.9 * strength * sign
    result = torch.where(is_any("auto-contrast"), auto_contrast(x), x)
    result = torch.where(is_any("equalize"), equalize(x), result)
    result = torch.where(is_any("solarize"), solarize(x, (1 - strength) * 256 / 255), result)
    result = torch.where(is_any("posterize"), posterize(x, 8 - 4 * strength), result)
    luma = grey(x)
    other = torch.where(is_any("color"), luma.expand_as(x), torch.zeros_like(x))
    other = torch.where(is_any("contrast"), luma.mean((2, 3), keepdim=True).expand_as(x), other)
    other = torch.where(is_any("sharpness"), smooth(x), other)
    result = torch.where(is_any("brightness", "contrast", "color", "sharpness"), blend(x, other, factor), result)

    def amount(name: str, largest: float) -> PerSample:
        return strength * sign * largest * (chosen == OPERATIONS.index(name))

    angle = amount("rotate", math.radians(30))
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cosine, sine + amount("shear-x", 0.3)], 1),
            torch.stack([-sine + amount("shear-y", 0.3), cosine], 1),
        ],
        dim=1,
    )
    height, width = x.shape[2:]
    shift = torch.stack([amount("translate-x", 0.45 * width), amount("translate-y", 0.45 * height)], 1)
    moved = is_any("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
    return torch.where(moved, warp(x, matrix, shift), result)


def box(
    area: PerSample, ratio: PerSample, middle: Float[Tensor, "batch 2"], height: int, width: int
) -> Bool[Tensor, "batch 1 {height} {width}"]:
    """Return boxes of whole pixels, cut off at the border.

    Args:
        area: share of the image, before it is cut off.
        ratio: height over width of the box, in units of the image's.
        middle: (row, column), each in [0, 1).
        height, width: of the image.
    """
    half = torch.stack([(area * ratio).sqrt() * height, (area / ratio).sqrt() * width], 1).round() / 2
    size = torch.tensor([height, width], device=area.device)
    first = ((middle * size).floor() - half).ceil()
    last = first + 2 * half
    row, column = torch.arange(height, device=area.device), torch.arange(width, device=area.device)
    rows = (row >= first[:, :1]) & (row < last[:, :1])
    columns = (column >= first[:, 1:]) & (column < last[:, 1:])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(x: Images, keys: Keys, probability: float) -> Images:
    """Fill a random box of some images with noise (Zhong et al. 2020): 2 % to 33 % of the area, sides 3 : 10 to 10 : 3."""
    drawn = keys.fold("erase")
    one, two, three = drawn.fold("box").uniform(3).unbind(1)
    area, ratio = 0.02 + (1 / 3 - 0.02) * one, torch.exp((2 * two - 1) * math.log(10 / 3))
    inside = box(area, ratio, drawn.fold("middle").uniform(2), *x.shape[2:]) & _wide(three < probability)
    return torch.where(inside, drawn.fold("noise").uniform(*x.shape[1:]).to(x), x)
