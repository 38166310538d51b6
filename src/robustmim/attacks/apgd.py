"""Auto-PGD: projected gradient ascent that finds its own step size (Croce and Hein 2020), and its sparse form for l1.

For l∞ and l2 it is Algorithm 1 of "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (ICML 2020); for l1 it is l1-APGD with a radius that shrinks to the budget, of "Mind the box:
l1-APGD for sparse adversarial attacks on image classifiers" (ICML 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool
from torch import Tensor

from robustmim.attacks.objectives import (
    Logits,
    Loss,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    targeted_cross_entropy,
    targeted_difference_of_logits_ratio,
)
from robustmim.attacks.search import Found, bounded, hopeless, likeliest, nearest
from robustmim.attacks.target import Slope, Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball, project_l1_cube
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_MOMENTUM = 0.75
_RISES_WANTED = 0.75
_STAGES_L1 = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # (multiple of the budget, share of the steps)
_FIRST_SHARE = 0.2  # of the coordinates that the first sparse steps move


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which the step size is reconsidered (Croce and Hein 2020, Section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share < 1})


@dataclass
class _Climb:
    """State of one run, for the samples still in it."""

    places: Tensor
    target: Target
    x: Images
    y: Labels
    wanted: Labels
    now: Images
    before: Images
    value: PerSample
    best: Images
    best_value: PerSample
    best_margin: PerSample
    best_gradient: Images
    reached: PerSample
    length: PerSample
    rises: PerSample
    value_at_check: PerSample
    reached_at_check: PerSample
    shortened: Bool[Tensor, " batch"]
    share: PerSample
    moved: PerSample

    @classmethod
    def begin(cls, places: Tensor, target: Target, x: Images, y: Labels, wanted: Labels, start: Images) -> _Climb:
        low, zero = torch.full((len(x),), -torch.inf, device=x.device), torch.zeros(len(x), device=x.device)
        return cls(
            places=places,
            target=target,
            x=x,
            y=y,
            wanted=wanted,
            now=start,
            before=start,
            value=-low,
            best=start,
            best_value=low,
            best_margin=low,
            best_gradient=torch.zeros_like(x),
            reached=low,
            length=zero,
            rises=zero,
            value_at_check=low,
            reached_at_check=low,
            shortened=zero.bool(),
            share=zero + _FIRST_SHARE,
            moved=zero + 1,
        )

    def keep(self, which: Bool[Tensor, " batch"]) -> None:
        """Go on with some of the samples."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[which])

    def take(self, slope: Slope) -> None:
        """Note the values at the current iterate, and whether it is the best so far."""
        self.rises = self.rises + (slope.value > self.value)
        self.value = slope.value
        margins = margin(slope.logits, self.y)
        better = slope.value > self.best_value
        self.best_value = torch.where(better, slope.value, self.best_value)
        self.best_margin = torch.where(better, margins, self.best_margin)
        self.best = torch.where(_wide(better), self.now, self.best)
        if slope.gradient is not None:
            self.best_gradient = torch.where(_wide(better), slope.gradient, self.best_gradient)
        self.reached = torch.maximum(self.reached, margins)

    def return_to_best(self, which: Bool[Tensor, " batch"], gradient: Images) -> Images:
        """Move some samples to their best iterates; return the gradient where each sample now is."""
        self.now = torch.where(_wide(which), self.best, self.now)
        self.before = torch.where(_wide(which), self.best, self.before)
        return torch.where(_wide(which), self.best_gradient, gradient)


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


class _AutoPGD:
    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self, *, steps: int = 100, restarts: int = 1, drop: bool = True, patience: float | None = None
    ) -> None:
        if steps < 1 or restarts < 1:
            raise RecipeError(f"APGD takes at least one step and one restart, not {steps} and {restarts}")
        self.steps, self.restarts, self.drop, self.patience = steps, restarts, drop, patience

    def _runs(self, target: Target, x: Images, y: Labels, found: Found) -> Iterator[tuple[str, int, Labels]]:
        """Yield each run's name and number, from which its randomness derives, and the classes wanted in it."""
        for restart in range(self.restarts):
            yield "start", restart, y

    def _loss(self, wanted: Labels) -> Loss:
        raise NotImplementedError

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the iterate at which a sample fell, or the best by its loss; see `Attack`.

        The callback is told of the samples still at work, and of their places in the batch, "samples"; at the last point of a
        run the gradient is None.
        """
        ball, found = bounded(ball, x), Found.nothing(x)
        for run, (name, number, wanted) in enumerate(self._runs(target, x, y, found)):
            places = (~found.fallen if self.drop else torch.ones_like(found.fallen)).nonzero()[:, 0]
            keys = target.keys[places].fold(name, number)
            stages = _STAGES_L1 if ball.norm == "l1" else ((1.0, 1.0),)
            done, start = 0, None
            for stage, (multiple, share) in enumerate(stages):
                last = stage == len(stages) - 1
                wide = bounded(Ball(norm=ball.norm, eps=multiple * ball.eps), x)
                steps = self.steps - done if last else round(share * self.steps)
                if not len(places) or not steps:
                    continue
                center = x[places]
                if start is None and ball.norm == "l1":
                    start = center + keys.normal(*x.shape[1:]).to(x)
                elif start is None:
                    start = wide.random(center, keys)
                climb = _Climb.begin(
                    places, target[places], center, y[places], wanted[places], nearest(wide, start, center)
                )
                self._climb(climb, wide, steps, run * self.steps + done, found if last else None, callback)
                start, done = climb.best, done + steps
                if not last and self.patience is not None:
                    # What does not break in a ball of several times the budget will not break in the budget.
                    places, start = places[climb.reached > 0], start[climb.reached > 0]
        return found.images

    def _climb(
        self, climb: _Climb, ball: Ball, steps: int, queries: int, found: Found | None, callback: Callback | None
    ) -> None:
        """Look at `steps` points in a ball, after `queries` earlier ones; what falls goes to `found` and leaves the climb."""
        checks = checkpoints(steps)
        every = max(1, round(0.04 * steps))
        climb.length = torch.full_like(climb.length, ball.eps * (1 if ball.norm == "l1" else 2))
        for step in range(steps):
            query = queries + step + 1
            # No move follows the last point, so its gradient is nobody's.
            ask = climb.target.gradient if step < steps - 1 else climb.target.value
            progress = (queries % self.steps + step) / self.steps
            slope = ask(climb.now, climb.y, self._loss(climb.wanted), query, progress=progress)
            if callback is not None:
                told = {"step": query - 1, "x": climb.now, "value": slope.value, "gradient": slope.gradient}
                callback(told | {"center": climb.x, "ball": ball, "samples": climb.places})
            climb.take(slope)
            leave = torch.zeros_like(climb.shortened)
            if found is not None:
                fell = climb.target.fallen(climb.now, climb.y, slope, query)
                found.offer(climb.places[fell], climb.now[fell], margin(slope.logits, climb.y)[fell], fell[fell])
                leave = fell if self.drop else leave
                if step in checks[1:]:
                    passed = step - checks[checks.index(step) - 1]
                    given_up = hopeless(climb.reached, climb.reached_at_check, passed, steps - 1 - step, self.patience)
                    found.offer(
                        climb.places[given_up],
                        climb.best[given_up],
                        climb.best_margin[given_up],
                        fell[given_up] & False,
                    )
                    leave = leave | given_up
            if leave.any():
                climb.keep(~leave)
            if not len(climb.places) or slope.gradient is None:
                break
            gradient = slope.gradient[~leave] if leave.any() else slope.gradient
            if ball.norm == "l1":
                gradient = _thin_out(climb, gradient, ball) if step and step % every == 0 else gradient
                ahead = climb.now + _wide(climb.length) * _sparse(gradient, climb.share)
                climb.now = project_l1_cube(ahead, climb.x, ball.eps)
            else:
                if step in checks:
                    gradient = _shorten(climb, gradient, step - max([c for c in checks if c < step], default=0))
                ahead = ball.project(climb.now + _wide(climb.length) * ball.steepest(gradient), climb.x)
                if step:
                    glide = _MOMENTUM * (ahead - climb.now) + (1 - _MOMENTUM) * (climb.now - climb.before)
                    ahead = ball.project(climb.now + glide, climb.x)
                climb.before, climb.now = climb.now, ahead
            if step in checks:
                climb.reached_at_check = climb.reached
        if found is not None:
            found.offer(climb.places, climb.best, climb.best_margin, torch.zeros_like(climb.shortened))


def _shorten(climb: _Climb, gradient: Images, passed: int) -> Images:
    """Halve the steps of samples whose loss rose too seldom, or whose best did not (Conditions 1 and 2)."""
    seldom = climb.rises < _RISES_WANTED * passed
    stuck = ~climb.shortened & (climb.best_value == climb.value_at_check)
    short = seldom | stuck
    climb.length = torch.where(short, climb.length / 2, climb.length)
    climb.shortened, climb.value_at_check, climb.rises = short, climb.best_value, torch.zeros_like(climb.rises)
    return climb.return_to_best(short, gradient)


def _thin_out(climb: _Climb, gradient: Images, ball: Ball) -> Images:
    """Set how many coordinates a step moves from how many the best iterate moved (Croce and Hein 2021, Section 3.2).

    While that number falls, steps are long and begin at the best iterate; once it is steady they get shorter.
    """
    moved = (climb.best != climb.x).flatten(1).float().mean(1)
    falling = moved < 0.95 * climb.moved
    climb.length = torch.where(falling, ball.eps, (climb.length / 1.5).clamp(min=ball.eps / 10))
    climb.share, climb.moved = moved / 1.5, moved
    return climb.return_to_best(falling, gradient)


def _sparse(gradient: Images, share: PerSample) -> Images:
    """Return the signs of each sample's largest `share` of coordinates, scaled to unit length in l1."""
    size = gradient.flatten(1).abs()
    count = (share * size.shape[1]).long().clamp(1, size.shape[1])
    threshold = size.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    step = gradient.flatten(1).sign() * (size >= threshold)
    return (step / step.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)


@register("attack", "apgd-ce")
class APGDCrossEntropy(_AutoPGD):
    """Auto-PGD on the cross-entropy.

    Args:
        steps: points that a run looks at, the random start among them: one more than its moves and gradients.
        restarts: runs, each from another random point.
        drop: stop working on a sample once it has fallen.
        patience: give a sample up, for a run, once its margin would not reach a miss though it rose this many times as
            fast as between the last two checkpoints; None never does.

    Raises:
        RecipeError: fewer than one step or restart.
    """

    def _loss(self, wanted: Labels) -> Loss:
        return cross_entropy


@register("attack", "apgd-dlr")
class APGDLogitsRatio(_AutoPGD):
    """Auto-PGD on the difference-of-logits ratio. Options and errors are those of `APGDCrossEntropy`."""

    def _loss(self, wanted: Labels) -> Loss:
        return difference_of_logits_ratio


@register("attack", "apgd-targeted")
class APGDTargeted(_AutoPGD):
    """Auto-PGD towards each of the likeliest wrong classes in turn, on the targeted difference-of-logits ratio.

    With fewer than four classes that ratio is not defined, and it climbs the targeted cross-entropy.

    Args:
        steps: points that a run looks at, see `APGDCrossEntropy`.
        restarts: runs for each class.
        targets: how many wrong classes, by the logits of the image as it is.
        drop: stop working on a sample once it has fallen.
        patience: see `APGDCrossEntropy`.

    Raises:
        RecipeError: fewer than one step, restart or target.
    """

    def __init__(
        self,
        *,
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        drop: bool = True,
        patience: float | None = None,
    ) -> None:
        super().__init__(steps=steps, restarts=restarts, drop=drop, patience=patience)
        if targets < 1:
            raise RecipeError(f"a targeted attack needs at least one target class, not {targets}")
        self.targets = targets

    def _runs(self, target: Target, x: Images, y: Labels, found: Found) -> Iterator[tuple[str, int, Labels]]:
        likely = likeliest(target, x, y, self.targets, found)
        for number in range(self.restarts * likely.shape[1]):
            yield "targeted start", number, likely[:, number % likely.shape[1]]

    def _loss(self, wanted: Labels) -> Loss:
        def loss(logits: Logits, y: Labels) -> PerSample:
            aim = targeted_cross_entropy if logits.shape[1] < 4 else targeted_difference_of_logits_ratio
            return aim(logits, y, wanted)

        return loss
