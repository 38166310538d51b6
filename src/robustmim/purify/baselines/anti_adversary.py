"""Anti-adversary (Alfarra et al. 2022): move an image so that a classifier becomes surer of the answer it gives already.

    x ← clip(x − λ · sign ∇ₓ L(f(x), ŷ), η),   ŷ = argmax f(x₀)

The original asks the classifier that is defended, without which an attacker's gradient is masked and little is gained. Asked of
another classifier, one that withstands attacks (ours), the steps carry its answer over to the defended one: perturbations that
raise a robust classifier's confidence look like the class and move other classifiers too. The result can hold no better than the
guide does, so the guide alone belongs beside it in every table.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.adjoint import Unrolled
from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.descent import projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.folded import folded
from robustmim.purify.amrm import for_samples, padded_batch
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample


class Doubt:
    """−log p(ŷ | x): how unsure a classifier is of given answers.

    Args:
        classifier: from [0, 1] images to logits.
        answers: one for each image.
    """

    paths: Literal["both", "input", "target"] = "both"

    def __init__(self, classifier: nn.Module, answers: Labels) -> None:
        self._classifier, self._answers = classifier, answers

    def between(self, seen: Images, target: Images, step: int) -> PerSample:
        """Return the doubt at `seen`; there is nothing to compare with."""
        return F.cross_entropy(self._classifier(seen), self._answers, reduction="none")

    def __call__(self, x: Images, step: int) -> PerSample:
        """Return the doubt."""
        return self.between(x, x, step)


@register("purifier", "anti-adversary")
class AntiAdversary:
    """Descend a classifier's doubt of its own answer.

    Args:
        model: the classifier that is asked, from [0, 1] images to logits; it is frozen.
        steps: sign steps.
        step_size: their length in pixel fractions.
        radius: η, how far the image may be moved, l∞, in pixel fractions.

    Raises:
        RecipeError: no step, or a length or radius that is not above zero.
    """

    def __init__(self, model: nn.Module, *, steps: int = 2, step_size: float = 0.15, radius: float = 0.15) -> None:
        if steps < 1:
            raise RecipeError(f"anti-adversary takes at least one step, not {steps}")
        if not (step_size > 0 and radius > 0):
            raise RecipeError(f"anti-adversary: step size and radius are above 0, but here {step_size} and {radius}")
        self.guide = folded(model)
        self.steps, self.step_size, self.radius = steps, step_size, radius

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        ball = Ball(norm="linf", eps=self.radius)
        return Traits(randomised=False, optimises_at_test_time=True, steps=self.steps, ball=ball)

    def _doubt(self, x: Tensor) -> Doubt:
        with torch.no_grad():
            return Doubt(self.guide, self.guide(x).argmax(1))

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images; nothing is drawn.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: not used.
            callback: told each step as by `AMRMPure`.

        Raises:
            InputError: images out of range, not finite, or of a size the classifier does not take.
        """
        size = len(x)
        if size == 0:
            return x
        check_images(x)
        with torch.inference_mode(False), torch.no_grad():
            padded, _ = padded_batch(x.detach().clone(), keys)
            return projected_descent(
                self._doubt(padded),
                padded,
                Ball(norm="linf", eps=self.radius),
                steps=self.steps,
                step_size=lambda step: self.step_size,
                maximise=False,
                callback=for_samples(callback, size),
            ).last[:size]

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with a gradient of the attacker's choice; the answer ŷ is flat and taken as it is.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: not used.
            gradient: which gradient, and through which descent; not "identity".
            progress: of the attack in [0, 1], for an annealed temperature.

        Raises:
            InputError: as above.
        """
        check_images(x)
        padded, _ = padded_batch(x, keys)
        unrolled = Unrolled(
            objective=self._doubt(padded.detach()),
            ball=Ball(norm="linf", eps=self.radius * gradient.ball_scale),
            lengths=[self.step_size] * (self.steps if gradient.steps is None else gradient.steps),
            gradient=gradient,
            progress=progress,
        )
        return unrolled(padded)[: len(x)]
