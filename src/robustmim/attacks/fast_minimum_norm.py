"""FMN: the nearest adversarial image by steps in a ball that shrinks while it succeeds (Pintor et al. 2021).

"Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints" (NeurIPS 2021), Algorithm 1, untargeted. Each
iteration moves ε, then takes a normalised gradient step and projects onto the ball of radius ε and onto [0, 1]. It needs
no guess of a budget, so one run tells the accuracy at every budget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustmim.attacks.objectives import margin
from robustmim.attacks.search import Closest, adversarial, limited
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball, project_l1
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_OVERSHOOT = 1.05  # a departure: aimed at the boundary itself, iterates approach it and need not ever cross
_SMALLEST_STEP = 1e-2  # α_K / α_0
_SMALLEST_CHANGE = 1e-3  # γ_K
_CLEAR = 1e-4
"""Share of the logits' range at the image by which a wrong one must lead: at the boundary another batch's rounding decides."""
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def _onto(delta: Images, radius: PerSample, norm: str) -> Images:
    """Project each perturbation onto a ball of its own radius."""
    if norm == "linf":
        return delta.clamp(-_wide(radius), _wide(radius))
    if norm == "l1":
        return project_l1(delta, radius)
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
    return delta * _wide((radius / length).clamp(max=1))


@register("attack", "fast-minimum-norm")
class FastMinimumNorm:
    """FMN in l∞, l2 and l1.

    Args:
        steps: iterations, one gradient each.
        step_size: α₀, length in l2 of the first step, as a share of √(dimension of the image) / 55.4: at 3 × 32 × 32 the
            share is the length. A cosine takes it to a hundredth.
        change: γ₀, the factor by which the ball first shrinks or grows; a cosine takes it to 0.001.
        drop: stop working on a sample once an adversarial image lies in the ball; not where distances are asked for.

    Raises:
        RecipeError: fewer than one step, a step size that is not above zero, or a factor outside (0, 1).
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(self, *, steps: int = 100, step_size: float = 1.0, change: float = 0.05, drop: bool = True) -> None:
        if steps < 1 or not step_size > 0 or not 0 < change < 1:
            raise RecipeError(
                "FMN takes at least one step, a step size above zero and a change of the ball between 0 and 1, not "
                f"{steps}, {step_size} and {change}"
            )
        self.steps, self.step_size, self.change, self.drop = steps, step_size, change, drop

    @property
    def seeks_the_nearest(self) -> bool:
        """Whether distances of its results are of use: not where it stops at the first one in the ball."""
        return not self.drop

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the nearest adversarial image found, limited to the ball; else the image as it was.

        For a random defence an image is adversarial, and the ball shrinks, if all of a query's draws miss, and fresh ones
        too. The callback is told of the samples still at work, and of their places in the batch, "samples"; its value is the
        distance found so far.
        """
        closest = Closest(x.clone(), torch.full((len(x),), torch.inf, device=x.device))
        radius, lead = torch.zeros_like(closest.distance), torch.zeros_like(closest.distance)
        ever = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        shift, places = torch.zeros_like(x), torch.arange(len(x), device=x.device)
        stops = self.drop and target.drop and math.isfinite(ball.eps)
        random = target.randomised and target.known is None
        for step in range(self.steps + 1):
            part, center, labels, now = target[places], x[places], y[places], x[places] + shift[places]
            slope = part.gradient(now, labels, margin, step, progress=step / (self.steps + 1))
            distance, sure = ball.distance(now, center), adversarial(part, now, labels, slope, step)
            # Where half of the draws miss, all of them hardly ever do: a ball that shrank there would stay where nothing is sure.
            wrong = sure if random else slope.missed >= 0.5
            if step == 0:
                lead = _CLEAR * (slope.logits.amax(1) - slope.logits.amin(1))
            sure &= slope.value > lead[places]
            closest.offer(places[sure], now[sure], distance[sure])
            if callback is not None:
                told = {"step": step, "x": now, "value": closest.distance[places], "gradient": slope.ascent}
                callback(told | {"center": center, "ball": ball, "samples": places})
            going = closest.distance[places] > (ball.eps if stops else 0.0)
            places, wrong, distance, now = places[going], wrong[going], distance[going], now[going]
            if step == self.steps or not len(places):
                break
            value, ascent = slope.value[going], slope.ascent[going]
            change = _cosine(self.change, _SMALLEST_CHANGE, step / self.steps)
            # Lines 5 to 12: shrink to what was reached, grow after a failure, or guess the distance to the boundary; and
            # grow then too (a departure), since what [0, 1] cuts off would bring the same guess again and again.
            length = torch.linalg.vector_norm(ascent.flatten(1), ord=_DUAL[ball.norm], dim=1)
            guess = distance - _OVERSHOOT * value / length.clamp(min=1e-12)
            grown = radius[places] * (1 + change)
            grown = torch.where(ever[places], grown, torch.maximum(grown, guess))
            shrunk = torch.minimum(radius[places] * (1 - change), distance)
            radius[places] = torch.where(wrong, shrunk, grown)
            ever[places] |= wrong
            size = self.step_size * math.sqrt(x[0].numel() / 3072) * _cosine(1.0, _SMALLEST_STEP, step / self.steps)
            unit = ascent / _wide(ascent.flatten(1).norm(dim=1).clamp(min=1e-12))
            moved = _onto(now - x[places] + size * unit, radius[places], ball.norm)
            shift[places] = (x[places] + moved).clamp(0, 1) - x[places]
        return limited(ball, closest.images, x)
