"""What purifiers have in common that are one function of an image and of keys: filters, codecs, single passes of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.purify.traits import Callback, Traits
from robustmim.rng import Keys
from robustmim.types import Images


class OnePass(ABC):
    """A purifier whose result is a function, differentiable as it is computed, of the images and of keyed draws.

    Attributes:
        randomised: whether it draws anything.
        steps: of a fixed formula, where it has any.
    """

    randomised: bool = False
    steps: int = 1

    @abstractmethod
    def purified(self, x: Images, keys: Keys) -> Images:
        """Return the purified images; recorded for gradients where they are asked for.

        Args:
            x: `[B, C, H, W]` in [0, 1], at least one.
            keys: one per sample.

        Raises:
            InputError: a size that it does not take.
        """

    @property
    def traits(self) -> Traits:
        """What an attacker must know; no gradient is taken while purifying."""
        return Traits(randomised=self.randomised, optimises_at_test_time=False, steps=self.steps)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images `[B, C, H, W]` in [0, 1]; `callback` is told nothing, for there are no steps to follow.

        Raises:
            InputError: images out of range, not finite, or of a size that it does not take.
        """
        if len(x) == 0:
            return x
        check_images(x)
        with torch.no_grad():
            return self.purified(x.detach(), keys)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient, whatever the mode.

        Raises:
            InputError: as above.
        """
        check_images(x)
        return self.purified(x, keys)
