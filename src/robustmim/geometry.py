"""Balls around an image: where attacks may go, and how far a purification may move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustmim.errors import RecipeError
from robustmim.radius import Radius, radius_text
from robustmim.rng import Keys
from robustmim.types import Images

Norm = Literal["linf", "l2", "l1"]


def _lengths(vectors: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(vectors.flatten(1), ord=order, dim=1).view(-1, 1, 1, 1)


def project_l1(delta: Images, radius: float | Tensor) -> Images:
    """Project each perturbation onto the l1 ball of a radius, one for all or `[B]` (Duchi et al. 2008, by sorting)."""
    flat = delta.flatten(1)
    if isinstance(radius, Tensor):
        radius = radius[:, None]
    magnitude = flat.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    place = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    support = (ordered * place > excess).sum(1, keepdim=True).clamp(min=1)  # a ball of one point has none
    threshold = excess.gather(1, support - 1) / support
    projected = flat.sign() * (magnitude - threshold).clamp(min=0)
    return torch.where(magnitude.sum(1, keepdim=True) <= radius, flat, projected).view_as(delta)


def project_l1_cube(point: Images, center: Images, eps: float) -> Images:
    """Return the nearest point (in l2) to `point` that is within `eps` of `center` in l1 and within [0, 1].

    Exact (Croce and Hein 2021, Proposition 2.1): each coordinate moves by min(room, |shift| - λ), never less than
    zero, where room is what [0, 1] leaves it on that side. That sum is Σ (|shift| - λ)₊ - Σ (|shift| - room - λ)₊,
    linear in λ between the sorted break points, so the λ at which it equals `eps` is found without iterating.
    """
    shift = (point - center).flatten(1).double()
    start = center.flatten(1).double()
    magnitude = shift.abs()
    room = torch.where(shift > 0, 1 - start, start)
    breaks, order = torch.cat([magnitude, magnitude - room], dim=1).sort(dim=1, descending=True)
    slopes = torch.cat([torch.ones_like(room), -torch.ones_like(room)], dim=1).gather(1, order)
    rising, weighted = slopes.cumsum(1), (slopes * breaks).cumsum(1)
    # The last break point at which the sum is still within the budget; λ lies between it and the next.
    place = ((weighted - breaks * rising) <= eps).sum(1, keepdim=True) - 1
    slope, sum_at = rising.gather(1, place), weighted.gather(1, place)
    shrink = torch.where(slope > 0, (sum_at - eps) / slope.clamp(min=1), breaks.gather(1, place)).clamp(min=0)
    moved = shift.sign() * torch.minimum(magnitude - shrink, room).clamp(min=0)
    return (center + moved.view_as(center).to(center)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Ball:
    """All images within `eps` of a centre, in a norm, and within [0, 1].

    Attributes:
        norm: "linf", "l2" or "l1", over all pixels and channels of an image.
        eps: radius in pixel fractions (8/255); infinite for "anywhere in [0, 1]".
    """

    norm: Norm = "linf"
    eps: float = Radius("8/255")

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2", "l1"):
            raise RecipeError(f"a ball's norm is linf, l2 or l1, not {self.norm!r}")
        if not self.eps >= 0:
            raise RecipeError(f"a ball's radius cannot be negative or undefined, but this one is {self.eps}")

    def __str__(self) -> str:
        return f"{self.norm} {radius_text(self.eps)}"

    def project(self, x: Images, center: Images) -> Images:
        """Return the point in the ball around `center`, and in [0, 1], that stands for `x`.

        Exact for l∞. For l2 and l1 the ball comes first and the clip to [0, 1] second; the clip moves towards the
        centre, which lies in [0, 1], so the result is in both.
        """
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x, center - self.eps), center + self.eps).clamp(0, 1)
        delta = x - center
        if self.norm == "l2":
            delta = delta * (self.eps / _lengths(delta, 2).clamp(min=1e-12)).clamp(max=1)
        elif self.eps < float("inf"):
            delta = project_l1(delta, self.eps)
        return (center + delta).clamp(0, 1)

    def random(self, x: Images, keys: Keys) -> Images:
        """Return a random point of the ball around `x`: uniform for l∞; for l2 and l1 a random direction and radius."""
        if self.norm == "linf":
            delta = (2 * keys.uniform(*x.shape[1:]) - 1) * self.eps
        else:
            delta = keys.normal(*x.shape[1:])
            length = keys.fold("radius").uniform(1).view(-1, 1, 1, 1) * self.eps
            delta = delta / _lengths(delta, 2 if self.norm == "l2" else 1) * length
        return self.project(x + delta.to(x), x)

    def steepest(self, gradient: Images) -> Images:
        """Return the unit step of steepest ascent: the sign, the unit vector, or the top percent of coordinates.

        For l1 one coordinate would be steepest; a step spreads over the 1 % largest, which moves faster (SLIDE,
        Tramèr and Boneh 2019).
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / _lengths(gradient, 2).clamp(min=1e-12)
        flat = gradient.flatten(1)
        count = max(1, flat.shape[1] // 100)
        threshold = flat.abs().topk(count, dim=1).values[:, -1:]
        step = flat.sign() * (flat.abs() >= threshold)
        return (step / step.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)

    def distance(self, x: Images, center: Images) -> Tensor:
        """Return the distance `[B]` of `x` from `center` in this norm."""
        order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[self.norm]
        return torch.linalg.vector_norm((x - center).flatten(1), ord=order, dim=1)


EVERYWHERE = Ball(eps=float("inf"))
"""All images: what a purifier without a ball may reach."""
