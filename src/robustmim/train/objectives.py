"""What is minimised: one function from (model, batch, random keys, step) to a loss, with what is worth logging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.data.loader import Batch
from robustmim.models.masked import MaskedModel
from robustmim.models.masking import random_mask
from robustmim.rng import Keys

Objective = Callable[[nn.Module, Batch, Keys, int], dict[str, Tensor]]
"""(model, batch, keys of this step, step) → named scalars; "loss" is minimised, the rest is logged."""


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with label smoothing."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy of the batch."""
        logits = model(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}


@dataclass(frozen=True)
class MaskedReconstruction:
    """Mean squared error of the hidden patches (He et al. 2022).

    Attributes:
        ratios: fractions hidden, taken in turns, step by step.
        input_noise: largest deviation of Gaussian noise on the visible part; each sample draws its own from zero up. The
            target stays clean.
    """

    ratios: tuple[float, ...]
    input_noise: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch under fresh masks."""
        masked_model = cast(MaskedModel, model)
        grid = masked_model.grid(*batch.images.shape[-2:])
        mask = random_mask(keys.fold("mask"), grid, self.ratios[step % len(self.ratios)])
        seen = batch.images
        if self.input_noise:
            drawn = keys.fold("noise")
            deviation = drawn.fold("deviation").uniform(1).view(-1, 1, 1, 1) * self.input_noise
            seen = (seen + deviation * drawn.normal(*seen.shape[1:])).clamp(0, 1)
        return {"loss": masked_model.reconstruct(seen, mask, target=batch.images).loss.mean()}
