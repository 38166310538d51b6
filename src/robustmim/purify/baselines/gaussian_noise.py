"""Gaussian noise and nothing else: what part of a defence is mere randomness?"""

from __future__ import annotations

from robustmim.errors import RecipeError
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "gaussian-noise")
class GaussianNoise(OnePass):
    """Add noise and clip to [0, 1].

    Args:
        sigma: its standard deviation in pixel fractions.

    Raises:
        RecipeError: a negative deviation.
    """

    randomised = True

    def __init__(self, *, sigma: float = 8 / 255) -> None:
        if sigma < 0:
            raise RecipeError(f"gaussian-noise: sigma is a standard deviation, but this one is {sigma}")
        self.sigma = sigma

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return noisy images; see `OnePass`."""
        return (x + self.sigma * keys.fold("noise").normal(*x.shape[1:]).to(x)).clamp(0, 1)
