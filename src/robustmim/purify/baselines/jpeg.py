"""JPEG compression, the oldest of all purifiers (Dziugaite et al. 2016; Guo et al. 2018): what the eye does not miss is dropped.

Blocks of 8 × 8 pixels are turned into cosine coefficients, each of which is rounded to a multiple of its step (ITU-T T.81,
Annexes A and K). Everything but the rounding is linear, and coding without loss, which follows, changes nothing: it is left
out. Rounding is flat, so its derivative is zero and hides the defence; see `Jpeg.differentiable` for what attackers get.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustmim.adjoint import straight_through
from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images

Rounding = Callable[[Tensor], Tensor]

# Annex K, Tables K.1 and K.2: steps of the luminance and of the chrominance at quality 50, row by row.
_LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
                18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMINANCE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99" + " 99" * 32
)

# T.871 (JFIF), section 7: red, green and blue to luminance and the two differences of colour, and back.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def quantisation_steps(quality: int) -> tuple[Tensor, Tensor]:
    """Return the steps of luminance and chrominance, `[8, 8]` each, scaled as the Independent JPEG Group's library does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = (torch.tensor([int(step) for step in text.split()]) for text in (_LUMINANCE, _CHROMINANCE))
    luminance, chrominance = (((table * scale + 50) // 100).clamp(1, 255).view(8, 8) for table in tables)
    return luminance, chrominance


def cosine_basis() -> Tensor:
    """Return the orthonormal cosine transform of 8 values, `[8, 8]`, frequency by place (T.81, A.3.3)."""
    place, frequency = torch.arange(8, dtype=torch.float64), torch.arange(8, dtype=torch.float64)[:, None]
    basis = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)  # the mean
    return basis


def _weighted(parts: list[Tensor], weights: list[Tensor]) -> Tensor:
    # Products are added one by one, elementwise: a matrix product rounds in an order that depends on the batch, and the
    # rounding of a coefficient to its step would make a visible difference of that.
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + part * weight
    return total


def _transformed(blocks: Tensor, basis: Tensor) -> Tensor:
    """Apply `basis` along the rows and the columns of blocks `[..., 8, 8]`."""
    for _ in range(2):
        columns = [column.unsqueeze(-1) for column in blocks.unbind(-1)]
        blocks = _weighted(columns, list(basis.unbind(1))).transpose(-1, -2)
    return blocks


def _mixed(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    channels = x.unbind(1)
    return torch.stack([sum(w * c for w, c in zip(row, channels, strict=True)) for row in matrix], dim=1)  # type: ignore[misc]


def _halved(x: Tensor) -> Tensor:
    """Return the means of 2 × 2 pixels; shifted so that a tie is rounded down in even columns and up in odd ones, as usual."""
    mean = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    return mean + torch.tensor([-1 / 8, 1 / 8]).to(x).repeat(-(-mean.shape[-1] // 2))[: mean.shape[-1]]


def _doubled(x: Tensor) -> Tensor:
    """Double each side: three parts of the nearer value, one of the farther; both equal at the border."""
    for dim in (-2, -1):
        size = x.shape[dim]
        ends = x.narrow(dim, 0, 1), x.narrow(dim, size - 1, 1)
        before = torch.cat([ends[0], x.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([x.narrow(dim, 1, size - 1), ends[1]], dim)
        pairs = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], dim=x.ndim + dim + 1)
        x = pairs.flatten(x.ndim + dim, x.ndim + dim + 1)
    return x


@register("purifier", "jpeg")
class Jpeg(OnePass):
    """Compress as JPEG does, and decompress.

    Equal to Pillow's encoder and decoder but for the rounding of their integer arithmetic: nearly all pixels to within two
    levels of 255, most of them exactly.

    Args:
        quality: 1 to 100, as usual.
        halve_colour: code colour at half the height and width (4:2:0, Pillow's default), or at full size (4:4:4).

    Raises:
        RecipeError: a quality that there is not.
    """

    def __init__(self, *, quality: int = 75, halve_colour: bool = True) -> None:
        if not 1 <= quality <= 100:
            raise RecipeError(f"jpeg: quality lies between 1 and 100, but this one is {quality}")
        self.quality, self.halve_colour = quality, halve_colour
        self._luminance, self._chrominance = quantisation_steps(quality)
        self._basis = cosine_basis()

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return images of 256 levels in [0, 1]; nothing is drawn."""
        return self._compressed(x, torch.round, torch.round)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return compressed images with a gradient in the place of the roundings' own, which is zero.

        For the rounding of coefficients the modes tanh and rational take the derivative of ⌊v⌉ + (v − ⌊v⌉)³ (Shin and Song
        2017), by which a coefficient counts the more the nearer it is to another step; every other mode takes one, so that
        only the clips and the halving of the colour are seen. Exact mode gets one too: the exact derivative, zero, would
        stop any attack and show nothing. Rounding to levels of 255 has derivative one throughout. With `forward` "smooth"
        the attacker's purifier computes these functions: the cubic one, or no rounding at all.

        Raises:
            InputError: images out of range or not finite.
        """

        def chosen(hard: Tensor, smooth: Tensor) -> Tensor:
            return smooth if gradient.forward == "smooth" else straight_through(hard, smooth)

        def coefficient(v: Tensor) -> Tensor:
            hard = v.round().detach()
            return chosen(hard, hard + (v - hard) ** 3 if gradient.mode in ("tanh", "rational") else v)

        check_images(x)
        return self._compressed(x, lambda v: chosen(v.round(), v), coefficient)

    def _compressed(self, x: Images, level: Rounding, coefficient: Rounding) -> Images:
        height, width = x.shape[-2:]
        # The border is repeated until whole blocks are full, before colour is halved.
        padded = F.pad(level(255 * x), (0, -width % 16, 0, -height % 16), mode="replicate")
        ycc = level(_mixed(padded, _TO_YCC) + x.new_tensor([0.0, 128, 128]).view(3, 1, 1))
        colour = level(_halved(ycc[:, 1:])) if self.halve_colour else ycc[:, 1:]
        luminance = self._coded(ycc[:, :1], self._luminance, level, coefficient)
        colour = self._coded(colour, self._chrominance, level, coefficient)
        if self.halve_colour:
            colour = level(_doubled(colour[..., : -(-height // 2), : -(-width // 2)]))
        both = [plane[..., :height, :width] for plane in (luminance, colour - 128)]
        return level(_mixed(torch.cat(both, dim=1), _TO_RGB)).clamp(0, 255) / 255

    def _coded(self, x: Tensor, steps: Tensor, level: Rounding, coefficient: Rounding) -> Tensor:
        """Return planes of levels, whose sides 8 divides, after quantisation."""
        basis, steps = self._basis.to(x), steps.to(x)
        blocks = x.unflatten(-2, (-1, 8)).unflatten(-1, (-1, 8)).transpose(-2, -3)
        found = _transformed(blocks - 128, basis)
        # Ties are common in the means of blocks; they go away from zero.
        found = coefficient((found + 1e-3 * found.sign()) / steps) * steps
        blocks = _transformed(found, basis.T) + 128
        return level(blocks.transpose(-2, -3).flatten(-2).flatten(-3, -2)).clamp(0, 255)
