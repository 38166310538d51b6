"""The median filter (Xu, Evans and Qi 2018, feature squeezing): each pixel becomes the median of those around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "median")
class MedianFilter:
    """Replace each pixel by the median of a square window, channel by channel; the border is repeated beyond itself.

    Args:
        size: of the window in pixels. For an even one, as in the paper (2), the window reaches further up and left, and of
            the two values in the middle the larger one is taken, as SciPy does.

    Raises:
        RecipeError: no window.
    """

    def __init__(self, *, size: int = 3) -> None:
        if size < 1:
            raise RecipeError(f"median: the window has at least one pixel, not {size}")
        self.size = size

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(randomised=False, optimises_at_test_time=False, steps=1)

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return filtered images `[B, 3, H, W]` in [0, 1]; nothing is drawn, and `callback` is told nothing.

        Raises:
            InputError: images out of range or not finite.
        """
        if len(x) == 0:
            return x
        check_images(x)
        with torch.no_grad():
            return self._filtered(x.detach())

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return filtered images with their exact gradient, whatever the mode: all of it goes to the pixel that was chosen.

        Raises:
            InputError: as above.
        """
        check_images(x)
        return self._filtered(x)

    def _filtered(self, x: Images) -> Images:
        before = self.size // 2
        after = self.size - 1 - before
        padded = F.pad(x, (before, after, before, after), mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(-2)
        return windows.kthvalue(self.size**2 // 2 + 1, dim=-1).values
