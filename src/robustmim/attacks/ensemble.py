"""Climb the losses of the defence and of another classifier at once (Liu et al. 2017; Tramèr et al. 2018).

For a purifier that goes by the answer of a guide, whose choice of a class is flat: the gradient through the purifier does not see
how the guide is turned, the guide's own gradient does.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from robustmim.attacks.objectives import Logits, Loss, margin, named_loss, targeted_margin
from robustmim.attacks.parts import Parts, known_parts, opened_surrogate
from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Target
from robustmim.errors import InputError, RecipeError
from robustmim.geometry import Ball
from robustmim.models.folded import folded
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample


@register("attack", "ensemble")
class Ensemble:
    """PGD on the loss of the defence + weight · the loss of a surrogate classifier. A sample falls when the defence does.

    Args:
        surrogate: zoo name, folder of a trained classifier, or, with `arch`, someone else's file of weights; none for the
            guide of the purifier, see `Parts.guide`.
        arch: registered classifier that the file belongs to.
        weight: of the surrogate's loss, above zero.
        loss: of both: cross-entropy, margin or dlr.
        targets: aim both at so many wrong classes in turn, those that the surrogate finds likeliest first: the loss is
            the class's logit minus the right one. 0 for `loss`.
        steps, step_size, schedule, momentum, random_start, restarts, drop: see `PGD`.

    Raises:
        RecipeError: a weight that is not above zero, targets below zero, `arch` without a surrogate, or what `PGD` refuses.
        CheckpointError: the surrogate cannot be loaded.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self,
        *,
        surrogate: str | None = None,
        arch: str | None = None,
        weight: float = 1.0,
        loss: str = "cross-entropy",
        targets: int = 0,
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        momentum: float = 0.0,
        random_start: bool = True,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        if weight <= 0:
            raise RecipeError(
                f"ensemble: the surrogate's weight is above 0, but this one is {weight}; without it, use pgd"
            )
        if targets < 0:
            raise RecipeError(f"ensemble: targets is a number of classes, 0 for none, but here it is {targets}")
        named = opened_surrogate(surrogate, arch)
        self.surrogate = None if named is None else folded(named)
        self.weight, self.loss = weight, named_loss(loss)
        self.steps, self.restarts, self.targets = steps, restarts, targets
        self.pgd = PGD(
            steps=steps,
            step_size=step_size,
            schedule=schedule,
            momentum=momentum,
            random_start=random_start,
            restarts=restarts,
            drop=drop,
        )

    def check(self, parts: Parts) -> None:
        """Raise RecipeError where the purifier's guide is the surrogate and there is none."""
        if self.surrogate is None:
            parts.guide()

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the last iterate of each sample, or the one at which it fell; of several classes, that of the largest margin.

        Raises:
            RecipeError: the purifier's guide is the surrogate and there is none.
            InputError: the surrogate tells other classes apart than the labels are of.
        """
        surrogate = (self.surrogate or folded(known_parts(target.parts).guide())).to(x.device)
        with torch.no_grad():
            believed = surrogate(x)
        classes = believed.shape[-1]
        if int(y.max()) >= classes:
            raise InputError(
                f"the surrogate of the ensemble has {classes} classes, but there is a label {int(y.max())}"
            )

        def scores(images: Images, drawn: Keys, progress: float) -> Tensor:
            return torch.cat([target.scores(images, drawn, progress), surrogate(images)], dim=1)

        def both_by(loss: Loss) -> Loss:
            def climbed(found: Logits, labels: Labels) -> PerSample:
                return loss(found[:, :-classes], labels) + self.weight * loss(found[:, -classes:], labels)

            return climbed

        both = target.asking(scores, x, terms=classes)
        if not self.targets:
            return self.pgd.climb(
                target, x, y, ball, aim=lambda active: (both[active], both_by(self.loss)), callback=callback
            )
        likely = believed.scatter(1, y[:, None], -torch.inf).topk(min(self.targets, classes - 1), dim=1).indices
        result, standing = x.clone(), torch.arange(len(x), device=x.device)
        reached = torch.full((len(x),), -torch.inf, device=x.device)
        for number in range(likely.shape[1]):
            some, labels, wanted = target[standing], y[standing], likely[standing, number]

            def aim(
                active: Bool[Tensor, " batch"], places: Tensor = standing, wanted: Labels = wanted
            ) -> tuple[Target, Loss]:
                return both[places[active]], both_by(partial(targeted_margin, target=wanted[active]))

            ends = self.pgd.climb(some, x[standing], labels, ball, aim=aim, callback=callback)
            slope = some.value(ends, labels, margin, number)
            fell = some.fallen(ends, labels, slope, number)
            better = fell | (slope.value > reached[standing])
            result[standing[better]], reached[standing[better]] = ends[better], slope.value[better]
            standing = standing[~fell]
            if not len(standing):
                break
        return result
