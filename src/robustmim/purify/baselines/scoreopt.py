"""ScoreOpt (Zhang et al. 2023): at test time, optimise the image until a diffusion model finds it likely.

Two forms. "image" (ScoreOpt-O) moves the image itself so that it is denoised to itself, under fresh noise in each step:

    minimise ‖D(x + σ n; σ) − x‖² over x

"noised" (ScoreOpt-N) moves the noised image x + σ n so that the noise seen in it is the noise that was added, and returns what
it is denoised to:

    minimise ‖(z − D(z; σ)) / σ − n‖² over z, from z = x + σ n; return D(z; σ)

The optimiser is Adam; the slope goes through the denoiser, which is not detached. No weights and no terms beside these.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.geometry import EVERYWHERE
from robustmim.models.edm import Denoiser, per_pixel, to_signed, to_unit
from robustmim.models.masked import freeze
from robustmim.purify.amrm import padded_batch
from robustmim.purify.traits import Callback, Traits
from robustmim.recompute import recomputed, recorded, slopes
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, PerSample, Signed

_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8  # Adam's
_LEAST = 1e-30  # under the root: its slope at zero has no end


@register("purifier", "scoreopt")
class ScoreOpt:
    """Optimise an image by the score of a diffusion model.

    Args:
        model: any `Denoiser`; it is frozen and put into evaluation mode.
        form: what is optimised, "image" (ScoreOpt-O) or "noised" (ScoreOpt-N).
        steps: of Adam.
        learning_rate: its rate, for images in [-1, 1].
        sigma: noise level.
        spread: each step's level is drawn from sigma ± spread, for "image"; the noised image has one level.

    Raises:
        RecipeError: no step, or levels that are not above 0.
    """

    def __init__(
        self,
        *,
        model: Denoiser,
        form: Literal["image", "noised"] = "image",
        steps: int = 5,
        learning_rate: float = 0.1,
        sigma: float = 0.25,
        spread: float = 0.1,
    ) -> None:
        if steps < 1:
            raise RecipeError(f"scoreopt: optimisation takes at least one step, not {steps}")
        if not 0 <= spread < sigma:
            raise RecipeError(f"scoreopt: noise levels are above 0, but here sigma is {sigma} and the spread {spread}")
        if isinstance(model, nn.Module):
            freeze(model)
        self.model, self.form, self.steps = model, form, steps
        self.learning_rate, self.sigma, self.spread = learning_rate, sigma, spread

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(randomised=True, optimises_at_test_time=True, steps=self.steps)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample, for its noise and noise levels.
            callback: told each step as by `AMRMPure`, before it is taken: "x" is what is optimised, in [0, 1].

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        if len(x) == 0:
            return x
        check_images(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._purified(x.detach().clone(), keys, self.steps, callback)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient, through every step of Adam, whatever the mode.

        Memory does not grow with the steps: each is computed again on the way back. Of the other settings `steps` counts.
        Adam's first step is all but the sign of a slope, whose derivative is zero: an attacker may do better with fewer steps
        or the identity.

        Raises:
            InputError: as above.
        """
        check_images(x)
        return self._purified(x, keys, self.steps if gradient.steps is None else gradient.steps, None)

    def _purified(self, x: Images, keys: Keys, steps: int, callback: Callback | None) -> Images:
        size, given = len(x), x
        x, keys = padded_batch(x, keys)
        point = to_signed(x)
        level = x.new_full((len(x),), self.sigma)
        if self.form == "noised":
            point = point + self.sigma * keys.fold("noise").normal(*x.shape[1:]).to(x)
        first, second = torch.zeros_like(point), torch.zeros_like(point)
        for step in range(steps):
            before = point
            point, first, second, slope, value = recomputed(self._step, point, first, second, step, keys)
            if callback is not None:
                callback(
                    {
                        "step": step,
                        "x": to_unit(before[:size]).clamp(0, 1),
                        "value": value[:size],
                        "gradient": 2 * slope[:size],
                        "center": given,
                        "ball": EVERYWHERE,
                    }
                )
        if self.form == "noised":
            point = self.model.denoise(point, level)
        return to_unit(point[:size]).clamp(0, 1)

    def _loss(self, point: Signed, step: int, keys: Keys) -> PerSample:
        """Return the mean of the squares over the pixels of each sample."""
        if self.form == "noised":
            noise = keys.fold("noise").normal(*point.shape[1:]).to(point)
            seen = (point - self.model.denoise(point, point.new_full((len(point),), self.sigma))) / self.sigma
            return (seen - noise).square().mean((1, 2, 3))
        drawn = keys.fold("step", step)
        level = self.sigma + self.spread * (2 * drawn.fold("level").uniform(1)[:, 0].to(point) - 1)
        noise = drawn.fold("noise").normal(*point.shape[1:]).to(point)
        return (self.model.denoise(point + per_pixel(level) * noise, level) - point).square().mean((1, 2, 3))

    def _step(
        self, point: Signed, first: Tensor, second: Tensor, step: int, keys: Keys
    ) -> tuple[Signed, Tensor, Tensor, Signed, PerSample]:
        """Take one step of Adam; return point and moments after it, and slope and value before."""
        twice = recorded(point)
        with slopes(twice=twice):
            leaf = point if twice else point.detach().requires_grad_()
            value = self._loss(leaf, step, keys)
            (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=twice)
        first = _FIRST * first + (1 - _FIRST) * slope
        second = _SECOND * second + (1 - _SECOND) * slope.square()
        scale = (second / (1 - _SECOND ** (step + 1))).clamp(min=_LEAST).sqrt() + _SMALL
        moved = point - self.learning_rate / (1 - _FIRST ** (step + 1)) * first / scale
        return moved, first, second, slope.detach(), value.detach()
