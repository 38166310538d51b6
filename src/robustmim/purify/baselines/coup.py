"""COUP (Zhang et al. 2024): purification by diffusion that keeps away from the classifier's decision boundary.

The reverse process follows the score of the images plus the slope of the classifier's confidence, so that noise is taken
away and the class kept. With D the denoiser's estimate, the score at noise level σ is (D − x) / σ²; adding a slope to it is
the same as moving the estimate:

    D ← D + λ σ² ∇ₓ log max_y p(y | ·)

Every solver of the reverse process can so be guided. The classifier is the one that is defended, as it is: it was not trained
on noise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from robustmim.config import DiffusionConfig, GradientConfig, Solver, Spacing
from robustmim.errors import RecipeError
from robustmim.models.edm import Denoiser, per_pixel, to_unit
from robustmim.models.masked import freeze
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.traits import Callback, Traits
from robustmim.recompute import recorded, slopes
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample, Signed


class _Guided:
    """A denoiser whose estimate is moved towards more confidence."""

    classes = 0

    def __init__(self, model: Denoiser, classifier: nn.Module, guidance: float, through: str) -> None:
        self._model, self._classifier = model, classifier
        self._guidance, self._through = guidance, through

    def denoise(self, noised: Signed, sigma: PerSample, *, labels: Labels | None = None) -> Signed:
        twice = recorded(noised)
        if self._through == "noised":  # the confidence does not pass the denoiser: its slope needs no graph of it
            estimate = self._model.denoise(noised, sigma)
        with slopes(twice=twice):
            point = noised if twice else noised.detach().requires_grad_()
            if self._through == "noised":
                seen = point / (1 + per_pixel(sigma).square()).sqrt()
            else:
                seen = estimate = self._model.denoise(point, sigma)
            confidence = self._classifier(to_unit(seen)).log_softmax(1).amax(1)
            (slope,) = torch.autograd.grad(confidence.sum(), point, create_graph=twice)
            guided = estimate + self._guidance * per_pixel(sigma).square() * slope
        return guided if twice else guided.detach()


@register("purifier", "coup")
class COUP:
    """Diffuse, and walk back guided by the classifier's confidence.

    Args:
        model: any `Denoiser`; it is frozen and put into evaluation mode.
        classifier: images in [0, 1] → logits; the same.
        guidance: λ, for images in [-1, 1]. The paper's value is not known to us.
        through: what the classifier sees: the noised image, scaled as in DDPM, or the estimate of the clean one (ours), whose
            slope then also goes through the denoiser.
        sigma, steps, final_sigma, solver, spacing: of the diffusion; by default DiffPure's SDE from t = 0.1.

    Raises:
        RecipeError: a negative guidance, no step, or noise levels that do not fall.
    """

    def __init__(
        self,
        *,
        model: Denoiser,
        classifier: nn.Module,
        guidance: float = 1.0,
        through: Literal["noised", "estimate"] = "noised",
        sigma: float = 0.34,
        steps: int = 100,
        final_sigma: float = 0.001,
        solver: Solver = "vp-sde",
        spacing: Spacing = "vp",
    ) -> None:
        if guidance < 0:
            raise RecipeError(f"coup: guidance raises the confidence, so it is not negative, but here {guidance}")
        freeze(classifier)
        if isinstance(model, nn.Module):
            freeze(model)
        config = DiffusionConfig(sigma=sigma, steps=steps, final_sigma=final_sigma, solver=solver, spacing=spacing)
        self._diffusion = DiffusionPurifier(_Guided(model, classifier, guidance, through), config)

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(randomised=True, optimises_at_test_time=True, steps=self._diffusion.config.steps)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images `[B, C, H, W]` in [0, 1]; `callback` is told what `DiffusionPurifier` tells.

        Raises:
            InputError: images out of range, not finite, or of a size the networks do not take.
        """
        return self._diffusion(x, keys=keys, callback=callback)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient, the guidance included; see `DiffusionPurifier`.

        Raises:
            InputError: as above.
        """
        return self._diffusion.differentiable(x, keys=keys, gradient=gradient, progress=progress)
