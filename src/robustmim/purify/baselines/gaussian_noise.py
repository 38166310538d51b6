"""Gaussian noise and nothing else: what part of a defence is mere randomness?"""

from __future__ import annotations

from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "gaussian-noise")
class GaussianNoise:
    """Add noise and clip to [0, 1].

    Args:
        sigma: its standard deviation in pixel fractions.

    Raises:
        RecipeError: a negative deviation.
    """

    def __init__(self, *, sigma: float = 8 / 255) -> None:
        if sigma < 0:
            raise RecipeError(f"gaussian-noise: sigma is a standard deviation, but this one is {sigma}")
        self.sigma = sigma

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(randomised=True, optimises_at_test_time=False, steps=1)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return noisy images `[B, C, H, W]` in [0, 1]; `callback` is told nothing, for there are no steps.

        Raises:
            InputError: images out of range or not finite.
        """
        check_images(x)
        return (x + self.sigma * keys.fold("noise").normal(*x.shape[1:]).to(x)).clamp(0, 1)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return noisy images with their exact gradient, whatever the mode."""
        return self(x, keys=keys)
