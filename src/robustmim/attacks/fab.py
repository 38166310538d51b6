"""FAB: the nearest adversarial image, by projections onto linearised decision boundaries (Croce and Hein 2020).

"Minimally distorted adversarial examples with a fast adaptive boundary attack" (ICML 2020), Algorithm 1; FAB-T looks at
one wrong class at a time. One departure: whether an iterate is adversarial is read from the same query that gives its
gradient, and a step that goes back towards the image uses that linearisation. It saves every second query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustmim.attacks.objectives import Logits, Loss, margin
from robustmim.attacks.search import Closest, Found, adversarial, bounded, hopeless, likeliest
from robustmim.attacks.target import Slope, Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_OVERSHOOT = 1.05  # η: steps end a little behind the boundary
_BACK = 0.9  # β: what is left of the perturbation after an adversarial iterate
_LEAST_BIAS = 0.1  # α_max: the largest weight of the projection of the image itself
_HALVINGS = 3
_FARTHER, _STRIDES = 1.15, 16  # outwards, against a random defence: up to nine times as far


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


def onto_plane(x: Images, normal: Images, gap: PerSample, norm: Literal["linf", "l2", "l1"]) -> Images:
    """Return the point z of the cube [0, 1] nearest to `x`, in a norm, with ⟨normal, z - x⟩ = gap.

    Where the cube does not reach that plane, z is the point of the cube that comes nearest to it. Exact (Croce and Hein
    2020, Section 2.2): coordinates fill their room at speeds that the norm sets, and the moment at which the plane is
    reached is found among the sorted moments at which each is full; for l1 they fill one after the other.
    """
    weight, flat = normal.flatten(1).double(), x.flatten(1).double()
    need = gap.double().abs()[:, None]
    direction = weight.sign() * gap.double().sign()[:, None]
    size, room = weight.abs(), torch.where(direction > 0, 1 - flat, flat)
    if norm == "l1":
        order = size.argsort(dim=1, descending=True)
        gains = (size * room).gather(1, order)
        before = gains.cumsum(1) - gains
        filled = ((need - before) / gains.clamp(min=1e-30)).clamp(0, 1)
        shift = torch.zeros_like(room).scatter(1, order, filled) * room
    else:
        speed = (size > 0).double() if norm == "linf" else size
        full = torch.where(speed > 0, room / speed.clamp(min=1e-30), torch.inf)
        moments, order = full.sort(dim=1)
        gained = (size * room).gather(1, order).cumsum(1)
        rates = (size * speed).gather(1, order)
        left = rates.flip(1).cumsum(1).flip(1)  # the rate before each coordinate is full
        reached = torch.where(moments.isfinite(), gained + moments * (left - rates), gained)
        place = (reached < need).sum(1, keepdim=True).clamp(max=moments.shape[1] - 1)
        already = (gained.gather(1, place) - (size * room).gather(1, order).gather(1, place)).clamp(min=0)
        moment = (need - already) / left.gather(1, place).clamp(min=1e-30)
        shift = torch.minimum(moment * speed, room)
    return (flat + direction * shift).clamp(0, 1).view_as(x).to(x)


class _Boundary:
    norms = ("linf", "l2", "l1")
    black_box = False
    targeted = False

    def __init__(
        self,
        *,
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        drop: bool = True,
        patience: float | None = None,
    ) -> None:
        if steps < 1 or restarts < 1 or targets < 1:
            raise RecipeError(f"FAB takes a step, a restart and a class at least, not {steps}, {restarts}, {targets}")
        self.steps, self.restarts, self.targets = steps, restarts, targets
        self.drop, self.patience = drop, patience

    @property
    def seeks_the_nearest(self) -> bool:
        """Whether distances of its results are of use: not where it stops at the first one in the ball."""
        return not self.drop

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the nearest adversarial image found if it is in the ball, else the image as it was; see `Attack`.

        An image is adversarial if half of a query's draws miss it. With `drop`, a sample is done once one lies in the
        ball; in a ball of infinite radius it never is. The nearest of many images is the luckiest of them, so before a
        random defence it is then moved outwards until all draws miss it, and fresh ones too. The callback is told of the
        samples still at work, and of their places in the batch, "samples"; its value is the distance found so far.
        """
        found = Found.nothing(x)
        likely = likeliest(target, x, y, self.targets, found)
        closest = Closest(x.clone(), torch.full((len(x),), torch.inf, device=x.device))
        wrong = found.margin > 0
        closest.distance[wrong] = 0.0
        if target.randomised:  # what the draws of one query missed is not wrong for certain
            closest.distance[wrong & ~found.fallen] = torch.inf
        for run, (number, classes) in enumerate(self._runs(likely)):
            places = self._unfinished(closest, ball).nonzero()[:, 0]
            if not len(places):
                break
            start = x[places]
            if number:
                inside = bounded(ball, x)
                radius = closest.distance[places].clamp(max=inside.eps) / 2
                away = inside.random(start, target.keys[places].fold("start", number)) - start
                start = (start + away * _wide(radius) / max(inside.eps, 1e-12)).clamp(0, 1)
            self._walk(target, x, y, ball, places, classes[places], start, run, closest, callback)
        settle = self._secure if target.randomised and target.known is None else self._halve
        settle(target, x, y, ball, closest)
        return torch.where(_wide(closest.distance <= ball.eps), closest.images, x)

    def _runs(self, likely: Int[Tensor, "batch targets"]) -> Iterator[tuple[int, Int[Tensor, "batch classes"]]]:
        """Yield the number of the restart, and the classes looked at in each run."""
        for restart in range(self.restarts):
            if self.targeted:
                for place in range(likely.shape[1]):
                    yield restart, likely[:, place : place + 1]
            else:
                yield restart, likely

    def _unfinished(self, closest: Closest, ball: Ball) -> Bool[Tensor, " batch"]:
        done = closest.distance <= (ball.eps if self.drop and math.isfinite(ball.eps) else 0.0)
        return ~done

    def _walk(
        self,
        target: Target,
        x: Images,
        y: Labels,
        ball: Ball,
        places: Tensor,
        classes: Tensor,
        now: Tensor,
        run: int,
        closest: Closest,
        callback: Callback | None,
    ) -> None:
        """Walk along the boundary from `now`, towards the image, for the samples at `places`."""
        window = max(self.steps // 5, 5)
        reached = torch.full((len(places),), -torch.inf, device=x.device)
        before = reached
        for step in range(self.steps):
            query = run * self.steps + step + 1
            center, labels = x[places], y[places]
            slope = nearest_plane(target[places], now, labels, classes, query, step / self.steps, ball)
            value, normal, wrong = slope.value, slope.ascent, slope.missed >= 0.5
            distance = ball.distance(now, center)
            closest.offer(places[wrong], now[wrong], distance[wrong])
            reached = torch.where(wrong, torch.maximum(reached, ball.eps - distance), reached)
            if callback is not None:
                told = {"step": query - 1, "x": now, "value": closest.distance[places], "gradient": normal}
                callback(told | {"center": center, "ball": ball, "samples": places})
            back = torch.where(_wide(wrong), center + _BACK * (now - center), now)
            now = _step(now, back, center, value, normal, ball)
            going = self._unfinished(closest, ball)[places]
            if step and step % window == 0 and math.isfinite(ball.eps):
                never = ~reached.isfinite() & (step >= 2 * window) & (self.patience is not None)
                going &= ~(never | hopeless(reached, before, window, self.steps - 1 - step, self.patience))
                before = reached
            if not going.all():
                places, classes, now = places[going], classes[going], now[going]
                reached, before = reached[going], before[going]
                if not len(places):
                    break

    def _halve(self, target: Target, x: Images, y: Labels, ball: Ball, closest: Closest) -> None:
        """Look for nearer adversarial images on the line to the image, by bisection (the paper's final search)."""
        places = (self._unfinished(closest, ball) & closest.distance.isfinite()).nonzero()[:, 0]
        if not len(places):
            return
        far, near = closest.images[places], x[places]
        for number in range(_HALVINGS):
            middle = (far + near) / 2
            query = self.steps * self.restarts * (self.targets + 1) + number
            wrong = target[places].value(middle, y[places], margin, query).missed >= 0.5
            closest.offer(places[wrong], middle[wrong], ball.distance(middle, x[places])[wrong])
            far, near = torch.where(_wide(wrong), middle, far), torch.where(_wide(wrong), near, middle)

    def _secure(self, target: Target, x: Images, y: Labels, ball: Ball, closest: Closest) -> None:
        """Move adversarial images away from the image, in the ball, until they are broken for sure; else leave them."""
        within = closest.distance.isfinite() & (closest.distance <= ball.eps)
        places = (self._unfinished(closest, ball) & within).nonzero()[:, 0]
        shift = closest.images[places] - x[places]
        for number in range(_STRIDES + 1):
            if not len(places):
                break
            part, center, labels = target[places], x[places], y[places]
            now = (center + _FARTHER**number * shift).clamp(0, 1)
            query, distance = self.steps * self.restarts * (self.targets + 1) + number, ball.distance(now, center)
            sure = adversarial(part, now, labels, part.value(now, labels, margin, query), query)
            moved = sure & (distance <= ball.eps)
            closest.images[places[moved]], closest.distance[places[moved]] = now[moved], distance[moved]
            places, shift = places[~sure], shift[~sure]


def _overtaken(wanted: Labels) -> Loss:
    def loss(logits: Logits, y: Labels) -> PerSample:
        return logits.gather(1, wanted[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]

    return loss


def nearest_plane(
    target: Target, now: Images, y: Labels, classes: Tensor, query: int, progress: float, ball: Ball
) -> Slope:
    """Return the slope of the wrong class whose linearised boundary is nearest; each class costs a query."""
    chosen, nearest = None, torch.full((len(now),), torch.inf, device=now.device)
    dual = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[ball.norm]
    for wanted in classes.unbind(1):
        slope = target.gradient(now, y, _overtaken(wanted), query, progress=progress)
        length = torch.linalg.vector_norm(slope.ascent.flatten(1), ord=dual, dim=1)
        away = slope.value.abs() / length.clamp(min=1e-12)
        nearer = away < nearest
        nearest = torch.where(nearer, away, nearest)
        if chosen is None:
            chosen = slope
        else:
            value = torch.where(nearer, slope.value, chosen.value)
            ascent = torch.where(_wide(nearer), slope.ascent, chosen.ascent)
            chosen = Slope(value, slope.logits, slope.missed, ascent)
    assert chosen is not None
    return chosen


def _step(now: Images, back: Images, center: Images, value: PerSample, normal: Images, ball: Ball) -> Images:
    """Take the step of Algorithm 1: a mean of the projections of the iterate and of the image, both overshot."""

    def projected(point: Images) -> tuple[Images, PerSample]:
        gap = -(value + (normal * (point - now)).flatten(1).sum(1))
        on_plane = onto_plane(point, normal, gap, ball.norm)
        return point + _OVERSHOOT * (on_plane - point), ball.distance(on_plane, point)

    from_iterate, far = projected(back)
    from_image, far_from_image = projected(center)
    bias = _wide((far / (far + far_from_image).clamp(min=1e-12)).clamp(max=_LEAST_BIAS))
    return ((1 - bias) * from_iterate + bias * from_image).clamp(0, 1)


@register("attack", "fab")
class FAB(_Boundary):
    """FAB towards the nearest of the likeliest wrong classes, linearised anew at each step.

    Args:
        steps: iterations of a run; each asks for one gradient for each class.
        restarts: runs; the first begins at the image, later ones at random within half the distance found.
        targets: how many wrong classes are considered, the likeliest of the image.
        drop: stop working on a sample once an adversarial image lies in the ball.
        patience: give a sample up, for a run, once the distance would not shrink to the budget though it shrank this
            many times as fast as lately, or if no adversarial image was found in two fifths of the steps; None never does.

    Raises:
        RecipeError: fewer than one step, restart or class.
    """


@register("attack", "fab-targeted")
class FABTargeted(_Boundary):
    """FAB-T: a run for each of the likeliest wrong classes, one gradient a step. Options and errors are those of `FAB`."""

    targeted = True
