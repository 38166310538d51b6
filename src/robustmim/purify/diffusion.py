"""Purification by diffusion (DiffPure, Nie et al. 2022): add noise until it drowns the perturbation, then take it away.

AMRM-Pure compares itself with this on its own network, "MaskDiT/purification" (Table 16): nothing is hidden, nothing is
optimised. Any `Denoiser` will do. It is smooth, so its gradient is exact, and must be attacked through all of its steps;
memory does not grow with them, since each is computed again on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustmim.config import DiffusionConfig, GradientConfig
from robustmim.data.images import check_images
from robustmim.geometry import EVERYWHERE
from robustmim.models.edm import Denoiser, noise_grid, to_signed, to_unit
from robustmim.models.masked import freeze
from robustmim.models.sampling import walk_down
from robustmim.purify.amrm import padded_batch
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "diffusion")
class DiffusionPurifier:
    """Diffuse to a noise level and walk back.

    Args:
        model: any `Denoiser`; it is frozen and put into evaluation mode, and told no class.
        config: noise level, steps and solver.

    Raises:
        RecipeError: no step, or noise levels that do not fall.
    """

    def __init__(self, model: Denoiser, config: DiffusionConfig) -> None:
        noise_grid(config.steps, config.sigma, config.final_sigma, spacing=config.spacing)
        if isinstance(model, nn.Module):
            freeze(model)
        self.model, self.config = model, config

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(randomised=True, optimises_at_test_time=False, steps=self.config.steps)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample, for all of its noise.
            callback: told each reverse step as by `AMRMPure`: "x" is the estimate of the clean image, "value" its mean
                squared distance from the input, "gradient" the noise still seen in the image, in pixel fractions.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        size = len(x)
        if size == 0:
            return x
        check_images(x)
        x = x.detach().clone()

        def tell(state: dict[str, Any]) -> None:
            assert callback is not None
            estimate = to_unit(state["estimate"][:size]).clamp(0, 1)
            callback(
                {
                    "step": state["step"],
                    "x": estimate,
                    "value": (estimate - x).square().mean((1, 2, 3)),
                    "gradient": (state["x"] - state["estimate"])[:size] / 2,
                    "center": x,
                    "ball": EVERYWHERE,
                }
            )

        with torch.inference_mode(False), torch.no_grad():
            return self._purified(x, keys, self.config.steps, tell if callback else None)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient.

        There is no sign to smooth and no ball: every mode but "identity" means the exact gradient here. Of the other
        settings `steps` counts: an attacker may walk back in fewer steps than the defence (Lee and Kim 2023).

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample.
            gradient: not "identity", which `Defended` sees to.
            progress: of the attack; nothing is annealed.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        check_images(x)
        return self._purified(x, keys, self.config.steps if gradient.steps is None else gradient.steps, None)

    def _purified(self, x: Images, keys: Keys, steps: int, callback: Callback | None) -> Images:
        size, config = len(x), self.config
        x, keys = padded_batch(x, keys)
        noise = keys.fold("diffuse").normal(*x.shape[1:]).to(x)
        reached = walk_down(
            self.model.denoise,
            to_signed(x) + config.sigma * noise,
            noise_grid(steps, config.sigma, config.final_sigma, spacing=config.spacing),
            solver=config.solver,
            keys=keys,
            callback=callback,
        )
        return to_unit(reached[:size]).clamp(0, 1)
