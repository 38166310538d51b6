"""DeepFool: step onto the nearest linearised decision boundary, again and again, until it is crossed.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (CVPR 2016),
Algorithm 2. One departure: a step ends at the point of the cube [0, 1] nearest to that boundary, which is the paper's
step wherever the cube is not in the way.
"""

from __future__ import annotations

import torch

from robustmim.attacks.fab import nearest_plane, onto_plane
from robustmim.attacks.search import Found, adversarial, likeliest, limited
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels


@register("attack", "deepfool")
class DeepFool:
    """DeepFool in the ball's norm. It ends where it first crosses the boundary and makes no use of the rest of the ball.

    Args:
        steps: iterations at most; each asks for one gradient for each class.
        overshoot: η, by which the sum of the steps is lengthened so that it ends behind the boundary.
        targets: how many wrong classes are considered, the likeliest of the image.

    Raises:
        RecipeError: fewer than one step or class, or a negative overshoot.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(self, *, steps: int = 50, overshoot: float = 0.02, targets: int = 9) -> None:
        if steps < 1 or targets < 1 or overshoot < 0:
            raise RecipeError(
                f"DeepFool takes a step and a class at least and no negative overshoot, not {steps}, {targets}, {overshoot}"
            )
        self.steps, self.overshoot, self.targets = steps, overshoot, targets

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return where the boundary was crossed, projected onto the ball if that is beyond it; see `Attack`.

        A sample that never crosses it ends where its last step led, limited likewise. The callback is told of the
        samples still at work, and of their places in the batch, "samples"; its value is the nearest class's logit minus
        the true one's.
        """
        found = Found.nothing(x)
        likely = likeliest(target, x, y, self.targets, found)
        result, shift = x.clone(), torch.zeros_like(x)
        places = (~found.fallen).nonzero()[:, 0]
        for step in range(self.steps):
            if not len(places):
                break
            part, now, center, labels = target[places], result[places], x[places], y[places]
            slope = nearest_plane(part, now, labels, likely[places], step + 1, step / self.steps, ball)
            if callback is not None:
                told = {"step": step, "x": now, "value": slope.value, "gradient": slope.ascent}
                callback(told | {"center": center, "ball": ball, "samples": places})
            going = ~adversarial(part, now, labels, slope, step + 1)
            places, now, center = places[going], now[going], center[going]
            gap = slope.value[going].abs()
            shift[places] += onto_plane(now, slope.ascent[going], gap, ball.norm) - now
            result[places] = (center + (1 + self.overshoot) * shift[places]).clamp(0, 1)
        return limited(ball, result, x)
