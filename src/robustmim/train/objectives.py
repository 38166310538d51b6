"""What is minimised: one function from (model, batch, random keys, step) to a loss, with what is worth logging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.config import AdversarialTrainingConfig
from robustmim.data.loader import Batch
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.rng import Keys
from robustmim.types import Images

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


@contextmanager
def _running_averages_kept(model: nn.Module) -> Iterator[None]:
    """Let batch norm normalise by its batch without remembering it."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


@dataclass(frozen=True)
class AdversarialClassification:
    """Cross-entropy on images that the model itself finds harder (Madry et al. 2018; one step: de Jorge et al. 2022).

    The attack sees the model as it trains (batch norm over the batch: the running averages lag behind, and an attack on
    them misses the network that is trained), but leaves the running averages alone.
    """

    config: AdversarialTrainingConfig
    label_smoothing: float = 0.0

    def attacked(self, model: nn.Module, batch: Batch, keys: Keys) -> Images:
        """Return adversarial images for the batch."""
        config = self.config
        ball = Ball(norm=config.norm, eps=config.radius if config.project else float("inf"))
        start = Ball(norm=config.norm, eps=config.radius * config.start_noise).random(batch.images, keys.fold("start"))
        with _running_averages_kept(model):
            return projected_descent(
                lambda x, step: F.cross_entropy(model(x), batch.labels, reduction="none"),
                batch.images,
                ball,
                steps=config.steps,
                step_size=lambda step: config.step_size * config.radius,
                maximise=True,
                start=start,
            ).last

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy on the attacked batch."""
        logits = model(self.attacked(model, batch, keys))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}
