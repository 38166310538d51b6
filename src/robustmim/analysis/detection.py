"""Tell attacked images from clean ones by what a masked model makes of them.

AMRM-Pure's premise is that an attack raises the reconstruction loss. Whether that can be seen in a single image is another
question: images differ in their losses by far more than an attack adds. So there are five scores, larger for what looks
attacked:

- reconstruction: the masked loss, averaged over masks that hide every cell once.
- descent: log of that loss over the loss after purification; the image is its own yardstick.
- disagreement: KL divergence of the classifier's answer on the image from its answer on the purified one (the idea of Meng
  and Chen 2017, MagNet, with our purifier).
- attention: the mean entropy of the attention maps; transformers only.
- amv: the attention matrix variation of the image against itself purified (AMRM-Pure, section 3.1, compares with the clean
  image, which a detector does not have; the purified one stands in for it); transformers with a decoder only.

A score is differentiable, since an attacker who knows the detector must be able to descend it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robustmim.config import GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.models.masked import MaskedModel, with_draws
from robustmim.models.masking import partition_masks
from robustmim.models.record import AttentionRecorder
from robustmim.purify.trace import variation
from robustmim.purify.traits import DifferentiablePurifier, MaskedPurifier, Purifier
from robustmim.rng import Keys
from robustmim.types import Images, Mask, PerSample

Score = Literal["reconstruction", "descent", "disagreement", "attention", "amv"]
_PURIFYING = ("descent", "disagreement", "amv")
_TINY = 1e-12


def threshold_at(clean: Sequence[float], false_positive_rate: float) -> float:
    """Return the threshold that a further clean image exceeds with at most the given probability.

    The (n + 1)(1 - rate)-th smallest of n clean scores: exact for exchangeable images, whatever their distribution (split
    conformal prediction, Vovk et al. 2005).

    Raises:
        RecipeError: too few clean images for so small a rate.
    """
    rank = math.ceil((len(clean) + 1) * (1 - false_positive_rate))
    if not 0 < false_positive_rate < 1 or rank > len(clean):
        least = math.ceil(1 / false_positive_rate) - 1 if 0 < false_positive_rate < 1 else 1
        raise RecipeError(
            f"{len(clean)} clean images cannot hold a false-positive rate of {false_positive_rate:g}: take {least} at least"
        )
    return sorted(clean)[rank - 1]


def area_under_curve(clean: Sequence[float], attacked: Sequence[float]) -> tuple[float, float, float]:
    """Return the probability that an attacked image scores above a clean one (AUROC), and its 95 % interval.

    Ties count half. The standard error is that of Hanley and McNeil (1982), for scores of two independent groups; where the
    attacked images are the clean ones attacked, whose scores rise and fall together, it errs on the wide side.

    Raises:
        InputError: a group without images.
    """
    if not clean or not attacked:
        raise InputError("an AUROC takes clean and attacked images, at least one of each")
    a, b = torch.tensor(attacked, dtype=torch.float64), torch.tensor(clean, dtype=torch.float64)
    above = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    area = float(above.mean())
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (len(a) - 1) * (first - area**2) + (len(b) - 1) * (second - area**2)
    half = 1.959964 * math.sqrt(max(variance, 0.0) / (len(a) * len(b)))
    return area, max(0.0, area - half), min(1.0, area + half)


class Detector:
    """Scores images; a sample's score depends on its pixels and its key alone.

    Args:
        purifier: its masked model and mask ratio are those of all scores but disagreement, which takes any purifier.
        score: which one.
        classifier: for "disagreement".

    Raises:
        RecipeError: no classifier where one is needed, no masked model, or a purifier without a gradient for the attacker.
    """

    def __init__(self, purifier: Purifier, score: Score, classifier: nn.Module | None = None) -> None:
        if score == "disagreement" and classifier is None:
            raise RecipeError("the score disagreement compares answers of a classifier: name one")
        named = type(purifier).__name__
        masked = purifier if isinstance(purifier, MaskedPurifier) and purifier.mask_ratio > 0 else None
        if score != "disagreement" and masked is None:
            raise RecipeError(
                f"the score {score} asks a masked model what it makes of hidden cells, and {named} hides none; take a purifier "
                "that does, such as recommended-cifar10, or the score disagreement"
            )
        if score in _PURIFYING and not isinstance(purifier, DifferentiablePurifier):
            raise RecipeError(
                f"{named} has no gradient but the identity, so an attacker who knows the score {score} could not be tried in "
                "earnest; take another purifier, such as recommended-cifar10"
            )
        self.purifier, self.score, self.classifier = purifier, score, classifier
        self._masked = masked
        # Descents are differentiated with the derivative that attacks on purifiers do best with.
        self.gradient = GradientConfig(mode="tanh")

    def __call__(self, x: Images, keys: Keys) -> PerSample:
        """Return the scores `[B]` of images `[B, C, H, W]` in [0, 1], differentiable in the images.

        Raises:
            RecipeError: a score of attention, and a masked model that has none.
        """
        if self.score == "reconstruction":
            return self._loss(x, keys)
        if self.score == "attention":
            return self._entropy(x, keys)
        purified = self._purified(x, keys.fold("purify"))
        if self.score == "amv":
            return self._variation(x, purified, keys)
        if self.score == "descent":
            return (self._loss(x, keys) / self._loss(purified, keys).clamp(min=_TINY)).clamp(min=_TINY).log()
        assert self.classifier is not None
        answer, other = (self.classifier(z).log_softmax(1) for z in (x, purified))
        return (answer.exp() * (answer - other)).sum(1)

    def _purified(self, x: Images, keys: Keys) -> Images:
        if not x.requires_grad:
            return self.purifier(x, keys=keys)
        assert isinstance(self.purifier, DifferentiablePurifier)
        return self.purifier.differentiable(x, keys=keys, gradient=self.gradient)

    def _views(self, x: Images, keys: Keys) -> tuple[MaskedModel, list[Mask]]:
        """Return the masked model with its draws made, and masks that hide every cell once."""
        assert self._masked is not None
        model, drawn = self._masked.model, keys.fold("score")
        return with_draws(model, drawn), partition_masks(drawn, model.grid(*x.shape[-2:]), self._masked.mask_ratio)

    def _loss(self, x: Images, keys: Keys) -> PerSample:
        model, masks = self._views(x, keys)
        return torch.stack([model.reconstruct(x, mask).loss for mask in masks]).mean(0)

    def _entropy(self, x: Images, keys: Keys) -> PerSample:
        model, masks = self._views(x, keys)
        found: list[Tensor] = []
        for mask in masks:
            maps = model.reconstruct(x, mask, need_attention=True).attention
            if not maps:
                raise RecipeError("the score attention looks at attention maps, and this masked model has none")
            found += [-(part * part.clamp(min=_TINY).log()).sum(-1).mean((1, 2)) for part in maps]
        return torch.stack(found).mean(0)

    def _variation(self, x: Images, purified: Images, keys: Keys) -> PerSample:
        model, masks = self._views(x, keys)
        return torch.stack(
            [variation(_decoder_maps(model, x, mask), _decoder_maps(model, purified, mask)) for mask in masks]
        ).mean(0)


def _decoder_maps(model: MaskedModel, x: Images, mask: Mask) -> list[Tensor]:
    if isinstance(model, nn.Module):
        with AttentionRecorder(model, prefix="decoder_blocks") as recorder:
            model.reconstruct(x, mask)
        if recorder.maps:
            return recorder.maps
    raise RecipeError("the score amv looks at a decoder's attention maps, and this masked model has none")
