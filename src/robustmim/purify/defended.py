"""A classifier behind a purifier, as one module over [0, 1] images."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from robustmim.config import GradientConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.purify.replacement import Replacement, make_replacement
from robustmim.purify.traits import DifferentiablePurifier, Purifier
from robustmim.rng import Keys, content_ids, keys
from robustmim.types import Images


class Defended(nn.Module):
    """classifier(purifier(x)): a drop-in for the bare classifier.

    Args:
        purifier: cleans the images.
        classifier: any module from [0, 1] images to logits.
        seed: of the draws when `forward` is given no keys. They then derive from each image's bits, so that the same
            image is always purified alike, in any batch. Attackers should pass fresh keys.
        gradient: what passes for the purifier's gradient. The default, the identity (BPDA, Athalye et al. 2018), is the
            weakest; an accuracy under it is an upper bound. For a purifier that moves by the sign of a gradient it is
            the exact gradient but for the clips, since the derivative of the sign is zero.
        replacement: for the gradient mode of that name, any function whose derivative is taken; by default the one that
            the gradient names.

    Raises:
        RecipeError: a gradient that the purifier does not offer, or a replacement that cannot be made for it.
    """

    def __init__(
        self,
        purifier: Purifier,
        classifier: nn.Module,
        *,
        seed: int = 0,
        gradient: GradientConfig = GradientConfig(),
        replacement: Replacement | None = None,
    ) -> None:
        super().__init__()
        if replacement is not None and gradient.mode != "replacement":
            raise RecipeError(f"a replacement was given, but the gradient's mode is {gradient.mode}, not replacement")
        if gradient.mode == "replacement":
            replacement = make_replacement(purifier, gradient) if replacement is None else replacement
        elif gradient.mode != "identity" and not isinstance(purifier, DifferentiablePurifier):
            raise RecipeError(
                f"{type(purifier).__name__} offers no {gradient.mode} gradient; use the identity or a replacement"
            )
        self.replacement = replacement
        self.purifier, self.classifier, self.seed, self.gradient = purifier, classifier, seed, gradient

    def forward(self, x: Images, drawn: Keys | None = None, progress: float = 0.0) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, C, H, W]` in [0, 1].

        Args:
            x: the images.
            drawn: keys of the purifier's draws, one per sample.
            progress: of an attack in [0, 1]; anneals the gradient's temperature.

        Raises:
            InputError: what is no batch of images in [0, 1], or of a size that the purifier does not take.
        """
        if drawn is None:
            if len(x):
                check_images(x)
            drawn = keys(self.seed, "purify", content_ids(x))
        if self.gradient.mode == "identity":
            purified = self.purifier(x.detach(), keys=drawn)
            return self.classifier(x + (purified - x).detach())
        if self.replacement is not None:
            stand_in = self.replacement(x, drawn, progress)
            if self.gradient.forward == "smooth":
                return self.classifier(stand_in)
            return self.classifier(self.purifier(x.detach(), keys=drawn) + (stand_in - stand_in.detach()))
        assert isinstance(self.purifier, DifferentiablePurifier)
        return self.classifier(self.purifier.differentiable(x, keys=drawn, gradient=self.gradient, progress=progress))
