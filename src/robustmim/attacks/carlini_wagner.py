"""The attacks of Carlini and Wagner: the smallest perturbation that is adversarial with some confidence.

"Towards Evaluating the Robustness of Neural Networks" (IEEE S&P 2017). Both write an image as (tanh(w) + 1) / 2, so that
it cannot leave [0, 1], and descend with Adam (Kingma and Ba 2015) on a penalty of its distance plus c · f, where f is the
true logit's lead over all others, but no less than -κ (f₆, untargeted). The l2 attack (section VI.A) searches for the
smallest c that succeeds; the l∞ attack (section VI.C) punishes what exceeds a bound τ, and lowers it while it succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustmim.attacks.objectives import Logits, margin
from robustmim.attacks.search import Closest, Found, adversarial, limited
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.types import Images, Labels, PerSample

_INSET = 0.9999  # black and white have no finite w; they move by 0.013/255, and keep a slope along which to leave
_LARGEST, _LARGEST_LINF = 1e10, 20.0  # constants beyond which nothing is tried
_DECAY, _DECAY_SQUARES, _TINY = 0.9, 0.999, 1e-8  # Adam's


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)


def _unbounded(x: Images) -> Images:
    """Return w with (tanh(w) + 1) / 2 = x, but for the inset."""
    return ((2 * x - 1) * _INSET).atanh()


def _bounded(w: Images) -> Images:
    return (w.tanh() + 1) / 2


@dataclass
class _Task:
    """What all descents of one call share."""

    target: Target
    x: Images
    y: Labels
    ball: Ball
    callback: Callback | None
    closest: Closest
    leading: Found
    latest: Images  # w of each sample's last iterate
    going: Int[Tensor, " some"]  # places of the samples still at work

    @classmethod
    def begin(cls, target: Target, x: Images, y: Labels, ball: Ball, callback: Callback | None) -> _Task:
        """Begin with the images as they are; what is wrong already is done."""
        slope = target.value(x, y, margin, 0)
        wrong = adversarial(target, x, y, slope, 0)
        distance = torch.full_like(slope.value, torch.inf).masked_fill(wrong, 0.0)
        closest, going = Closest(x.clone(), distance), (~wrong).nonzero()[:, 0]
        return cls(target, x, y, ball, callback, closest, Found.nothing(x), _unbounded(x), going)

    def result(self) -> Images:
        """Return the nearest adversarial images, or else those of the largest margin, limited to the ball."""
        none = _wide(~self.closest.distance.isfinite())
        return limited(self.ball, torch.where(none, self.leading.images, self.closest.images), self.x)


class _CarliniWagner:
    black_box = False

    def __init__(self, *, steps: int, rounds: int, constant: float, confidence: float, step_size: float) -> None:
        if steps < 1 or rounds < 1 or not constant > 0 or not step_size > 0 or confidence < 0:
            raise RecipeError(
                "Carlini and Wagner's attacks take a step and a round at least, a constant and a step size above zero "
                f"and no negative confidence, not {steps}, {rounds}, {constant}, {step_size} and {confidence}"
            )
        self.steps, self.rounds, self.constant = steps, rounds, constant
        self.confidence, self.step_size = confidence, step_size

    def _lead(self, logits: Logits, y: Labels) -> PerSample:
        """Return minus f: the margin, and no more than the confidence κ."""
        return margin(logits, y).clamp(max=self.confidence)

    def _descend(
        self,
        task: _Task,
        start: Images,
        constant: PerSample,
        within: PerSample,
        penalty: Callable[[Images, PerSample], Images],
        number: int,
    ) -> Bool[Tensor, " batch"]:
        """Take the steps of one round, for the samples at work; those that fall in the ball leave.

        Args:
            task: whose images found, latest iterates and samples at work are brought up to date.
            start: w of the whole batch, as are the next two.
            constant: c.
            within: the distance within which a success counts, τ in l∞.
            penalty: (perturbations, τ) → gradient of the penalty of their size.
            number: of the round.

        Returns:
            Which samples had a success.
        """
        target, ball, won = task.target, task.ball, torch.zeros_like(constant, dtype=torch.bool)
        w = start[task.going]
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(self.steps):
            places = task.going
            if not len(places):
                break
            part, center, labels, now = target[places], task.x[places], task.y[places], _bounded(w)
            query = number * self.steps + step + 1
            slope = part.gradient(now, labels, self._lead, query, progress=(query - 1) / (self.rounds * self.steps))
            if task.callback is not None:
                told = {"step": query - 1, "x": now, "value": slope.value, "gradient": slope.ascent}
                task.callback(told | {"center": center, "ball": ball, "samples": places})
            distance = ball.distance(now, center)
            lead = margin(slope.logits, labels)
            confident = replace(slope, missed=slope.missed * (lead >= self.confidence))
            success = adversarial(part, now, labels, confident, query)
            won[places] |= success & (distance <= within[places])
            task.closest.offer(places[success], now[success], distance[success])
            task.leading.offer(places, now, lead, success)

            gradient = penalty(now - center, within[places]) - _wide(constant[places]) * slope.ascent
            gradient = gradient * 2 * now * (1 - now)  # the derivative of (tanh(w) + 1) / 2
            first = _DECAY * first + (1 - _DECAY) * gradient
            second = _DECAY_SQUARES * second + (1 - _DECAY_SQUARES) * gradient.square()
            mean, square = first / (1 - _DECAY ** (step + 1)), second / (1 - _DECAY_SQUARES ** (step + 1))
            w = w - self.step_size * mean / (square.sqrt() + _TINY)
            task.latest[places] = w

            if target.drop and math.isfinite(ball.eps):
                going = ~(success & (distance <= ball.eps))
                task.going, w, first, second = places[going], w[going], first[going], second[going]
        return won


@register("attack", "carlini-wagner")
class CarliniWagner(_CarliniWagner):
    """Carlini and Wagner's attack in l2, with the constant fixed or found by bisection.

    Args:
        steps: Adam's iterations for each constant.
        searches: constants tried: multiplied by ten until one succeeds, then bisected. With 1 the first one is all.
        constant: c, the first one.
        confidence: κ, by how much a wrong logit must lead.
        step_size: Adam's.

    Raises:
        RecipeError: fewer than one step or search, or a number that is not above zero (κ: below zero).
    """

    norms = ("l2",)

    def __init__(
        self,
        *,
        steps: int = 200,
        searches: int = 9,
        constant: float = 1e-2,
        confidence: float = 0.0,
        step_size: float = 0.01,
    ) -> None:
        super().__init__(steps=steps, rounds=searches, constant=constant, confidence=confidence, step_size=step_size)

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the smallest perturbation found that is adversarial, projected onto the ball if it is larger.

        A sample is done once one lies in the ball, as far as `target` allows it to be left alone; in a ball of infinite
        radius it never is. Where nothing was adversarial the iterate of the largest margin is returned, projected
        likewise. The callback is told of the samples still at work, and of their places in the batch, "samples".
        """
        task = _Task.begin(target, x, y, ball, callback)
        start, anywhere = task.latest.clone(), torch.full((len(x),), torch.inf, device=x.device)
        low, high, constant = torch.zeros_like(anywhere), anywhere.clone(), torch.full_like(anywhere, self.constant)
        for number in range(self.rounds):
            won = self._descend(task, start, constant, anywhere, lambda shift, _: 2 * shift, number)
            low, high = torch.where(won, low, constant), torch.where(won, constant, high)
            constant = torch.where(high.isfinite(), (low + high) / 2, (10 * constant).clamp(max=_LARGEST))
        return task.result()


@register("attack", "carlini-wagner-linf")
class CarliniWagnerLinf(_CarliniWagner):
    """Carlini and Wagner's attack in l∞: a bound τ on every pixel, lowered while the attack succeeds within it.

    Each round begins where the one before ended. After a success τ becomes `shrink` times the largest change needed;
    after a failure c doubles, and a sample is given up once it exceeds 20.

    Args:
        steps: Adam's iterations of a round.
        rounds: rounds at most.
        shrink: factor on τ after a success.
        constant: c, the first one.
        confidence: κ, by how much a wrong logit must lead.
        step_size: Adam's.

    Raises:
        RecipeError: fewer than one step or round, a number that is not above zero (κ: below zero), or a factor that does
            not shrink.
    """

    norms = ("linf",)

    def __init__(
        self,
        *,
        steps: int = 100,
        rounds: int = 30,
        shrink: float = 0.9,
        constant: float = 1e-4,
        confidence: float = 0.0,
        step_size: float = 0.005,
    ) -> None:
        super().__init__(steps=steps, rounds=rounds, constant=constant, confidence=confidence, step_size=step_size)
        if not 0 < shrink < 1:
            raise RecipeError(f"τ shrinks by a factor between 0 and 1, not {shrink}")
        self.shrink = shrink

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the smallest perturbation found, in or projected onto the ball; all as `CarliniWagner` does."""
        task = _Task.begin(target, x, y, ball, callback)
        bound, constant = torch.ones(len(x), device=x.device), torch.full((len(x),), self.constant, device=x.device)
        for number in range(self.rounds):
            won = self._descend(task, task.latest, constant, bound, _excess, number)
            bound = torch.where(won, self.shrink * torch.minimum(bound, task.closest.distance), bound)
            constant = torch.where(won, constant, 2 * constant)
            task.going = task.going[constant[task.going] <= _LARGEST_LINF]
        return task.result()


def _excess(shift: Images, bound: PerSample) -> Images:
    """Return the gradient of Σ (|δ| - τ)₊."""
    return shift.sign() * (shift.abs() > _wide(bound))
