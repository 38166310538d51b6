"""Attack another classifier and hand the result over (Szegedy et al. 2014; Papernot et al. 2017): nothing is asked of the defence.

Where such images break more than the attacks by gradient on the defence itself, these do not work (`transfer-wins`,
`black-box-wins` of docs/honesty).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustmim.attacks.objectives import Logits
from robustmim.attacks.parts import KnowingAttack, Parts, known_parts, opened_surrogate
from robustmim.attacks.target import Attack, Target
from robustmim.errors import InputError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import build, register
from robustmim.rng import Keys
from robustmim.types import Images, Labels


@register("attack", "transfer")
class Transfer:
    """Any attack on a surrogate classifier. No sample is left alone early: an image at the surrogate's boundary carries over least.

    Args:
        surrogate: zoo name, folder of a trained classifier, or, with `arch`, someone else's file of weights; none for the
            guide of the purifier, see `Parts.guide`.
        arch: registered classifier that the file belongs to.
        attack: registered attack that is made on it.
        options: that attack's options.

    Raises:
        RecipeError: no such attack or option; `arch` without a surrogate.
        CheckpointError: the surrogate cannot be loaded.
    """

    black_box = True

    def __init__(
        self,
        *,
        surrogate: str | None = None,
        arch: str | None = None,
        attack: str = "pgd",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.attack: Attack = build("attack", attack, **(options or {}))
        self.norms = self.attack.norms
        self.surrogate = opened_surrogate(surrogate, arch)
        if self.surrogate is not None:
            self._check(self.surrogate)

    def _check(self, surrogate: nn.Module) -> None:
        if isinstance(self.attack, KnowingAttack):
            self.attack.check(Parts(classifier=surrogate))

    def check(self, parts: Parts) -> None:
        """Raise RecipeError where the purifier's guide is the surrogate and there is none."""
        if self.surrogate is None:
            self._check(parts.guide())

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the images that the attack makes on the surrogate; `target` gives its keys, and is asked nothing.

        Raises:
            RecipeError: the purifier's guide is the surrogate and there is none.
            InputError: the surrogate knows fewer classes than the labels need.
        """
        surrogate = (self.surrogate or known_parts(target.parts).guide()).to(x.device)

        def scores(images: Images, drawn: Keys, progress: float) -> Logits:
            return surrogate(images)

        own = Target(
            scores=scores,
            keys=target.keys.fold("surrogate"),
            drop=False,
            parts=Parts(classifier=surrogate),
            interrupt=target.interrupt,
        )
        if len(x):
            with torch.no_grad():
                classes = surrogate(x[:1]).shape[1]
            if int(y.max()) >= classes:
                raise InputError(f"the surrogate knows {classes} classes, but there is a label {int(y.max())}")
        return self.attack(own, x, y, ball, callback=callback)
