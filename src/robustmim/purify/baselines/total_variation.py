"""Total variation denoising (Rudin, Osher and Fatemi 1992): the image nearest by whose colours change least from pixel to pixel.

    minimise ½ ‖u − x‖² + λ Σ |∇u|                                                    (Chambolle 2004, Eq. 6)

channel by channel, |∇u| being the length of the differences to the next row and the next column. As a purifier: Guo et al.
2018, who also drop pixels at random; here is the denoising alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustmim.errors import RecipeError
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images

_STEP = 0.25  # Chambolle proves convergence up to 1/8 and finds it up to 1/4, which is twice as fast


def _differences(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences to the next row and to the next column, 0 at the far border (Chambolle 2004, section 2)."""
    return F.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1)), F.pad(u[..., 1:] - u[..., :-1], (0, 1))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """Return minus the adjoint of `_differences`."""
    down, right = down[..., :-1, :], right[..., :-1]
    return F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0)) + F.pad(right, (0, 1)) - F.pad(right, (1, 0))


@register("purifier", "total-variation")
class TotalVariation(OnePass):
    """Denoise by total variation: a fixed number of steps of Chambolle's projection algorithm.

    Args:
        weight: λ, in pixel fractions; a flat spot that is a square of n pixels a side loses about 4 λ / n of its contrast.
        steps: of the algorithm; the image's mean is kept in each of them.

    Raises:
        RecipeError: a weight that is not above zero, or no step.
    """

    def __init__(self, *, weight: float = 0.05, steps: int = 50) -> None:
        if not weight > 0:
            raise RecipeError(f"total-variation: the weight is above 0, but this one is {weight}")
        if steps < 1:
            raise RecipeError(f"total-variation takes at least one step, not {steps}")
        self.weight, self.steps = weight, steps

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return denoised images, with the gradient of the steps taken; see `OnePass`."""
        # p, the dual variable: one vector for each pixel and channel, of length 1 at most (Chambolle 2004, Eq. 9).
        down, right = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            along_down, along_right = _differences(_divergence(down, right) - x / self.weight)
            # The tiny number keeps the derivative of the length finite where nothing changes.
            length = (along_down.square() + along_right.square() + 1e-20).sqrt()
            shrink = 1 + _STEP * length
            down, right = (down + _STEP * along_down) / shrink, (right + _STEP * along_right) / shrink
        return (x - self.weight * _divergence(down, right)).clamp(0, 1)
