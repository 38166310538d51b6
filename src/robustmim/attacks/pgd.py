"""Projected gradient descent (Madry et al. 2018), with a schedule, momentum and restarts if asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from robustmim.attacks.objectives import Loss, named_loss
from robustmim.attacks.target import Target
from robustmim.descent import projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

Aim = Callable[[Bool[Tensor, " batch"]], tuple[Target, Loss]]
"""Samples at work → what is asked about them, and what is climbed of its scores."""


@register("attack", "pgd")
class PGD:
    """Untargeted PGD. Every step is projected after it is taken; nothing is differentiated through the projection.

    Args:
        steps: iterations of each restart.
        step_size: step as a fraction of the budget.
        schedule: the step over the iterations: constant, or a cosine to zero.
        l2_step: direction of the steps in l2: the unit vector along the gradient, or its sign in each pixel, which is weaker
            but what the code of ADBM (Li et al. 2025) takes.
        momentum: weight of earlier directions (MI-FGSM, Dong et al. 2018).
        loss: cross-entropy, margin or dlr.
        random_start: begin at a random point of the ball; later restarts always do.
        restarts: runs; a sample that fell in one is left alone by the next.
        drop: stop working on a sample once it has fallen; otherwise all steps are taken (as papers' PGD does).

    Raises:
        RecipeError: no such loss, or fewer than one step or restart.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self,
        *,
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        l2_step: Literal["unit", "sign"] = "unit",
        momentum: float = 0.0,
        loss: str = "cross-entropy",
        random_start: bool = True,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        if steps < 1 or restarts < 1:
            raise RecipeError(f"PGD takes at least one step and one restart, not {steps} and {restarts}")
        self.steps, self.step_size, self.schedule, self.momentum = steps, step_size, schedule, momentum
        self.l2_step = l2_step
        self.loss, self.random_start, self.restarts, self.drop = named_loss(loss), random_start, restarts, drop

    def _step(self, step: int, ball: Ball) -> float:
        scale = 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.step_size * ball.eps * scale

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the last iterate of each sample, or the one at which it fell; see `Attack`."""
        return self.climb(target, x, y, ball, callback=callback)

    def climb(
        self,
        target: Target,
        x: Images,
        y: Labels,
        ball: Ball,
        *,
        shape: Callable[[Images], Images] | None = None,
        aim: Aim | None = None,
        callback: Callback | None = None,
    ) -> Images:
        """Attack with perturbations of a certain shape, or climb something else than the loss of the answers.

        Args:
            target: see `Attack`, as are `x`, `y`, `ball` and `callback`.
            shape: perturbation → the part of it that is wanted; random start, gradient and step go through it, and are
                clipped to the ball afterwards. None takes all of it.
            aim: what is climbed; None for the loss of the answers.
        """
        steepest = torch.sign if self.l2_step == "sign" and ball.norm == "l2" else ball.steepest
        result = x.clone()
        fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)

        def loss(images: Images, step: int) -> PerSample:
            # A fallen sample asks for nothing more; where it fell is kept.
            value = images.new_zeros(len(images))
            active = ~fallen
            if not active.any():
                return value + 0 * images.sum((1, 2, 3))
            query = restart * self.steps + step
            some, labels = target[active], y[active]
            asked, climbed = (some, self.loss) if aim is None else aim(active)
            slope = asked.gradient(images[active].detach(), labels, climbed, query, progress=step / self.steps)
            slopes = torch.zeros_like(images)
            slopes[active] = slope.ascent
            if self.drop:
                fell = some.fallen(images[active].detach(), labels, slope, query)
                fallen[active] = fell
                result[fallen & active] = images[fallen & active].detach()
            value[active] = slope.value
            return _Known.apply(images, value, slopes)

        for restart in range(self.restarts):
            if fallen.all():
                break
            random = self.random_start or restart > 0
            start = ball.random(x, target.keys.fold("start", restart)) if random else None
            if shape is not None and start is not None:
                start = ball.project(x + shape(start - x), x)
            end = projected_descent(
                loss,
                x,
                ball,
                steps=self.steps,
                step_size=lambda step: self._step(step, ball),
                maximise=True,
                momentum=self.momentum,
                direction=steepest if shape is None else lambda gradient: shape(steepest(shape(gradient))),
                start=start,
                callback=callback,
            ).last
            result[~fallen] = end[~fallen]
        return result


class _Known(torch.autograd.Function):
    """A value whose gradient has already been computed, handed to the loop that asks autograd for it."""

    @staticmethod
    def forward(context: Any, x: Images, value: PerSample, slope: Images) -> PerSample:
        context.save_for_backward(slope)
        return value

    @staticmethod
    def backward(context: Any, upstream: PerSample) -> tuple[Images, None, None]:
        (slope,) = context.saved_tensors
        return slope * upstream.view(-1, 1, 1, 1), None, None
