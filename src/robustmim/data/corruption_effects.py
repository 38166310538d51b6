"""The nineteen corruptions themselves: a picture, the constants of a severity and the sample's draws give a picture.

Results may leave [0, 1]; `robustmim.data.corruptions`, where the constants are, clips them and cuts them to bytes.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from scipy import ndimage, special

from robustmim.data.corruption_kernels import (
    Draws,
    Picture,
    disk,
    filtered,
    frost_texture,
    gaussian,
    motion_blurred,
    plasma,
    to_bytes,
    water,
    zoomed,
)

SMALL = 64
"""Images whose shorter side is below this count as small: they get the constants of CIFAR-10-C."""


def gaussian_noise(picture: Picture, deviation: float, draws: Draws) -> Picture:
    """Add noise that does not depend on the image, as in poor light."""
    return picture + deviation * draws.normal("noise", *picture.shape)


@lru_cache(maxsize=16)
def _poisson_tables(photons: float) -> Float[ndarray, "256 counts"]:
    """Return the cumulative distribution of the photons counted at each of the 256 levels."""
    most = int(photons + 8 * math.sqrt(photons) + 16)
    return special.pdtr(np.arange(most), photons * np.arange(256)[:, None] / 255)


def shot_noise(picture: Picture, photons: float, draws: Draws) -> Picture:
    """Count photons: Poisson numbers, of which white gets so many on average."""
    tables = _poisson_tables(photons)
    levels = np.rint(picture * 255)
    # The inverse of the distribution, all levels in one search: row after row, each lifted by its number.
    lifted = (tables + np.arange(256)[:, None]).ravel()
    places = np.searchsorted(lifted, levels + draws.uniform("photons", *picture.shape), side="right")
    return (places - levels * tables.shape[1]) / photons


def impulse_noise(picture: Picture, share: float, draws: Draws) -> Picture:
    """Set a share of all values to black or white, half each ("salt and pepper")."""
    drawn = draws.uniform("impulse", *picture.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, picture))


def defocus_blur(picture: Picture, constants: tuple[float, float], draws: Draws) -> Picture:
    """Blur as a lens out of focus does."""
    return filtered(picture, disk(*constants))


def glass_blur(picture: Picture, constants: tuple[float, int, int], draws: Draws) -> Picture:
    """Look through frosted glass: blur, fetch pixels from their neighbourhood, blur again.

    The paper speaks of shuffling. In the code behind the files the exchange of two pixels goes one way (both names look
    at the same memory), so that a pixel is overwritten by its partner and the partner stays; so it is here.
    """
    sigma, reach, times = constants
    blurred = to_bytes(gaussian(picture, sigma))
    rows, columns = blurred.shape[:2]
    source = list(range(rows * columns))
    for turn in range(times):
        moves = np.floor(draws.uniform(f"glass {turn}", 2, rows, columns) * 2 * reach).astype(int) - reach
        shift = (moves[0] * columns + moves[1]).ravel().tolist()
        # In order, for a pixel may fetch one that was overwritten before it.
        for row in range(rows - reach, reach, -1):
            for place in range(row * columns + columns - reach, row * columns + reach, -1):
                source[place] = source[place + shift[place]]
    moved = blurred.reshape(-1, 3)[np.array(source)].reshape(blurred.shape)
    return gaussian(moved / 255, sigma)


def motion_blur(picture: Picture, constants: tuple[int, float], draws: Draws) -> Picture:
    """Smear as a moving camera does, in a direction within 45° of the horizontal."""
    return motion_blurred(picture, *constants, draws.between("direction", -45, 45))


def zoom_blur(picture: Picture, constants: tuple[float, float], draws: Draws) -> Picture:
    """Average the picture with its own enlargements, as when the camera flies towards it."""
    stop, step = constants
    factors = np.arange(1, stop, step)
    return (picture + sum(zoomed(picture, factor) for factor in factors)) / (len(factors) + 1)


def snow(picture: Picture, constants: tuple[float, ...], draws: Draws) -> Picture:
    """Bleach the picture and let flakes fall over it: thresholded noise, enlarged and smeared downwards."""
    mean, deviation, enlarged, threshold, radius, sigma, kept = constants
    flakes = zoomed(mean + deviation * draws.normal("flakes", *picture.shape[:2]), enlarged)
    flakes = to_bytes(np.where(flakes < threshold, 0.0, flakes)) / 255
    flakes = motion_blurred(flakes, int(radius), sigma, draws.between("direction", -135, -45))[..., None]
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    bleached = kept * picture + (1 - kept) * np.maximum(picture, 1.5 * grey + 0.5)
    return bleached + flakes + flakes[::-1, ::-1]


def frost(picture: Picture, constants: tuple[float, float], draws: Draws) -> Picture:
    """Lay a frosted pane over the picture: a synthesised texture, see `frost_texture`."""
    of_picture, of_frost = constants
    height, width = picture.shape[:2]
    return of_picture * picture + of_frost * frost_texture(
        draws, height, width, shrink=5 if min(height, width) < SMALL else 1
    )


def fog(picture: Picture, constants: tuple[float, float], draws: Draws) -> Picture:
    """Add a cloud and scale back to the picture's own brightest value."""
    thickness, decay = constants
    height, width = picture.shape[:2]
    cloud = plasma(draws, max(height, width), decay)[:height, :width, None]
    brightest = picture.max()
    return (picture + thickness * cloud) * brightest / (brightest + thickness)


def brightness(picture: Picture, more: float, draws: Draws) -> Picture:
    """Raise the value of hue, saturation and value."""
    value = picture.max(2, keepdims=True)
    raised = np.minimum(value + more, 1)
    # Hue and saturation stay if all three channels are scaled alike; black has neither and becomes grey.
    return np.where(value > 0, picture * raised / np.maximum(value, 1e-12), raised)


def contrast(picture: Picture, factor: float, draws: Draws) -> Picture:
    """Pull each channel towards its mean."""
    mean = picture.mean((0, 1), keepdims=True)
    return (picture - mean) * factor + mean


def elastic_transform(picture: Picture, constants: tuple[float, float, float], draws: Draws) -> Picture:
    """Bend the picture: an affine map drawn at random, then a displacement of each pixel by blurred noise.

    The constants, strength and blur of the displacement and the jitter of the affine map's three points, are fractions of
    the shorter side.
    """
    height, width = picture.shape[:2]
    strength, sigma, jitter = (min(height, width) * constant for constant in constants)
    middle, arm = np.array([height // 2, width // 2]), min(height, width) // 3
    before = middle + arm * np.array([[1.0, 1], [-1, 1], [-1, -1]])
    after = before + jitter * (2 * draws.uniform("affine", 3, 2) - 1)
    # Three points fix the map; it is solved from after to before, since each pixel asks where it comes from.
    back = np.linalg.lstsq(np.column_stack([after, np.ones(3)]), before, rcond=None)[0]
    matrix, offset = back[:2].T, back[2]
    moved = np.stack(
        [ndimage.affine_transform(picture[..., c], matrix, offset, order=1, mode="mirror") for c in range(3)], -1
    )
    noise = 2 * draws.uniform("bend", 2, height, width) - 1
    away = [strength * gaussian(part, sigma, mode="reflect", truncate=3) for part in noise]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = np.stack([rows + away[0], columns + away[1]])
    return np.stack([ndimage.map_coordinates(moved[..., c], places, order=1, mode="reflect") for c in range(3)], -1)


def pixelate(picture: Picture, share: float, draws: Draws) -> Picture:
    """Shrink by averaging boxes and enlarge again."""
    image = Image.fromarray(to_bytes(picture))
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX)) / 255


def jpeg_compression(picture: Picture, quality: int, draws: Draws) -> Picture:
    """Save as JPEG of this quality and read back."""
    file = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image) / 255


def speckle_noise(picture: Picture, deviation: float, draws: Draws) -> Picture:
    """Add noise in proportion to the value."""
    return picture + picture * deviation * draws.normal("noise", *picture.shape)


def gaussian_blur(picture: Picture, sigma: float, draws: Draws) -> Picture:
    """Blur by a Gaussian."""
    return gaussian(picture, sigma)


def spatter(picture: Picture, constants: tuple[float, ...], draws: Draws) -> Picture:
    """Spatter the lens with water (lighter severities) or mud."""
    mean, deviation, sigma, threshold, last, muddy = constants
    liquid = gaussian(mean + deviation * draws.normal("liquid", *picture.shape[:2]), sigma)
    if not muddy:
        shine = water(np.where(liquid < threshold, 0.0, liquid), last)
        return picture + shine[..., None] * np.array([175, 238, 238]) / 255
    cover = gaussian((liquid > threshold).astype(np.float64), last)
    cover = np.where(cover < 0.8, 0.0, cover)[..., None]
    return picture * (1 - cover) + cover * np.array([63, 42, 20]) / 255


def saturate(picture: Picture, constants: tuple[float, float], draws: Draws) -> Picture:
    """Change the saturation of hue, saturation and value; grey counts as red, as in the published sets."""
    factor, more = constants
    value = picture.max(2, keepdims=True)
    depth = value - picture
    saturation = depth.max(2, keepdims=True) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * factor + more, 0, 1)
    red = np.array([0.0, 1, 1])
    return np.where(saturation > 0, value - depth * wanted / np.maximum(saturation, 1e-12), value * (1 - wanted * red))
