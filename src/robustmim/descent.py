"""The one loop: projected steps on an image. Attacks climb with it, purification descends with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from robustmim.geometry import Ball
from robustmim.types import Images, PerSample

Objective = Callable[[Images, int], PerSample]
"""(images, step) → one value per sample. The step lets an objective choose its mask or its draws."""

Output = Literal["last", "best", "mean"]
"""The final iterate; for each sample the iterate of best value, of those from which a step was taken; or the average of all
iterates, the start included (the point that AMRM-Pure's Theorem H.1 bounds)."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """What a projected descent leaves behind.

    Attributes:
        last: the final iterate.
        output: what was asked for, see `Output`.
    """

    last: Images
    output: Images


def advance(
    current: Images,
    velocity: Images | None,
    gradient: Images,
    center: Images,
    *,
    length: float,
    momentum: float,
    direction: Callable[[Images], Images],
    project: Callable[[Images, Images], Images],
) -> tuple[Images, Images | None]:
    """Take one step: (iterate, velocity) → (next iterate, next velocity).

    Args:
        current: the iterate.
        velocity: averaged directions so far, None without momentum.
        gradient: of the objective at `current`.
        center: of the ball.
        length: of the step, negative to descend.
        momentum: weight of the velocity.
        direction: gradient → unit step.
        project: (point, center) → point of the ball.
    """
    if velocity is not None:
        scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
        velocity = momentum * velocity + gradient / scale
        gradient = velocity
    return project(current + length * direction(gradient), center), velocity


def projected_descent(
    objective: Objective,
    x: Images,
    ball: Ball,
    *,
    steps: int,
    step_size: Callable[[int], float],
    maximise: bool,
    start: Images | None = None,
    momentum: float = 0.0,
    direction: Callable[[Images], Images] | None = None,
    output: Output = "last",
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Descent:
    """Take `steps` steps of steepest ascent or descent, projecting onto a ball around `x` after each.

    The gradient is that of the sum over the batch, so each sample's path is its own. The projection is never
    differentiated through.

    Args:
        objective: (images, step) → values `[B]`, differentiable in the images.
        x: centre of the ball, `[B, C, H, W]` in [0, 1].
        ball: where iterates may be; its norm chooses the step's direction.
        step_size: step number → length, in the ball's norm.
        maximise: climb (attacks) or descend (purification).
        start: first iterate; `x` by default.
        momentum: weight of the previous direction in the next one (MI-FGSM, Dong et al. 2018); 0 for plain steps.
        direction: gradient → unit step; the ball's steepest by default.
        output: what is returned besides the last iterate.
        callback: called before each step with {"step", "x", "value", "gradient", "center", "ball"} (tensors detached).
    """
    sign = 1.0 if maximise else -1.0
    direction = ball.steepest if direction is None else direction
    current = (x if start is None else start).detach()
    chosen, best_value = current, torch.full((len(x),), -torch.inf, device=x.device)
    velocity = torch.zeros_like(current) if momentum else None
    for step in range(steps):
        leaf = current.detach().requires_grad_(True)
        with torch.enable_grad():
            value = objective(leaf, step)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach()
        if callback is not None:
            callback({"step": step, "x": current, "value": value, "gradient": gradient, "center": x, "ball": ball})
        if output == "best":
            better = sign * value > best_value
            best_value = torch.where(better, sign * value, best_value)
            chosen = torch.where(better.view(-1, 1, 1, 1), current, chosen)
        current, velocity = advance(
            current,
            velocity,
            gradient,
            x,
            length=sign * step_size(step),
            momentum=momentum,
            direction=direction,
            project=ball.project,
        )
        if output == "mean":
            chosen = chosen + (current - chosen) / (step + 2)
    return Descent(last=current, output=current if output == "last" else chosen)
