"""The joint attack of AMRM-Pure (Appendix C.8): fool the classifier with an image that the masked model finds normal.

    min over x'  (1 − α) L_rec(x') − α L_cls(x')                                      (Eq. 5)

A purifier that descends L_rec has least to undo where L_rec is low. The attack climbs α L_cls − (1 − α) L_rec, which is the
same; α = 1 is PGD. The paper leaves open whether L_cls is taken behind the purifier (A24 of docs/paper-versus-code): that
is `against` of the evaluation, "defence" for behind it and "classifier" for without it. L_rec is the masked model's loss on
masks of the attacker's own, of the ratio the purifier has. It is some hundred times smaller than L_cls; so are the α at which
it matters.

The reverse, climbing α L_cls + (1 − α) L_rec, gives the purifier a long way to go, on which it may lose the class itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from robustmim.attacks.objectives import Logits, Loss, named_loss
from robustmim.attacks.parts import Parts, known_parts, masked_loss
from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample


@register("attack", "joint")
class Joint:
    """PGD on weight · L_cls − (1 − weight) · L_rec; with `reverse`, on their sum.

    Args:
        weight: α of Eq. 5, in [0, 1]; the paper takes 0.1, 0.3, 0.5, 0.7 and 0.9.
        reverse: look for images that the masked model finds odd, not normal.
        masks: masks that L_rec is averaged over in each draw.
        loss: L_cls: cross-entropy, margin or dlr.
        steps, step_size, schedule, momentum, random_start, restarts, drop: see `PGD`.

    Raises:
        RecipeError: a weight outside [0, 1], no masks, or what `PGD` refuses.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self,
        *,
        weight: float = 0.5,
        reverse: bool = False,
        masks: int = 1,
        loss: str = "cross-entropy",
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        momentum: float = 0.0,
        random_start: bool = True,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        if not 0 <= weight <= 1:
            raise RecipeError(f"the joint attack's weight is in [0, 1], not {weight}")
        if masks < 1:
            raise RecipeError(f"the joint attack averages its reconstruction loss over one mask at least, not {masks}")
        self.weight, self.reverse, self.masks, self.loss = weight, reverse, masks, named_loss(loss)
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

    def check(self, parts: Parts) -> None:
        """Raise RecipeError for a defence without a masked model."""
        parts.masked_purifier()

    def objective(self, scores: Logits, y: Labels) -> PerSample:
        """Return what is climbed: the last column of the scores is L_rec."""
        reconstruction = scores[:, -1] if self.reverse else -scores[:, -1]
        return self.weight * self.loss(scores[:, :-1], y) + (1 - self.weight) * reconstruction

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the last iterate of each sample, or the one at which it fell.

        Raises:
            RecipeError: the target has no parts, or no masked model among them.
        """
        purifier = known_parts(target.parts).masked_purifier()

        def scores(images: Images, drawn: Keys, progress: float) -> Tensor:
            logits = target.scores(images, drawn, progress)
            return torch.cat([logits, masked_loss(purifier, images, drawn, self.masks)[:, None]], dim=1)

        both = target.asking(scores, x, terms=1)

        def aim(active: Bool[Tensor, " batch"]) -> tuple[Target, Loss]:
            return both[active], self.objective

        return self.pgd.climb(target, x, y, ball, aim=aim, callback=callback)
