"""SPSA: ascent along slopes guessed from answers alone (Uesato et al. 2018).

"Adversarial Risk and the Dangers of Evaluating Against Weak Attacks" (ICML 2018), Algorithm 1: the slope is the mean over
random signs v of v (f(x + c v) - f(x - c v)) / 2c, and Adam (Kingma and Ba 2015) climbs along it. It sees no gradient, so a
gradient that is hidden does not stop it; what it finds beyond white-box attacks shows that they do not work.
"""

from __future__ import annotations

import torch

from robustmim.attacks.objectives import margin
from robustmim.attacks.search import bounded
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_DECAY, _DECAY_SQUARES, _TINY = 0.9, 0.999, 1e-8  # Adam's


@register("attack", "spsa")
class SPSA:
    """Simultaneous perturbation, in l∞ and l2, on the margin.

    For a random defence both ends of a difference are asked under the same draws.

    Args:
        steps: of ascent.
        directions: random signs of one slope; each costs two queries.
        step_size: Adam's, as a fraction of the budget per pixel.
        reach: c, how far the ends of a difference are from the image, in pixel fractions.

    Raises:
        RecipeError: fewer than one step or direction, or a length that is not above zero.
    """

    norms = ("linf", "l2")
    black_box = True

    def __init__(self, *, steps: int = 20, directions: int = 32, step_size: float = 0.25, reach: float = 0.01) -> None:
        if steps < 1 or directions < 1 or not step_size > 0 or not reach > 0:
            raise RecipeError(
                "SPSA takes a step and a direction at least, and a step size and a reach above zero, not "
                f"{steps}, {directions}, {step_size} and {reach}"
            )
        self.steps, self.directions, self.step_size, self.reach = steps, directions, step_size, reach

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the image at which each sample fell, or its last iterate; see `Attack`."""
        inside = bounded(ball, x)
        # A budget in l2 is shared by all pixels.
        pixel = inside.eps / (x[0].numel() ** 0.5 if ball.norm == "l2" else 1.0)
        result = x.clone()
        places = torch.arange(len(x), device=x.device)
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(self.steps + 1):
            part, labels, now = target[places], y[places], result[places]
            query = step * (self.directions + 1)
            asked = part.value(now, labels, margin, query, progress=step / (self.steps + 1))
            if callback is not None:
                told = {"step": step, "x": now, "value": asked.value, "center": x[places], "ball": ball}
                callback(told | {"samples": places})
            going = ~part.fallen(now, labels, asked, query)
            places = places[going]
            if step == self.steps or not len(places):
                break
            slope = self._slope(target[places], result[places], y[places], query + 1, step / (self.steps + 1))
            first[places] = _DECAY * first[places] + (1 - _DECAY) * slope
            second[places] = _DECAY_SQUARES * second[places] + (1 - _DECAY_SQUARES) * slope.square()
            mean = first[places] / (1 - _DECAY ** (step + 1))
            root = (second[places] / (1 - _DECAY_SQUARES ** (step + 1))).sqrt()
            moved = result[places] + self.step_size * pixel * mean / (root + _TINY)
            result[places] = ball.project(moved, x[places])
        return result

    def _slope(self, part: Target, now: Images, y: Labels, query: int, progress: float) -> Images:
        slope = torch.zeros_like(now)
        for number in range(self.directions):
            drawn = part.keys.fold("direction", query + number)
            sign = drawn.signs(*now.shape[1:]).to(now)

            def at(end: Images, ask: int = query + number) -> PerSample:
                return part.value(end.clamp(0, 1), y, margin, ask, progress=progress).value

            # One answer that is no number must not take the image with it.
            rise = (at(now + self.reach * sign) - at(now - self.reach * sign)).nan_to_num(0.0, 0.0, 0.0)
            slope += sign * (rise / (2 * self.reach * self.directions)).view(-1, 1, 1, 1)
        return slope
