"""A classifier behind a purifier, as one module over [0, 1] images."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from robustmim.purify.traits import Purifier
from robustmim.rng import Keys, content_ids, keys
from robustmim.types import Images


class Defended(nn.Module):
    """classifier(purifier(x)): a drop-in for the bare classifier.

    The gradient passes the purifier as if it were the identity (BPDA, Athalye et al. 2018). For a purifier that moves by
    the sign of a gradient that *is* the exact gradient, but for the clips: the derivative of sign is zero. It is the
    weakest way to attack such a defence through its purifier; an accuracy under it is an upper bound.

    Args:
        purifier: cleans the images.
        classifier: any module from [0, 1] images to logits.
        seed: of the draws when `forward` is given no keys. They then derive from each image's bits, so that the same
            image is always purified alike, in any batch. Attackers should pass fresh keys.
    """

    def __init__(self, purifier: Purifier, classifier: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.purifier, self.classifier, self.seed = purifier, classifier, seed

    def forward(self, x: Images, drawn: Keys | None = None) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, C, H, W]` in [0, 1]."""
        drawn = keys(self.seed, "purify", content_ids(x)) if drawn is None else drawn
        purified = self.purifier(x.detach(), keys=drawn)
        return self.classifier(x + (purified - x).detach())
