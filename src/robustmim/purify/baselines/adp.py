"""Adaptive denoising purification (Yoon, Hwang and Lee 2021): noise is added, then a few steps climb the score.

    x ← x + a (D(x; σ) − x),    D(x; σ) − x = σ² ∇ log p_σ(x)                         (its Eq. 5; Tweedie's formula)

whose length a is chosen anew in each step: the slope of the score along itself, found by a small probe, tells how far off the
peak is, and a is a fraction of that way (its section 3.3). The paper averages the classifier's answers over ten noisy copies;
here one copy is one draw, and draws are averaged where a defence is judged. It has a score network of its own (NCSNv2), whose
weights are not published: here any denoiser gives the score, a diffusion model's or a masked model's prediction of each pixel
from the others, and the paper's numbers are not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustmim.config import GradientConfig, ReconstructionConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.geometry import EVERYWHERE
from robustmim.models.edm import Denoiser, to_signed, to_unit
from robustmim.models.masked import MaskedModel, freeze
from robustmim.purify.amrm import padded_batch
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.traits import Callback, Traits
from robustmim.recompute import recomputed
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


def pixel_denoiser(model: nn.Module, sigma: float, mask_ratio: float) -> Callable[[Images, Keys], Images]:
    """Return what a model takes for the clean image, as a function of a noised one and of keys; both in units of [0, 1].

    Args:
        model: a `Denoiser`, or a masked model, which predicts each cell while it is hidden and is not told the noise.
        sigma: deviation of the noise in pixel fractions.
        mask_ratio: fraction of the cells that a masked model predicts at a time.

    Raises:
        RecipeError: a model that can do neither, or a ratio outside (0, 1).
    """
    if isinstance(model, Denoiser):
        denoiser = model

        def estimate(x: Images, keys: Keys) -> Images:
            return to_unit(denoiser.denoise(to_signed(x), x.new_full((len(x),), 2 * sigma)))

        return estimate
    if isinstance(model, MaskedModel):
        once = MaskedReconstruction(model, ReconstructionConfig(mask_ratio=mask_ratio))
        return lambda x, keys: once.predict(x, keys)[0]
    raise RecipeError(f"a score comes from a denoiser or a masked model, but a {type(model).__name__} is neither")


@register("purifier", "adp")
class AdaptiveDenoisingPurification:
    """Add noise, then climb the score by steps of adaptive length.

    The defaults are the released code's for CIFAR-10. It gives lengths in units of the score; here they are divided by σ², so
    that a length of 1 goes all the way to the denoiser's estimate.

    Args:
        model: a `Denoiser` or a masked model; it is frozen.
        noise: deviation of the noise added, in pixel fractions.
        sigma: noise level σ of the score, in pixel fractions.
        steps: at most.
        fraction: of the way to the peak (λ).
        probe: length of the probe, which must be small.
        shortest, longest: of a step.
        stop: an image whose next step is no longer than this is done.
        mask_ratio: see `pixel_denoiser`.

    Raises:
        RecipeError: no step, a noise level or a length that is not above zero, or a model that gives no score.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        noise: float = 0.25,
        sigma: float = 0.25,
        steps: int = 10,
        fraction: float = 0.05,
        probe: float = 0.016,
        shortest: float = 0.00016,
        longest: float = 1.6,
        stop: float = 0.016,
        mask_ratio: float = 0.5,
    ) -> None:
        if steps < 1:
            raise RecipeError(f"adp takes at least one step, not {steps}")
        if noise < 0 or not sigma > 0:
            raise RecipeError(f"adp: noise is not below 0 and sigma above it, but here {noise} and {sigma}")
        if not (fraction > 0 and probe > 0 and 0 < shortest <= longest):
            raise RecipeError(
                "adp: fraction, probe, shortest and longest are above 0, and shortest is not above longest"
            )
        self._estimate = pixel_denoiser(freeze(model), sigma, mask_ratio)
        self.noise, self.sigma, self.steps, self.fraction, self.probe = noise, sigma, steps, fraction, probe
        self.shortest, self.longest, self.stop = shortest, longest, stop

    @property
    def traits(self) -> Traits:
        """What an attacker must know; no gradient is taken while purifying."""
        return Traits(randomised=True, optimises_at_test_time=False, steps=self.steps)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: one per sample, for noise and masks.
            callback: told each step as by `AMRMPure`: "gradient" is what the denoiser would take away, x − D, "value" its mean
                square.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        if len(x) == 0:
            return x
        check_images(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._climbed(x.detach().clone(), keys, self.steps, callback)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient, that of the lengths included, in any mode but the identity.

        Memory does not grow with the steps, since each is computed again on the way back.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: one per sample.
            gradient: `steps` counts: an attacker may take fewer than the defence.
            progress: of the attack; nothing is annealed.

        Raises:
            InputError: as above.
        """
        check_images(x)
        return self._climbed(x, keys, self.steps if gradient.steps is None else gradient.steps, None)

    def _climbed(self, x: Images, keys: Keys, steps: int, callback: Callback | None) -> Images:
        size = len(x)
        center = x
        x, keys = padded_batch(x, keys)
        x = (x + self.noise * keys.fold("noise").normal(*x.shape[1:]).to(x)).clamp(0, 1)
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for step in range(steps):
            before = x
            x, going, away = recomputed(self._step, x, going, keys.fold("step", step))
            if callback is not None:
                callback(
                    {
                        "step": step,
                        "x": before[:size],
                        "value": away[:size].square().mean((1, 2, 3)),
                        "gradient": away[:size],
                        "center": center,
                        "ball": EVERYWHERE,
                    }
                )
            if not going.any():
                break
        return x[:size]

    def _step(self, x: Images, going: Tensor, keys: Keys) -> tuple[Images, Tensor, Images]:
        """Return the next images, which of them go on, and what the denoiser would have taken away."""
        rise = self._estimate(x, keys) - x
        probed = x + self.probe * rise
        # The same draws, so that the two differ by the probe alone.
        risen = self._estimate(probed, keys) - probed
        # Where the score falls linearly, to zero at the peak, this is 1 − probe / (way to the peak).
        alike = (rise * risen).sum((1, 2, 3)) / rise.square().sum((1, 2, 3)).clamp(min=1e-30)
        length = (self.fraction * self.probe / (1 - alike)).clamp(self.shortest, self.longest)
        going = going & (length > self.stop)
        moved = (x + length.view(-1, 1, 1, 1) * rise).clamp(0, 1)
        return torch.where(going.view(-1, 1, 1, 1), moved, x), going, -rise
