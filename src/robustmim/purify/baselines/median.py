"""The median filter (Xu, Evans and Qi 2018, feature squeezing): each pixel becomes the median of those around it."""

from __future__ import annotations

import torch.nn.functional as F

from robustmim.errors import RecipeError
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "median")
class MedianFilter(OnePass):
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

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return filtered images; their exact gradient all goes to the pixel that was chosen; see `OnePass`."""
        before = self.size // 2
        after = self.size - 1 - before
        padded = F.pad(x, (before, after, before, after), mode="replicate")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(-2)
        return windows.kthvalue(self.size**2 // 2 + 1, dim=-1).values
