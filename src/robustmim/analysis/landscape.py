"""The loss on a plane through an image: the direction that an attack would take, and a random one.

A surface that rises smoothly along the gradient is what attacks by gradients need. One that is flat at the image and cliffs
elsewhere, or that is rough, hides its slope from them (Carlini et al. 2019, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.target import Target
from robustmim.geometry import Ball
from robustmim.types import Images, Labels

Plane = Float[torch.Tensor, "batch side side"]


@dataclass(frozen=True)
class Landscape:
    """Loss over a plane, for each image; row i, column j is the point places[i] along the gradient and places[j] across.

    Attributes:
        places: from -1 to 1, in budgets.
        loss: cross-entropy, averaged over the draws.
        missed: share of the draws that were wrong.
    """

    places: list[float]
    loss: Plane
    missed: Plane


def landscape(target: Target, x: Images, y: Labels, ball: Ball, *, side: int = 21) -> Landscape:
    """Measure the loss on a grid, every point under the same draws of the defence.

    Args:
        target: the defence as an attacker sees it; its draws are averaged over.
        x: `[B, C, H, W]` in [0, 1]; points beyond are clipped to it.
        y: true classes `[B]`.
        ball: its radius is the unit of both directions, each the steepest step of its norm.
        side: points along each direction; odd, so that the image itself is one of them.
    """
    along = ball.steepest(target.gradient(x, y, cross_entropy, 0).ascent) * ball.eps
    across = ball.steepest(target.keys.fold("across").normal(*x.shape[1:]).to(x)) * ball.eps
    places = [2 * number / (side - 1) - 1 for number in range(side)]
    rows = []
    for first in places:
        points = [
            target.value((x + first * along + second * across).clamp(0, 1), y, cross_entropy, 0) for second in places
        ]
        rows.append((torch.stack([p.value for p in points], 1), torch.stack([p.missed for p in points], 1)))
    loss, missed = (torch.stack(planes, 1) for planes in zip(*rows, strict=True))
    return Landscape(places, loss, missed)
