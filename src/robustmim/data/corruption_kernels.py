"""What the corruptions are made of: draws of one sample, filters, zooms, and the textures of fog, frost and water.

Pictures are float64 arrays `[H, W, 3]` in [0, 1]. Each is worked on alone, so that no result can depend on a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import ndimage, signal

from robustmim.rng import Keys

Picture = Float[ndarray, "height width 3"]
Layer = Float[ndarray, "height width"]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one sample, by purpose."""

    keys: Keys

    def uniform(self, purpose: str, *shape: int) -> Float[ndarray, "*shape"]:
        """Draw numbers from [0, 1)."""
        return self.keys.fold(purpose).uniform(*shape)[0].double().cpu().numpy()

    def normal(self, purpose: str, *shape: int) -> Float[ndarray, "*shape"]:
        """Draw standard normal numbers."""
        return self.keys.fold(purpose).normal(*shape)[0].double().cpu().numpy()

    def between(self, purpose: str, low: float, high: float) -> float:
        """Draw one number from [low, high)."""
        return low + (high - low) * float(self.uniform(purpose, 1)[0])


def to_bytes(picture: ndarray) -> ndarray:
    """Cut [0, 1] down to whole bytes, as the published sets do; the tolerance keeps a level that is hit exactly."""
    return np.floor(np.clip(picture, 0, 1) * 255 + 1e-6).astype(np.uint8)


def gaussian(picture: ndarray, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> ndarray:
    """Blur over rows and columns; a width of nothing leaves the picture as it is."""
    if sigma <= 0:
        return picture
    return ndimage.gaussian_filter(picture, sigma, mode=mode, truncate=truncate, axes=(0, 1))


def disk(radius: float, softness: float) -> Float[ndarray, "side side"]:
    """Return the kernel of a lens out of focus: a disk of this radius, its rim softened by a small Gaussian."""
    # The grid of the published kernel: the largest disks touch its border, where the Gaussian is mirrored.
    reach, rim = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    away = np.arange(-reach, reach + 1)
    inside = (away[:, None] ** 2 + away[None, :] ** 2 <= radius**2).astype(np.float64)
    tap = np.exp(-(np.arange(-rim, rim + 1) ** 2) / (2 * softness**2))
    return ndimage.convolve(inside / inside.sum(), np.outer(tap, tap) / tap.sum() ** 2, mode="mirror")


def filtered(picture: Picture, kernel: Float[ndarray, "side side"]) -> Picture:
    """Apply a symmetric kernel of odd side; beyond the border the picture is mirrored."""
    reach = len(kernel) // 2
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def motion_blurred(picture: ndarray, radius: int, sigma: float, degrees: float) -> ndarray:
    """Smear along a direction: half a Gaussian, from each pixel onwards, over 2 radius + 1 whole pixels.

    This is what ImageMagick's motion blur does, which made the published sets; beyond the border the edge goes on.
    """
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    rows, columns = picture.shape[:2]
    edges = [(width, width), (width, width)] + [(0, 0)] * (picture.ndim - 2)
    padded = np.pad(picture, edges, mode="edge")
    total = np.zeros_like(picture)
    for far, weight in enumerate(weights):
        top = width + math.ceil(far * math.sin(angle) - 0.5)
        left = width + math.ceil(far * math.cos(angle) - 0.5)
        total += weight * padded[top : top + rows, left : left + columns]
    return total


def zoomed(picture: ndarray, factor: float) -> ndarray:
    """Enlarge the middle of a picture (bilinear) to the picture's own size."""
    sides = picture.shape[:2]
    part = [math.ceil(side / factor) for side in sides]
    first = [(side - own) // 2 for side, own in zip(sides, part, strict=True)]
    middle = picture[first[0] : first[0] + part[0], first[1] : first[1] + part[1]]
    large = ndimage.zoom(middle, (factor, factor) + (1,) * (picture.ndim - 2), order=1)
    spare = [(own - side) // 2 for side, own in zip(sides, large.shape[:2], strict=True)]
    return large[spare[0] : spare[0] + sides[0], spare[1] : spare[1] + sides[1]]


def plasma(draws: Draws, side: int, decay: float) -> Layer:
    """Return a cloud in [0, 1]: the diamond-square algorithm (Fournier, Fussell and Carpenter 1982) on a torus.

    Args:
        draws: of the sample.
        side: least side; the next power of two is made.
        decay: the displacement falls by decay² from one scale to the next finer one, as in the published code.
    """
    side = 1 << (side - 1).bit_length()
    height = np.zeros((side, side))
    step, reach = side, 1.0
    while step > 1:
        half = step // 2
        shake = reach * (2 * draws.uniform(f"plasma {step}", 3, side // step, side // step) - 1)
        corner = height[::step, ::step]
        below = np.roll(corner, -1, 0)
        middle = (corner + below + np.roll(corner + below, -1, 1)) / 4 + shake[0]
        height[half::step, half::step] = middle
        height[::step, half::step] = (corner + np.roll(corner, -1, 1) + middle + np.roll(middle, 1, 0)) / 4 + shake[1]
        height[half::step, ::step] = (corner + below + middle + np.roll(middle, 1, 1)) / 4 + shake[2]
        step, reach = half, reach / decay**2
    height -= height.min()
    return height / height.max()


def _value_noise(draws: Draws, purpose: str, shape: tuple[int, int], cell: int) -> Layer:
    """Return smooth noise whose hills are about `cell` pixels wide, of deviation one."""
    grid = [side // cell + 3 for side in shape]
    noise = ndimage.zoom(draws.normal(purpose, *grid), cell, order=1) if cell > 1 else draws.normal(purpose, *shape)
    noise = noise[: shape[0], : shape[1]]
    return (noise - noise.mean()) / (noise.std() + 1e-12)


def frost_texture(draws: Draws, height: int, width: int, *, shrink: int) -> Picture:
    """Return the picture of a frosted pane: ridges of noise at several scales over a slowly changing ground.

    The published sets lay photographs over the images; those are not ours to ship. Level, spread, tint and how fast
    neighbouring pixels lose touch are set after those of such photographs (level 0.44 to 0.8, spread about 0.1).

    Args:
        draws: of the sample.
        height, width: of the picture.
        shrink: the texture is made so many times larger and averaged down, as the photographs are for small images.
    """
    shape = (height * shrink, width * shrink)
    # Where noise crosses zero, 1 - |noise| has a sharp crest: the needles of the crystals.
    crystals = sum(
        weight * (1 - np.abs(_value_noise(draws, f"ridge {cell}", shape, cell)))
        for cell, weight in ((2, 0.5), (4, 0.7), (8, 0.7), (16, 0.5))
    )
    ground = sum(_value_noise(draws, f"ground {cell}", shape, cell) for cell in (32, 64))
    texture = 0.75 * crystals / np.std(crystals) + 0.65 * ground / np.std(ground)
    grey = draws.between("level", 0.44, 0.8) + 0.12 * (texture - texture.mean())
    grey = grey.reshape(height, shrink, width, shrink).mean((1, 3))
    tint = draws.between("tint", 0.02, 0.08) * np.array([-1.0, 0.25, 0.75])
    return np.clip(grey[..., None] + tint, 0, 1)


def _equalised(layer: ndarray) -> ndarray:
    """Spread the histogram of bytes evenly over 0 to 255."""
    counts = np.bincount(layer.ravel(), minlength=256).cumsum()
    least = counts[layer.min()]
    if least == layer.size:
        return layer
    return np.rint(np.clip((counts - least) / (layer.size - least), 0, 1) * 255).astype(np.uint8)[layer]


def water(liquid: Layer, strength: float) -> Layer:
    """Return how much light drops of water add at each pixel, 0 to `strength`: brightest at one side of their rims.

    The published code finds the rims with OpenCV's edge detector; here they are the outermost pixels of each drop, which
    is where that detector finds its edges, since drops end abruptly.
    """
    drops = liquid > 0
    rims = drops & ~ndimage.binary_erosion(drops, border_value=1)
    if not rims.any():
        return np.zeros_like(liquid)
    depth = np.minimum(ndimage.distance_transform_edt(~rims), 20)
    depth = _equalised(ndimage.uniform_filter(depth, 3, mode="mirror").astype(np.uint8)).astype(np.float64)
    light = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = np.clip(ndimage.correlate(depth, light, mode="mirror"), 0, 255)
    shine = np.floor(liquid * 255) * np.rint(ndimage.uniform_filter(relief, 3, mode="mirror"))
    return strength * shine / max(float(shine.max()), 1e-12)
