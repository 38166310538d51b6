"""Functions whose derivative an attacker takes for a purifier's (BPDA, Athalye et al. 2018, section 4.1).

The images go through the purifier itself, the gradient through a function that is near it and has one: x ↦ x is the identity
mode of `GradientConfig`; here are a blur, a single smooth step of the purifier, its masked model's one-pass reconstruction, and
a network that has learnt to imitate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from robustmim.config import GradientConfig, ReconstructionConfig
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.imitation import imitate
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.traits import DifferentiablePurifier, MaskedPurifier, Purifier
from robustmim.rng import Keys
from robustmim.types import Images

Replacement = Callable[[Images, Keys, float], Images]
"""(images, keys of the purifier's draws, progress of the attack) → images near the purified ones, differentiable."""


def gaussian_blur(x: Images, deviation: float) -> Images:
    """Return images blurred by a Gaussian of so many pixels; the weights sum to one at the border too."""
    reach = max(1, math.ceil(3 * deviation))
    line = torch.exp(-torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device).square() / (2 * deviation**2))
    channels = x.shape[1]

    def along(images: Images, shape: tuple[int, int]) -> Images:
        kernel = line.view(1, 1, *shape).expand(channels, -1, -1, -1)
        padding = (reach, 0) if shape[1] == 1 else (0, reach)
        return F.conv2d(images, kernel, padding=padding, groups=channels)

    def both(images: Images) -> Images:
        return along(along(images, (len(line), 1)), (1, len(line)))

    return both(x) / both(torch.ones_like(x[:1]))


def make_replacement(
    purifier: Purifier, gradient: GradientConfig, *, images: Images | None = None, ball: Ball | None = None
) -> Replacement:
    """Return the function that `gradient.replacement` names.

    Args:
        purifier: what is replaced.
        gradient: its mode is "replacement".
        images: that an imitation learns from.
        ball: the attack's budget, which it learns from too.

    Raises:
        RecipeError: the purifier has no masked model to reconstruct with, or no smooth step; no images to learn from; or a
            blur that is none.
    """
    name = type(purifier).__name__
    if gradient.replacement == "blur":
        if not (gradient.blur > 0 and math.isfinite(gradient.blur)):
            raise RecipeError(f"a blur's deviation is a positive number of pixels, not {gradient.blur}")
        return lambda x, keys, progress: gaussian_blur(x, gradient.blur)
    if gradient.replacement == "one-step":
        if not isinstance(purifier, DifferentiablePurifier):
            raise RecipeError(f"{name} offers no gradient of its own, so it has no step to stand for all: use the blur")
        single = replace(gradient, mode="tanh", steps=1)
        return lambda x, keys, progress: purifier.differentiable(x, keys=keys, gradient=single, progress=progress)
    if gradient.replacement == "reconstruction":
        if not isinstance(purifier, MaskedPurifier):
            raise RecipeError(f"{name} has no masked model whose reconstruction could replace it: use the blur")
        once = MaskedReconstruction(purifier.model, ReconstructionConfig(mask_ratio=purifier.mask_ratio))
        return lambda x, keys, progress: once.differentiable(x, keys=keys, gradient=gradient)
    if images is None or ball is None:
        raise RecipeError(
            "an imitation is learnt from images: pass some as `reference` to the Evaluator, or "
            "replacement=make_replacement(purifier, gradient, images=…, ball=…) to Defended"
        )
    network = imitate(purifier, images, ball)
    return lambda x, keys, progress: network(x)
