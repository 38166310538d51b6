"""PGD with an estimate of the information between image and features (PGD-MI; MIMIR, Eq. 21).

    max over δ  L_CE(x + δ, y) + λ I(x + δ, z)

MIMIR's pre-training lowers I(x + δ, z), so the attack raises it, with the λ of the pre-training, 10⁻⁵; its code estimates I
with `hsic-cca` on batches of 16. At that weight the attack is PGD to rounding. z is what goes into a layer of the classifier.

An estimate takes a batch, and would make the images of a batch depend on each other: on how they are dealt into batches, and on
which of them have fallen. Here each image is estimated with reference images that are the same for all and stay clean,
I({x + δ, r₁, …, rₙ₋₁}, {z, z₁, …, zₙ₋₁}). To the gradient in x + δ that differs from the paper's only in that the others are not
under attack themselves. A negative weight lowers the information instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from robustmim.attacks.features import climb_term, with_features
from robustmim.attacks.objectives import Logits, Loss, cross_entropy
from robustmim.attacks.parts import Parts, known_parts
from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.information.estimators import estimator as named_estimator
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.rng import keys as make_keys
from robustmim.types import Images, Labels, PerSample


@register("attack", "mutual-information")
class MutualInformation:
    """PGD on cross-entropy + weight · estimate(image, features), each image among the same reference images.

    Args:
        weight: λ of Eq. 21; which sizes matter depends on the estimator.
        estimator: `robustmim.information.estimators`: hsic-cca is the paper's code, kernel-cka in [0, 1], renyi in bits.
        estimator_options: its keyword arguments.
        images: images of an estimate, the attacked one among them.
        layer: name of the classifier's layer whose input counts as the features; None takes its last linear one.
        steps, step_size, schedule, momentum, random_start, restarts, drop: see `PGD`.

    Raises:
        RecipeError: no such estimator, fewer than four images, or what `PGD` refuses.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self,
        *,
        weight: float = 1.0,
        estimator: str = "kernel-cka",
        estimator_options: dict[str, Any] | None = None,
        images: int = 16,
        layer: str | None = None,
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        momentum: float = 0.0,
        random_start: bool = True,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        if images < 4:
            raise RecipeError(f"information is estimated from four images at least, not {images}")
        self.weight, self.images, self.layer = weight, images, layer
        self.estimate = named_estimator(estimator, **(estimator_options or {}))
        self.steps, self.restarts = steps, restarts
        self.pgd = PGD(
            steps=steps,
            step_size=step_size,
            schedule=schedule,
            momentum=momentum,
            random_start=random_start,
            restarts=restarts,
            drop=drop,
        )

    def _reference(self, parts: Parts) -> Images:
        found = parts.reference_images()
        if len(found) < self.images - 1:
            raise RecipeError(
                f"information among {self.images} images takes {self.images - 1} reference images, but there are "
                f"{len(found)}; set `images` to {len(found) + 1} or less"
            )
        return found[: self.images - 1]

    def check(self, parts: Parts) -> None:
        """Raise RecipeError for a classifier without such a layer, or too few reference images."""
        parts.layer(self.layer)
        self._reference(parts)

    def objective(self, scores: Logits, y: Labels) -> PerSample:
        """Return what is climbed: the last column of the scores is the estimate."""
        return cross_entropy(scores[:, :-1], y) + self.weight * scores[:, -1]

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the last iterate of each sample, or the one at which it fell.

        Raises:
            RecipeError: the target has no parts; the classifier no such layer; too few reference images.
        """
        parts = known_parts(target.parts)
        others = self._reference(parts).to(x)
        answer = with_features(target.scores, parts.layer(self.layer))
        places = torch.arange(len(others), device=x.device)
        clean = replace(target, keys=make_keys(0, "reference", places), known=None)
        features = clean.asking(lambda *query: answer(*query)[1], others).value(others, places, climb_term, 0).logits

        def scores(images: Images, drawn: Keys, progress: float) -> Tensor:
            logits, own = answer(images, drawn, progress)
            estimates = [
                self.estimate(torch.cat([image[None], others]), torch.cat([z[None], features]))
                for image, z in zip(images, own, strict=True)
            ]
            return torch.cat([logits, torch.stack(estimates)[:, None]], dim=1)

        both = target.asking(scores, x, terms=1)

        def aim(active: Bool[Tensor, " batch"]) -> tuple[Target, Loss]:
            return both[active], self.objective

        return self.pgd.climb(target, x, y, ball, aim=aim, callback=callback)
