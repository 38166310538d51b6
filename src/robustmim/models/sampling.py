"""From noise to images: solvers of the reverse process, and samples of a denoiser.

All of them walk down a list of noise levels with the denoiser's estimate D of the clean image; x is at level σ, and the next
level is s.

    euler       x ← D + (s / σ) (x − D)                                 probability flow, DDIM (EDM, Algorithm 1)
    heun        the same, with the mean of the slopes at both ends      (EDM, Algorithm 1)
    ancestral   x ← D + (s² / σ²) (x − D) + s √(1 − s² / σ²) z          DDPM's posterior (Ho et al. 2020, Eq. 6 and 7)
    sde         x ← x + (1 − s² / σ²) (D − x) + √(σ² − s²) z            the reverse SDE, discretised (Song et al. 2021, Eq. 46)
    vp-sde      in the variables √ᾱ x, over the time Δt between the levels: x ← x + β Δt (x / 2 + score) + √(β Δt) z
                                                                        by Euler and Maruyama (DiffPure, Nie et al. 2022, Eq. 5)

The last step goes to s = 0 and yields D.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from robustmim.config import Solver
from robustmim.models.edm import Denoiser, noise_grid, to_unit
from robustmim.models.variance_preserving import variance_preserving_step
from robustmim.recompute import recomputed
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample, Signed

Denoise = Callable[[Signed, PerSample], Signed]
"""(noised images, noise levels) → estimates of the clean ones."""


def denoising_step(
    denoise: Denoise, x: Signed, level: float, following: float, *, solver: Solver, keys: Keys
) -> tuple[Signed, Signed]:
    """Take one step down; return the image at the next level, and the estimate of the clean one that led there."""
    estimate = denoise(x, x.new_full((len(x),), level))
    if following == 0:
        return estimate, estimate
    if solver in ("euler", "heun"):
        slope = (x - estimate) / level
        reached = x + (following - level) * slope
        if solver == "heun":
            ahead = (reached - denoise(reached, x.new_full((len(x),), following))) / following
            reached = x + (following - level) * (slope + ahead) / 2
        return reached, estimate
    left = (following / level) ** 2
    z = keys.normal(*x.shape[1:]).to(x)
    if solver == "vp-sde":
        return variance_preserving_step(x, estimate, level, following, z), estimate
    if solver == "ancestral":
        return estimate + left * (x - estimate) + following * (1 - left) ** 0.5 * z, estimate
    return x + (1 - left) * (estimate - x) + level * (1 - left) ** 0.5 * z, estimate


def walk_down(
    denoise: Denoise,
    x: Signed,
    levels: list[float],
    *,
    solver: Solver,
    keys: Keys,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Signed:
    """Follow the reverse process from the first level to the last.

    Where gradients are recorded, each step keeps its input only and is computed again on the way back.

    Args:
        denoise: the denoiser.
        x: images at `levels[0]`.
        levels: falling; the last one is 0.
        solver: see above.
        keys: one per sample, for the random solvers.
        callback: told {"step", "level", "x", "estimate"} after each step.
    """

    def take(x: Signed, step: int) -> tuple[Signed, Signed]:
        return denoising_step(
            denoise, x, levels[step], levels[step + 1], solver=solver, keys=keys.fold("reverse", step)
        )

    for step in range(len(levels) - 1):
        before = x
        x, estimate = recomputed(take, x, step)
        if callback is not None:
            callback({"step": step, "level": levels[step], "x": before, "estimate": estimate})
    return x


@torch.no_grad()
def sample(
    model: Denoiser,
    keys: Keys,
    shape: tuple[int, int, int],
    *,
    steps: int = 18,
    solver: Solver = "heun",
    labels: Labels | None = None,
    highest: float = 80.0,
    lowest: float = 0.002,
) -> Images:
    """Draw images from a diffusion model.

    Args:
        model: the denoiser.
        keys: one for each image; it decides the start noise, and so the image.
        shape: channels, height and width.
        steps: noise levels; Heun's method asks the denoiser twice at all but the last.
        solver: see above.
        labels: classes `[B]`, for a model that knows any.
        highest, lowest: noise levels between which the grid lies (EDM, Table 1).

    Returns:
        Images in [0, 1].
    """
    start = highest * keys.fold("start").normal(*shape)
    found = walk_down(
        lambda x, sigma: model.denoise(x, sigma, labels=labels),
        start,
        noise_grid(steps, highest, lowest),
        solver=solver,
        keys=keys,
    )
    return to_unit(found).clamp(0, 1)
