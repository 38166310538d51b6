"""Tell attacked images from clean ones by what a masked model makes of them.

AMRM-Pure's premise is that an attack raises the reconstruction loss. Whether that can be seen in a single image is another
question: images differ in their losses by far more than an attack adds. So there are four scores, larger for what looks
attacked:

- reconstruction: the masked loss, averaged over masks that hide every cell once.
- descent: log of that loss over the loss after purification; the image is its own yardstick.
- disagreement: KL divergence of the classifier's answer on the image from its answer on the purified one (the idea of Meng
  and Chen 2017, MagNet, with our purifier).
- attention: the mean entropy of the attention maps; transformers only.

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
from robustmim.purify.amrm import AMRMPure
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

Score = Literal["reconstruction", "descent", "disagreement", "attention"]
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

    Ties count half. The standard error is that of Hanley and McNeil (1982), for scores of two independent groups.

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
        purifier: AMRM-Pure; its masked model and mask ratio are those of all scores.
        score: which one.
        classifier: for "disagreement".

    Raises:
        RecipeError: no classifier where one is needed.
    """

    def __init__(self, purifier: AMRMPure, score: Score, classifier: nn.Module | None = None) -> None:
        if score == "disagreement" and classifier is None:
            raise RecipeError("the score disagreement compares answers of a classifier: name one")
        self.purifier, self.score, self.classifier = purifier, score, classifier
        # Descents are differentiated with the derivative that attacks on purifiers do best with.
        self.gradient = GradientConfig(mode="tanh")

    @property
    def model(self) -> MaskedModel:
        """The masked model."""
        return self.purifier.model

    def __call__(self, x: Images, keys: Keys) -> PerSample:
        """Return the scores `[B]` of images `[B, C, H, W]` in [0, 1], differentiable in the images."""
        if self.score == "reconstruction":
            return self._loss(x, keys)
        if self.score == "attention":
            return self._entropy(x, keys)
        if x.requires_grad:
            purified = self.purifier.differentiable(x, keys=keys.fold("purify"), gradient=self.gradient)
        else:
            purified = self.purifier(x, keys=keys.fold("purify"))
        if self.score == "descent":
            return (self._loss(x, keys) / self._loss(purified, keys).clamp(min=_TINY)).clamp(min=_TINY).log()
        assert self.classifier is not None
        answer, other = (self.classifier(z).log_softmax(1) for z in (x, purified))
        return (answer.exp() * (answer - other)).sum(1)

    def _loss(self, x: Images, keys: Keys) -> PerSample:
        masks = partition_masks(keys.fold("score"), self.model.grid(*x.shape[-2:]), self.purifier.config.mask_ratio)
        model = with_draws(self.model, keys.fold("score"))
        return torch.stack([model.reconstruct(x, mask).loss for mask in masks]).mean(0)

    def _entropy(self, x: Images, keys: Keys) -> PerSample:
        masks = partition_masks(keys.fold("score"), self.model.grid(*x.shape[-2:]), self.purifier.config.mask_ratio)
        model = with_draws(self.model, keys.fold("score"))
        found: list[Tensor] = []
        for mask in masks:
            maps = model.reconstruct(x, mask, need_attention=True).attention
            if not maps:
                raise RecipeError("the score attention looks at attention maps, and this masked model has none")
            found += [-(part * part.clamp(min=_TINY).log()).sum(-1).mean((1, 2)) for part in maps]
        return torch.stack(found).mean(0)
