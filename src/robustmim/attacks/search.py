"""What attacks of several runs share: the best image found so far, whom to aim at, and when to give up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustmim.attacks.objectives import margin
from robustmim.attacks.target import Slope, Target
from robustmim.geometry import Ball, project_l1_cube
from robustmim.types import Images, Labels, PerSample


@runtime_checkable
class NearestAttack(Protocol):
    """An attack that looks for the nearest adversarial image, not for any in the ball."""

    @property
    def seeks_the_nearest(self) -> bool:
        """Whether distances of its results are of use."""


@dataclass
class Found:
    """The best image of each sample over all runs of an attack: broken before unbroken, then the larger margin."""

    images: Images
    margin: PerSample
    fallen: Bool[Tensor, " batch"]

    @classmethod
    def nothing(cls, x: Images) -> Found:
        """Begin with the images as they are."""
        no = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return cls(x.clone(), torch.full((len(x),), -torch.inf, device=x.device), no)

    def offer(
        self, places: Int[Tensor, " some"], images: Images, margins: PerSample, fell: Bool[Tensor, " some"]
    ) -> None:
        """Take the images, at these places of the batch, that are better than what is there."""
        had = self.fallen[places]
        better = (fell & ~had) | ((fell == had) & (margins > self.margin[places]))
        where = places[better]
        self.images[where], self.margin[where] = images[better], margins[better]
        self.fallen[where] |= fell[better]


@dataclass
class Closest:
    """The nearest adversarial image of each sample so far, and its distance: infinite while there is none."""

    images: Images
    distance: PerSample

    def offer(self, places: Int[Tensor, " some"], images: Images, distance: PerSample) -> None:
        """Take the images, at these places of the batch, that are nearer than what is there."""
        nearer = distance < self.distance[places]
        self.images[places[nearer]], self.distance[places[nearer]] = images[nearer], distance[nearer]


def adversarial(target: Target, x: Images, y: Labels, slope: Slope, query: int) -> Bool[Tensor, " batch"]:
    """Say which images are broken, and not by luck, also where the target does not allow them to be left alone.

    A search that keeps the nearest of thousands of images would, with a random defence, keep the luckiest of them: so
    all draws must miss, and fresh ones too. Arguments are those of `Target.fallen`.
    """
    return replace(target, drop=True).fallen(x, y, slope, query)


def nearest(ball: Ball, point: Images, center: Images) -> Images:
    """Return `ball.project`, but in l1 the exact projection: the clip then takes nothing from the budget."""
    return project_l1_cube(point, center, ball.eps) if ball.norm == "l1" else ball.project(point, center)


def limited(ball: Ball, x: Images, center: Images) -> Images:
    """Return images of the cube, to the bit where they lie in the ball and projected onto it where they do not."""
    inside = (ball.distance(x, center) <= ball.eps).view(-1, 1, 1, 1)
    return torch.where(inside, x, ball.project(x, center))


def bounded(ball: Ball, x: Images) -> Ball:
    """Return the ball with a radius no larger than the whole cube [0, 1]: step sizes must be finite."""
    widest = {"linf": 1.0, "l2": math.sqrt(x[0].numel()), "l1": float(x[0].numel())}[ball.norm]
    return Ball(norm=ball.norm, eps=min(ball.eps, widest))


def hopeless(
    reached: PerSample, before: PerSample, steps: int, left: int, patience: float | None
) -> Bool[Tensor, " batch"]:
    """Say for which samples going on would not reach zero, though they rose `patience` times as fast as lately.

    Args:
        reached: best value so far, below zero until the attack has won.
        before: best value some steps ago.
        steps: how many steps ago.
        left: steps still to go.
        patience: factor on the recent speed; None never gives up.
    """
    if patience is None:
        return torch.zeros_like(reached, dtype=torch.bool)
    return reached + patience * (reached - before) * left / max(steps, 1) < 0


def likeliest(target: Target, x: Images, y: Labels, count: int, found: Found) -> Int[Tensor, "batch targets"]:
    """Return each sample's likeliest wrong classes, likeliest first; what is wrong as it is goes to `found`."""
    slope = target.value(x, y, margin, 0)
    found.offer(torch.arange(len(x), device=x.device), x, margin(slope.logits, y), target.fallen(x, y, slope, 0))
    wrong = slope.logits.scatter(1, y[:, None], -torch.inf)
    return wrong.topk(min(count, wrong.shape[1] - 1), dim=1).indices
