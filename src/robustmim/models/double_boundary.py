"""A classifier of K classes behind a network of 2K: one set for images as they are, one for attacked ones."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from robustmim.registry import build, register
from robustmim.types import Images


@register("classifier", "double-boundary")
class DoubleBoundary(nn.Module):
    """What DBAT trains (Levi and Kontorovich 2024): class k and class k + K of the network are the same answer.

    Args:
        classifier: registered name of the network.
        options: its options, without the number of classes.
        classes: K, the number of logits returned.
        projection: how the two classes of an answer become one logit: "sum" of their probabilities, or the larger one,
            "max", which is their paper's: the answer is the likeliest of the 2K classes modulo K.
    """

    def __init__(
        self,
        *,
        classifier: str,
        options: dict[str, Any] | None = None,
        classes: int = 10,
        projection: Literal["sum", "max"] = "max",
    ) -> None:
        super().__init__()
        self.classifier = build("classifier", classifier, **{**(options or {}), "classes": 2 * classes})
        self.classes, self.projection = classes, projection

    def doubled(self, x: Images) -> Float[Tensor, "batch doubled"]:
        """Return the logits of all 2K classes."""
        return self.classifier(x)

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return one logit for each of the K answers, for images `[B, 3, H, W]` in [0, 1]."""
        pairs = self.doubled(x).unflatten(1, (2, self.classes))
        return pairs.logsumexp(1) if self.projection == "sum" else pairs.amax(1)
