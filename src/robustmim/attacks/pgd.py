"""Projected gradient descent (Madry et al. 2018) with expectation over the defence's draws (EOT, Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustmim.config import AttackConfig
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample

Scores = Callable[[Images, Keys], Tensor]
"""(images, keys of the defence's draws) → logits `[B, classes]`."""


@register("attack", "pgd")
class PGD:
    """Untargeted PGD on the cross-entropy.

    Each step averages the loss over `eot` draws of the defence, taken one after another: together they would only take
    more memory. The attacker's draws are its own; the verdict must be taken on others.
    """

    def __init__(self, config: AttackConfig = AttackConfig()) -> None:
        self.config = config

    def __call__(
        self, scores: Scores, x: Images, y: Labels, ball: Ball, *, keys: Keys, callback: Callback | None = None
    ) -> Images:
        """Return adversarial images in the ball around `x`.

        Args:
            scores: the model, given the keys its own random draws come from.
            x: `[B, C, H, W]` in [0, 1].
            y: true classes `[B]`.
            ball: the budget.
            keys: the attacker's randomness, one key per sample.
            callback: see `projected_descent`.
        """
        config = self.config

        def loss(images: Images, step: int) -> PerSample:
            total = torch.zeros(len(images), device=images.device)
            for draw in range(config.eot):
                logits = scores(images, keys.fold("eot", step, draw))
                total = total + F.cross_entropy(logits, y, reduction="none")
            return total / config.eot

        return projected_descent(
            loss,
            x,
            ball,
            steps=config.steps,
            step_size=lambda step: config.step_size * ball.eps,
            maximise=True,
            start=ball.random(x, keys.fold("start")) if config.random_start else None,
            callback=callback,
        ).last
