"""An attacker who knows the detector: wrong to the classifier, ordinary to the detector, in the same ball.

Detectors fall to attacks that descend their score (Carlini and Wagner 2017, "Adversarial examples are not easily detected").
PGD on  CE(C(x), y) - w · max(0, (s(x) - t) / u + 1/2)  with s the score, t the threshold, u the spread of clean scores. It is run
for several weights w; an image counts as evading if one of them does on draws that no run has seen. What comes back is always
an attacked image, also where the attack failed: a clean one in its place would be taken for an attack that nobody notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample

WEIGHTS = (0.0, 1.0, 10.0)
"""Of the detector in the objective; 0 is plain PGD on the classifier."""


class _Seen:
    """The wrongly classified iterate with the lowest score, sample by sample."""

    def __init__(self, x: Images) -> None:
        self.images = x.clone()
        self.score = torch.full((len(x),), torch.inf, device=x.device)

    @property
    def any(self) -> Bool[Tensor, " batch"]:
        return self.score.isfinite()

    def offer(self, images: Images, wrong: Bool[Tensor, " batch"], score: PerSample) -> None:
        better = wrong & (score < self.score)
        self.images[better], self.score[better] = images[better], score[better]


def evade(
    classifier: Callable[[Images], Float[Tensor, "batch classes"]],
    detector: Callable[[Images, Keys], PerSample],
    x: Images,
    y: Labels,
    ball: Ball,
    *,
    threshold: float,
    spread: float,
    keys: Keys,
    steps: int = 40,
    weights: tuple[float, ...] = WEIGHTS,
) -> Images:
    """Return for each sample an image that is classified wrongly and scores below the threshold, where one was found.

    Where none was, the wrongly classified image with the lowest score stands; where the classifier was never wrong, what the
    last weight ended with. With the weight 0 alone it is the end of plain PGD, whatever the classifier says of it: an attacker
    who does not know of the detector.

    Args:
        classifier: logits from [0, 1] images.
        detector: differentiable scores.
        x: `[B, C, H, W]` in [0, 1].
        y: true classes `[B]`.
        ball: the budget.
        threshold: scores above it are detected.
        spread: of clean scores, so that weights mean the same for every score.
        keys: the attacker's, one per sample.
        steps: of each weight's run.
        weights: tried in turn; only what has not evaded yet goes on.
    """
    result = x.clone()
    lowest = torch.full((len(x),), torch.inf, device=x.device)
    left: Bool[Tensor, " batch"] = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for number, weight in enumerate(weights):
        if not left.any():
            break
        part, labels, own = x[left], y[left], keys[left].fold("evade", number)
        seen = _Seen(part)

        def objective(images: Images, step: int) -> PerSample:
            logits = classifier(images)
            loss = F.cross_entropy(logits, labels, reduction="none")  # noqa: B023
            if weight == 0:  # noqa: B023
                return loss
            score = detector(images, own.fold("step", step))  # noqa: B023
            seen.offer(images.detach(), logits.argmax(1) != labels, score.detach())  # noqa: B023
            # Aimed half a spread below the threshold: on it, fresh draws would detect every other image.
            return loss - weight * ((score - threshold) / spread + 0.5).clamp(min=0)  # noqa: B023

        last = projected_descent(
            objective,
            part,
            ball,
            steps=steps,
            step_size=lambda step: 2.5 / steps * ball.eps * (1 + math.cos(math.pi * step / steps)),
            maximise=True,
            start=ball.random(part, own.fold("start")),
        ).last
        found = torch.where(seen.any.view(-1, 1, 1, 1), seen.images, last)
        with torch.no_grad():
            wrong = classifier(found).argmax(1) != labels
            score = torch.where(wrong, detector(found, own.fold("check")), torch.full_like(lowest[left], torch.inf))
        # Not `<`: what fools nobody has an infinite score, and the image of a later run takes an earlier one's place.
        better = score <= lowest[left]
        where = left.nonzero()[:, 0][better]
        result[where], lowest[where] = found[better], score[better]
        left = lowest > threshold
    return result
