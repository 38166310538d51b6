"""RayS: search for the ray along which the decision changes soonest, asking for nothing but decisions.

Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack" (KDD 2020), Algorithm 3: rays point into
the corners of an l∞ ball, so a ray is a pattern of signs. Whether a changed pattern is nearer is settled by one question
at the best radius so far (the fast check); only then is its own radius found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustmim.attacks.objectives import margin
from robustmim.attacks.search import bounded
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_HALVINGS = 10  # of a bisection: radii are exact to a thousandth of the radius before
_ASKED = _HALVINGS + 3  # numbers set apart for the queries of one ray


def blocks(size: int) -> Iterator[slice]:
    """Yield the parts of a flattened image whose signs are flipped, ray after ray, for ever.

    First nothing, then the whole, its halves, its quarters, down to single values, which then come round again.
    """
    yield slice(0, 0)
    count = 1
    while True:
        for first, end in pairwise(size * number // count for number in range(count + 1)):
            yield slice(first, end)
        count = min(2 * count, size)


@register("attack", "rays")
class RayS:
    """RayS in l∞; only decisions are used, and the attack draws nothing itself.

    A decision is whether half of the target's draws miss. For a random defence a nearer radius must hold on
    `target.confirmations` fresh draws, or the search would follow lucky ones.

    Args:
        queries: questions for each sample, each times the target's draws; a bisection that has begun is finished.

    Raises:
        RecipeError: fewer than one query.
    """

    norms = ("linf",)
    black_box = True

    def __init__(self, *, queries: int = 10000) -> None:
        if queries < 1:
            raise RecipeError(f"RayS takes at least one query, not {queries}")
        self.queries = queries

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the image where the best ray crosses the boundary if that is in the ball, else the ray's end in it.

        The end in the ball is also returned where the boundary itself would not do: the answers are random, or the
        image will be judged on another model (`Target.drop`). In a ball of infinite radius no sample is ever done, and
        the nearest crossing is returned. The callback's value is minus the radius found so far.
        """
        inside, finite = bounded(ball, x), math.isfinite(ball.eps)
        to_the_end = finite and (not target.drop or (target.randomised and target.known is None))
        signs = torch.ones_like(x)
        radius = torch.full((len(x),), torch.inf, device=x.device)
        spent = torch.ones(len(x), dtype=torch.int64, device=x.device)

        def ends(places: Tensor) -> Images:
            length = radius[places].clamp(max=inside.eps)
            length = torch.full_like(length, inside.eps) if to_the_end else length
            return inside.project(_along(x[places], signs[places], length), x[places])

        as_it_is = target.fallen(x, y, target.value(x, y, margin, 0), 0)
        left = (~as_it_is).nonzero()[:, 0]
        for ray, block in enumerate(blocks(x[0].numel())):
            left = left[spent[left] < self.queries]
            if not len(left):
                break
            query = 1 + ray * _ASKED
            tried = signs[left]
            tried.flatten(1)[:, block] *= -1
            found = self._crossing(target, x, y, left, tried, radius, spent, query)
            nearer = found < radius[left]
            better = left[nearer]
            signs[better], radius[better] = tried[nearer], found[nearer]
            if callback is not None:
                everywhere = torch.arange(len(x), device=x.device)
                now = torch.where(as_it_is.view(-1, 1, 1, 1), x, ends(everywhere))
                callback({"step": ray, "x": now, "value": -radius, "center": x, "ball": ball})
            reached = better[radius[better] <= inside.eps]
            if finite and len(reached):
                part, images, labels = target[reached], ends(reached), y[reached]
                last = query + _ASKED - 1
                slope = part.value(images, labels, margin, last, progress=self._progress(ray))
                spent[reached] += 1
                left = left[~torch.isin(left, reached[part.fallen(images, labels, slope, last)])]
        return torch.where(as_it_is.view(-1, 1, 1, 1), x, ends(torch.arange(len(x), device=x.device)))

    def _progress(self, ray: int) -> float:
        return min(ray / self.queries, 1.0)

    def _crossing(
        self,
        target: Target,
        x: Images,
        y: Labels,
        left: Tensor,
        signs: Float[Tensor, "left channels height width"],
        radius: PerSample,
        spent: Tensor,
        query: int,
    ) -> Float[Tensor, " left"]:
        """Return where each ray crosses the boundary; infinite if it does not before the best radius (Algorithm 2)."""
        progress = self._progress((query - 1) // _ASKED)

        def miss(asked: Target, which: Tensor, at: PerSample, number: int) -> Bool[Tensor, " some"]:
            places = left[which]
            images = _along(x[places], signs[which], at)
            spent[places] += 1
            return asked[places].value(images, y[places], margin, number, progress=progress).missed >= 0.5

        found = torch.full((len(left),), torch.inf, device=x.device)
        reach = radius[left].clamp(max=1.0)
        going = miss(target, torch.arange(len(left), device=x.device), reach, query).nonzero()[:, 0]
        near, far = torch.zeros_like(reach[going]), reach[going]
        for halving in range(_HALVINGS):
            if not len(going):
                return found
            middle = (near + far) / 2
            crossed = miss(target, going, middle, query + 1 + halving)
            near, far = torch.where(crossed, near, middle), torch.where(crossed, middle, far)
        if target.randomised and target.known is None:
            fresh = replace(target, draws=target.confirmations)
            holds = miss(fresh, going, far, query + 1 + _HALVINGS)
            going, far = going[holds], far[holds]
        found[going] = far
        return found


def _along(x: Images, signs: Images, length: PerSample) -> Images:
    return (x + length.view(-1, 1, 1, 1) * signs).clamp(0, 1)
