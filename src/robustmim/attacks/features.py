"""PGD on features (MIMIR, Eq. 22; after Sabour et al. 2016): drive them as far as possible from those of the clean image.

    max over δ  mean (f(x + δ) − f(x))²

f is what goes into a layer of the classifier, by default its last linear one. MIMIR takes all tokens of the ViT's backbone;
with ours that is `layer: fc_norm` but for the mean over the tokens. The labels are not used, so the attack is weaker than one
on the loss wherever features may move without changing the answer; the paper finds 78 % left against 56 % for PGD (Table XI).
Behind a purifier the features are those of the purified image, and f(x) is their mean over the draws of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustmim.attacks.objectives import Logits, Loss
from robustmim.attacks.parts import Features, Parts, captured, known_parts, last_of
from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Scores, Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample


def with_features(scores: Scores, layer: nn.Module) -> Callable[[Images, Keys, float], tuple[Logits, Features]]:
    """Return the scores and what goes into a layer of the classifier behind them, in one pass.

    Raises:
        RecipeError: on being asked, where the layer does not see each image once.
    """

    def both(x: Images, drawn: Keys, progress: float) -> tuple[Logits, Features]:
        with captured(layer) as seen:
            logits = scores(x, drawn, progress)
        features = last_of(seen)
        if len(features) != len(logits):
            raise RecipeError(
                f"the layer sees {len(features)} inputs for {len(logits)} images, as in a classifier that asks about several views "
                "of each, so that its input is not an image's features; name another `layer`"
            )
        return logits, features

    return both


def climb_term(scores: Logits, y: Labels) -> PerSample:
    """Return the last column of the scores."""
    return scores[:, -1]


@register("attack", "features")
class FeatureDistance:
    """PGD on the mean squared difference between the features of the attacked and of the clean image.

    The first iterate is random: at the clean image the distance is zero, and so is its gradient.

    Args:
        layer: name of the classifier's layer whose input counts as the features; None takes its last linear one.
        steps, step_size, schedule, momentum, restarts, drop: see `PGD`.

    Raises:
        RecipeError: what `PGD` refuses.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(
        self,
        *,
        layer: str | None = None,
        steps: int = 20,
        step_size: float = 0.25,
        schedule: Literal["constant", "cosine"] = "constant",
        momentum: float = 0.0,
        restarts: int = 1,
        drop: bool = True,
    ) -> None:
        self.layer, self.steps, self.restarts = layer, steps, restarts
        self.pgd = PGD(
            steps=steps, step_size=step_size, schedule=schedule, momentum=momentum, restarts=restarts, drop=drop
        )

    def check(self, parts: Parts) -> None:
        """Raise RecipeError for a classifier without such a layer."""
        parts.layer(self.layer)

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the last iterate of each sample, or the one at which it fell.

        Raises:
            RecipeError: the target has no parts, or the classifier no such layer, or one that does not see each image once.
        """
        answer = with_features(target.scores, known_parts(target.parts).layer(self.layer))
        clean = target.asking(lambda *query: answer(*query)[1], x).value(x, y, climb_term, 0).logits

        def aim(active: Bool[Tensor, " batch"]) -> tuple[Target, Loss]:
            own = clean[active]

            def scores(images: Images, drawn: Keys, progress: float) -> Tensor:
                logits, features = answer(images, drawn, progress)
                moved = features - own.repeat(len(images) // len(own), 1)
                return torch.cat([logits, moved.square().mean(1, keepdim=True)], dim=1)

            return target[active].asking(scores, x[active], terms=1), climb_term

        return self.pgd.climb(target, x, y, ball, aim=aim, callback=callback)
