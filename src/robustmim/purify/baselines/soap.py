"""SOAP (Shi, Holtz and Mishne 2021): descend a self-supervised loss over the image, and keep the radius that lowers it most.

For each of the radii 0, ε, 2ε, … a few projected sign steps lower an auxiliary loss, which needs no label; of the images found
the one of least loss is the purified one (its Algorithm 1). AMRM-Pure is of this kind, with one radius and another loss; both
run the same loop here. Where the paper trains classifier and auxiliary loss together, ours takes networks as they are: a masked
model, any classifier, or one of four rotations. Published weights were not to be had, so its numbers are not reproduced.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.adjoint import TwoPathObjective, Unrolled
from robustmim.config import AMRMConfig, GradientConfig
from robustmim.data.images import check_images
from robustmim.descent import projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.masked import MaskedModel, RandomisedModel, freeze
from robustmim.models.masking import hidden_count
from robustmim.purify.amrm import ReconstructionObjective, for_samples, padded_batch
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

Auxiliary = Literal["reconstruction", "consistency", "rotation"]


class Consistency:
    """Label consistency: squared distance of the logits for the image and for its mirrored, enlarged middle.

    The released code compares with this one view: mirrored, of each side the middle three quarters, by nearest pixels.

    Args:
        classifier: from [0, 1] images to logits.
    """

    paths: Literal["both", "input", "target"] = "both"

    def __init__(self, classifier: nn.Module) -> None:
        self._classifier = classifier

    def between(self, seen: Images, target: Images, step: int) -> PerSample:
        """Return the loss of `seen`; there is nothing to compare with."""
        height, width = seen.shape[-2:]
        top, left = height // 8, width // 8
        middle = seen.flip(3)[..., top : height - top, left : width - left]
        # One call for both views would make batches of twice the size; a sample's bits are kept by two of the same size.
        first, second = (self._classifier(view) for view in (seen, F.interpolate(middle, (height, width))))
        return (first - second).square().mean(1)

    def __call__(self, x: Images, step: int) -> PerSample:
        """Return the loss."""
        return self.between(x, x, step)


class Rotation:
    """Rotation prediction: cross entropy of telling by which quarter turn an image has been turned, over all four.

    Args:
        classifier: from [0, 1] images to four logits, for 0°, 90°, 180° and 270° (clockwise).
    """

    paths: Literal["both", "input", "target"] = "both"

    def __init__(self, classifier: nn.Module) -> None:
        self._classifier = classifier

    def between(self, seen: Images, target: Images, step: int) -> PerSample:
        """Return the loss of `seen`; there is nothing to compare with.

        Raises:
            RecipeError: a classifier of another number of classes.
        """
        losses = []
        for turns in range(4):
            logits = self._classifier(torch.rot90(seen, -turns, dims=(2, 3)))
            if logits.shape[1] != 4:
                raise RecipeError(f"soap: rotations are four classes, but the network has {logits.shape[1]}")
            losses.append(-F.log_softmax(logits, dim=1)[:, turns])
        return torch.stack(losses).mean(0)

    def __call__(self, x: Images, step: int) -> PerSample:
        """Return the loss."""
        return self.between(x, x, step)


@register("purifier", "soap")
class Soap:
    """Purify by the radius and the descent that lower an auxiliary loss most.

    Args:
        model: for "reconstruction" a masked model, for the others a classifier; it is frozen.
        auxiliary: the loss. "reconstruction": of a masked model, averaged over masks that are the same for all images, so that
            the defence draws nothing, as the original does not; "consistency" or "rotation", see `Consistency`, `Rotation`.
        radii: number of radii above zero.
        radius: the first of them, in pixel fractions; the others are its multiples.
        steps: sign steps at each radius.
        step_size: their length.
        mask_ratio: fraction hidden, for "reconstruction".
        mask_average: number of masks.

    Raises:
        RecipeError: no step or no radius, a negative length, an auxiliary loss that there is not, or a model that has none of
            that kind.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        auxiliary: Auxiliary = "consistency",
        radii: int = 10,
        radius: float = 4 / 255,
        steps: int = 5,
        step_size: float = 4 / 255,
        mask_ratio: float = 0.25,
        mask_average: int = 4,
    ) -> None:
        if auxiliary not in ("reconstruction", "consistency", "rotation"):
            raise RecipeError(f"soap: the auxiliary loss is reconstruction, consistency or rotation, not {auxiliary!r}")
        if steps < 1 or radii < 1 or mask_average < 1:
            raise RecipeError("soap takes at least one step, one radius and one mask")
        if not (radius > 0 and step_size > 0):
            raise RecipeError(f"soap: radius and step size are above 0, but here {radius} and {step_size}")
        if (auxiliary == "reconstruction") != isinstance(model, MaskedModel):
            wanted = "a masked model" if auxiliary == "reconstruction" else "a classifier"
            raise RecipeError(f"soap: the auxiliary loss {auxiliary} needs {wanted}, not a {type(model).__name__}")
        hidden_count(2, mask_ratio)  # refuses a ratio that no grid can have
        self.network = freeze(model)
        self.auxiliary, self.radii, self.radius, self.steps, self.step_size = auxiliary, radii, radius, steps, step_size
        self._masks = AMRMConfig(masks="fixed-global", mask_ratio=mask_ratio, mask_average=mask_average, steps=steps)

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(
            randomised=isinstance(self.network, RandomisedModel) and self.network.randomised,
            optimises_at_test_time=True,
            steps=self.steps * self.radii,
            ball=Ball(norm="linf", eps=self.radii * self.radius),
        )

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: one per sample, for the draws of a masked model that has any.
            callback: told each step as by `AMRMPure`, radius after radius.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        size = len(x)
        if size == 0:
            return x
        check_images(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._search(*padded_batch(x.detach().clone(), keys), size, callback)[0][:size]

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with a gradient of the attacker's choice through the descent at the radius chosen.

        The choice itself is flat and taken as it is; of the signs the modes of `GradientConfig` make what they make of
        AMRM-Pure's.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            keys: one per sample.
            gradient: which gradient, and through which descent (`ball_scale`, `steps`); not "identity".
            progress: of the attack in [0, 1], for an annealed temperature.

        Raises:
            InputError: as above.
        """
        check_images(x)
        size = len(x)
        with torch.inference_mode(False), torch.no_grad():
            chosen = self._search(*padded_batch(x.detach().clone(), keys), size, None)[1][:size]
        steps = self.steps if gradient.steps is None else gradient.steps
        purified = x
        for number in chosen.unique().tolist():
            if number == 0:
                continue
            padded, own = padded_batch(x, keys)
            unrolled = Unrolled(
                objective=self._objective(own, padded, twice=gradient.product == "hessian"),
                ball=Ball(norm="linf", eps=number * self.radius * gradient.ball_scale),
                lengths=[self.step_size] * steps,
                gradient=gradient,
                progress=progress,
            )
            purified = torch.where((chosen == number).view(-1, 1, 1, 1), unrolled(padded)[:size], purified)
        return purified

    def _objective(self, keys: Keys, x: Images, *, twice: bool = False) -> TwoPathObjective:
        if isinstance(self.network, MaskedModel):
            grid = self.network.grid(*x.shape[-2:])
            return ReconstructionObjective(self.network, self._masks, keys, grid, twice=twice)
        return Consistency(self.network) if self.auxiliary == "consistency" else Rotation(self.network)

    def _search(self, x: Images, keys: Keys, size: int, callback: Callback | None) -> tuple[Images, Tensor]:
        """Return the image of least loss, and for each sample the number of its radius, 0 for none."""
        objective = self._objective(keys, x)
        best, least = x, objective(x, 0)
        chosen = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for number in range(1, self.radii + 1):

            def tell(state: dict[str, Any], number: int = number) -> None:
                assert callback is not None
                callback(state | {"step": (number - 1) * self.steps + state["step"]})

            found = projected_descent(
                objective,
                x,
                Ball(norm="linf", eps=number * self.radius),
                steps=self.steps,
                step_size=lambda step: self.step_size,
                maximise=False,
                callback=for_samples(tell if callback else None, size),
            ).last
            loss = objective(found, self.steps)
            lower = loss < least
            best = torch.where(lower.view(-1, 1, 1, 1), found, best)
            least, chosen = torch.where(lower, loss, least), torch.where(lower, number, chosen)
        return best, chosen
