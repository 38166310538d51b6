"""Diffusion as in EDM (Karras et al. 2022): preconditioning, noise levels, and what a denoiser is.

A noise level σ is the deviation of Gaussian noise on images in [-1, 1], whose own deviation is taken as σ_data = 0.5. In
pixel fractions, for images in [0, 1], it is half as much. A model of another parametrisation is a denoiser too: with
x_t = √ᾱ x + √(1 − ᾱ) n, σ = √((1 − ᾱ) / ᾱ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from robustmim.config import Spacing
from robustmim.errors import RecipeError
from robustmim.models.variance_preserving import level_at_time, time_of_level
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample, Signed

SIGMA_DATA = 0.5
RHO = 7.0  # curvature of the grid of noise levels (EDM, Table 1)


@runtime_checkable
class Denoiser(Protocol):
    """A network that estimates a clean image from a noised one.

    Attributes:
        classes: number of labels that it can be told, 0 for an unconditional one.
    """

    classes: int

    def denoise(self, noised: Signed, sigma: PerSample, *, labels: Labels | None = None) -> Signed:
        """Return E[x | x + σ n = noised] as the network knows it; None for no label."""


@runtime_checkable
class ImageDenoiser(Denoiser, Protocol):
    """A denoiser that knows the size of the images it was trained on, and so can draw some.

    Attributes:
        image_size: their height and width in pixels.
    """

    image_size: int


def to_signed(x: Images) -> Signed:
    """Map [0, 1] to [-1, 1]."""
    return 2 * x - 1


def to_unit(x: Signed) -> Images:
    """Map [-1, 1] to [0, 1]; nothing is clipped."""
    return (x + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """D(y; σ) = c_skip y + c_out F(c_in y; c_noise) (EDM, Eq. 7 and Table 1), one value for each sample.

    Attributes:
        skip, out, input, noise: c_skip, c_out, c_in and c_noise.
        weight: λ(σ) = 1 / c_out², which gives every level the same weight in units of F.
    """

    skip: PerSample
    out: PerSample
    input: PerSample
    noise: PerSample
    weight: PerSample


def precondition(sigma: PerSample) -> Preconditioning:
    """Return the preconditioning at these noise levels, all above 0."""
    total = sigma.square() + SIGMA_DATA**2
    return Preconditioning(
        skip=SIGMA_DATA**2 / total,
        out=sigma * SIGMA_DATA / total.sqrt(),
        input=1 / total.sqrt(),
        noise=sigma.log() / 4,
        weight=total / (sigma * SIGMA_DATA).square(),
    )


def weighted_error(
    denoiser: Denoiser, clean: Signed, *, sigma: PerSample, noise: Signed, labels: Labels | None = None
) -> PerSample:
    """Return λ(σ) · mean squared error of the estimate, `[B]` (EDM, Eq. 2 and 8).

    Args:
        denoiser: the network.
        clean: images in [-1, 1].
        sigma: noise level of each sample, above 0.
        noise: standard normal.
        labels: classes, where the model knows any.
    """
    return weighted(denoiser.denoise(clean + per_pixel(sigma) * noise, sigma, labels=labels), clean, sigma)


def weighted(estimate: Signed, clean: Signed, sigma: PerSample) -> PerSample:
    """Return λ(σ) · mean squared error of an estimate of the clean images, `[B]` (EDM, Eq. 8)."""
    return precondition(sigma).weight * (estimate - clean).square().mean((1, 2, 3))


def log_normal_levels(keys: Keys, mean: float, deviation: float) -> PerSample:
    """Draw a noise level for each sample: ln σ ~ N(mean, deviation²) (EDM, Table 1: −1.2 and 1.2)."""
    return (mean + deviation * keys.normal(1)[:, 0]).exp()


def level_at(progress: float, highest: float, lowest: float) -> float:
    """Return the noise level at `progress` in [0, 1] on the way down from `highest` to `lowest` (EDM, Eq. 5)."""
    high, low = highest ** (1 / RHO), lowest ** (1 / RHO)
    return (high + progress * (low - high)) ** RHO


def noise_grid(steps: int, highest: float, lowest: float, *, spacing: Spacing = "edm") -> list[float]:
    """Return `steps` noise levels from `highest` down to `lowest`, then 0.

    Args:
        steps: number of levels.
        highest, lowest: the first and the last of them.
        spacing: along EDM's curve, or at evenly spaced times of the variance-preserving diffusion.

    Raises:
        RecipeError: no step, or levels that do not fall.
    """
    if steps < 1:
        raise RecipeError(f"denoising takes at least one step, not {steps}")
    if not (0 < lowest <= highest < math.inf):
        raise RecipeError(
            f"noise levels fall from the highest to the lowest, above 0, but here from {highest} to {lowest}"
        )
    progress = [step / max(1, steps - 1) for step in range(steps)]
    if spacing == "vp":
        first, last = time_of_level(highest), time_of_level(lowest)
        return [level_at_time(first + way * (last - first)) for way in progress] + [0.0]
    return [level_at(way, highest, lowest) for way in progress] + [0.0]


def per_pixel(values: PerSample) -> Tensor:
    """Return one value for each sample in the shape that multiplies images, `[B, 1, 1, 1]`."""
    return values.view(-1, 1, 1, 1)
