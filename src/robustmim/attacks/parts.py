"""What an attacker who knows a defence inside out can reach: classifier, purifier, masked model, features.

Everything else about a defence is a `Target`, which answers for the whole. The attacks that ask for a part say so with
`KnowingAttack.check`, so that a defence that lacks it is refused before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import RecipeError, suggest
from robustmim.models.masked import freeze, with_draws
from robustmim.models.masking import random_mask
from robustmim.models.zoo import open_classifier
from robustmim.purify.amrm import padded_batch
from robustmim.purify.traits import MaskedPurifier, Purifier
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

Features = Float[Tensor, "batch features"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a defence.

    Attributes:
        classifier: the bare classifier, images in [0, 1] to logits.
        purifier: what stands before it; None where nothing does.
        reference: images `[N, C, H, W]` in [0, 1] that the attacker has of the data; the same whatever the batch, so that
            an attack may learn or estimate from them without its samples depending on each other. None if there are none.
    """

    classifier: nn.Module
    purifier: Purifier | None = None
    reference: Images | None = None

    def layer(self, name: str | None) -> nn.Module:
        """Return the layer of the classifier whose input counts as its features.

        Args:
            name: as in `named_modules`; None takes the last `nn.Linear` in that order, whose input is the penultimate
                layer's output in every usual network.

        Raises:
            RecipeError: no such layer; no linear layer.
        """
        known = dict(self.classifier.named_modules())
        if name is not None:
            if name not in known:
                raise RecipeError(f"the classifier has no layer {name!r}. {suggest(name, known)}")
            return known[name]
        linear = [module for module in known.values() if isinstance(module, nn.Linear)]
        if not linear:
            raise RecipeError(
                f"{type(self.classifier).__name__} has no linear layer whose input could count as its features; name a "
                "layer with the option `layer`"
            )
        return linear[-1]

    def masked_purifier(self) -> MaskedPurifier:
        """Return the purifier where it goes by a masked model.

        Raises:
            RecipeError: there is none, or it has no masked model.
        """
        if not isinstance(self.purifier, MaskedPurifier):
            what = "there is no purifier" if self.purifier is None else f"{type(self.purifier).__name__} has none"
            raise RecipeError(f"this attack needs the masked model that the purifier goes by, but {what}")
        return self.purifier

    def guide(self) -> nn.Module:
        """Return the classifier whose answer the purifier goes by: who turns that one turns the purifier.

        It is the attribute `guide` of the purifier or of its masked model.

        Raises:
            RecipeError: there is none.
        """
        for part in (self.purifier, getattr(self.purifier, "model", None)):
            # No runtime protocol: from Python 3.12 on those do not see the layers of a module.
            guide = getattr(part, "guide", None)
            if isinstance(guide, nn.Module):
                return guide
        what = "there is no purifier" if self.purifier is None else f"{type(self.purifier).__name__} has none"
        raise RecipeError(
            f"this attack needs the classifier that guides the purifier, but {what}; name another one as `surrogate`"
        )

    def reference_images(self) -> Images:
        """Return the images that the attacker has.

        Raises:
            RecipeError: there are none.
        """
        if self.reference is None or len(self.reference) < 2:
            raise RecipeError(
                "this attack needs images of the data besides the attacked ones: pass two or more as `reference` to the "
                "Evaluator or to Parts"
            )
        return self.reference


@runtime_checkable
class KnowingAttack(Protocol):
    """An attack that asks for parts of the defence, or climbs something else than the loss of its answers."""

    def check(self, parts: Parts) -> None:
        """Raise RecipeError if the defence lacks what the attack needs."""


def known_parts(parts: Parts | None) -> Parts:
    """Return the parts of a target.

    Raises:
        RecipeError: the target was made without.
    """
    if parts is None:
        raise RecipeError(
            "this attack looks into the defence: give the Target its parts, Target(..., parts=Parts(...))"
        )
    return parts


def opened_surrogate(name: str | None, arch: str | None = None) -> nn.Module | None:
    """Return a surrogate classifier, frozen; None for none, in whose place attacks take the purifier's guide.

    Args:
        name, arch: see `open_classifier`.

    Raises:
        RecipeError: `arch` without a name.
        CheckpointError: it cannot be loaded.
    """
    if name is not None:
        return freeze(open_classifier(name, arch))
    if arch is not None:
        raise RecipeError(f"`arch` {arch} tells how to read the file that `surrogate` names, but none is named")
    return None


@contextmanager
def captured(layer: nn.Module) -> Iterator[list[Features]]:
    """Inside the block, keep what goes into a layer, flattened for each sample; the last call comes last."""
    seen: list[Features] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].flatten(1))

    hook = layer.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def last_of(seen: list[Features]) -> Features:
    """Return what a layer was given last.

    Raises:
        RecipeError: the layer was not used.
    """
    if not seen:
        raise RecipeError(
            "the layer whose input counts as the features takes no part in the answer; name another `layer`"
        )
    return seen[-1]


def masked_loss(purifier: MaskedPurifier, x: Images, keys: Keys, masks: int) -> PerSample:
    """Return the reconstruction loss of the purifier's masked model, differentiable in the images.

    Args:
        purifier: its model and mask ratio are taken.
        x: `[B, C, H, W]` in [0, 1].
        keys: one per sample, for the masks.
        masks: masks that the loss is averaged over.
    """
    padded, keys = padded_batch(x, keys)
    own = keys.fold("attacked loss")
    grid = purifier.model.grid(*x.shape[-2:])
    losses = [
        with_draws(purifier.model, own, draw=k).reconstruct(
            padded, random_mask(own.fold("mask", k), grid, purifier.mask_ratio)
        )
        for k in range(masks)
    ]
    return torch.stack([found.loss for found in losses]).mean(0)[: len(x)]
