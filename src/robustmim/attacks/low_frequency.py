"""PGD among low frequencies: every direction is stripped of all but the lowest of its cosine transform.

After Guo, Frank and Weinberger, "Low Frequency Adversarial Perturbation" (UAI 2019), and Sharma, Ding and Brubaker, "On
the Effectiveness of Low Frequency Perturbations" (IJCAI 2019). Defences that smooth, denoise or repaint an image undo
high frequencies first; a perturbation that has none is what they are least prepared for.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels


def _lowest(size: int, share: float) -> Float[Tensor, "size size"]:
    """Return the projection onto the lowest `share` of the `size` cosines of the orthonormal DCT-II, one at least."""
    count = max(1, round(share * size))
    frequency, place = torch.arange(count).double()[:, None], torch.arange(size).double()[None]
    cosines = torch.cos(math.pi * frequency * (place + 0.5) / size)
    cosines = cosines / cosines.norm(dim=1, keepdim=True)
    return (cosines.T @ cosines).float()


def low_pass(images: Images, share: float) -> Images:
    """Return images without all but the lowest `share` of the frequencies along each side (Guo et al.'s r)."""
    rows, columns = (_lowest(size, share).to(images) for size in images.shape[2:])
    return rows @ images @ columns


@register("attack", "low-frequency")
class LowFrequency:
    """PGD with random start, gradient and step in the space of low frequencies; clips to ball and cube come after.

    In l2 only the clip to [0, 1] leaves that space. In l∞ the sign of the stripped gradient is stripped again, and the
    clip to ±ε leaves a little above it.

    Args:
        share: how many frequencies are kept along each side, as a fraction of all.
        steps, step_size, schedule, momentum, loss, random_start, restarts, drop: see `PGD`.

    Raises:
        RecipeError: a share that is not in (0, 1], or what `PGD` refuses.
    """

    norms = ("linf", "l2")
    black_box = False

    def __init__(
        self,
        *,
        share: float = 0.25,
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        momentum: float = 0.0,
        loss: str = "cross-entropy",
        random_start: bool = True,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        if not 0 < share <= 1:
            raise RecipeError(f"the share of low frequencies is in (0, 1], not {share}")
        self.share = share
        self.pgd = PGD(
            steps=steps,
            step_size=step_size,
            schedule=schedule,
            momentum=momentum,
            loss=loss,
            random_start=random_start,
            restarts=restarts,
            drop=drop,
        )

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return what `PGD` returns: the last iterate of each sample, or the one at which it fell."""
        return self.pgd.climb(target, x, y, ball, shape=lambda shift: low_pass(shift, self.share), callback=callback)
