"""What an attack climbs: losses of logits that rise as the answer gets worse, one value per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import RecipeError, suggest
from robustmim.types import Labels, PerSample

Logits = Float[Tensor, "batch classes"]
Loss = Callable[[Logits, Labels], PerSample]
"""(logits, true classes) → values; above zero or higher means nearer to a wrong answer."""


def cross_entropy(logits: Logits, y: Labels) -> PerSample:
    """Return the cross-entropy of the true class."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Logits, y: Labels) -> PerSample:
    """Return the largest wrong logit minus the right one (Carlini and Wagner 2017, f₆ untargeted): positive once wrong."""
    right = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - right


def difference_of_logits_ratio(logits: Logits, y: Labels) -> PerSample:
    """Return the DLR loss (Croce and Hein 2020, Eq. 6): the margin over the gap of first and third logit.

    It is the same for logits times any positive number, so a saturated softmax does not hide its gradient. With fewer
    than three classes there is no third logit, and it is the plain margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, y) / (first - third + 1e-12)


def targeted_difference_of_logits_ratio(logits: Logits, y: Labels, target: Labels) -> PerSample:
    """Return the targeted DLR loss (Croce and Hein 2020, Eq. 7): rises as `target` overtakes the true class.

    Raises:
        RecipeError: fewer than four classes, for which it is not defined.
    """
    if logits.shape[1] < 4:
        raise RecipeError(f"the targeted DLR loss needs at least four classes, not {logits.shape[1]}; use another loss")
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return targeted_margin(logits, y, target) / (first - (third + fourth) / 2 + 1e-12)


def targeted_cross_entropy(logits: Logits, y: Labels, target: Labels) -> PerSample:
    """Return minus the cross-entropy of the class wanted."""
    return -F.cross_entropy(logits, target, reduction="none")


def targeted_margin(logits: Logits, y: Labels, target: Labels) -> PerSample:
    """Return the logit of the class wanted minus the right one: positive once that class is ahead of it."""
    return logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


LOSSES: dict[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": difference_of_logits_ratio}


def named_loss(name: str) -> Loss:
    """Return an untargeted loss by name: cross-entropy, margin or dlr.

    Raises:
        RecipeError: no such loss.
    """
    if name not in LOSSES:
        raise RecipeError(f"there is no loss called {name!r}. {suggest(name, LOSSES)}")
    return LOSSES[name]
