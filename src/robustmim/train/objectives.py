"""What is minimised: one function from (model, batch, random keys, step) to a loss, with what is worth logging."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.data.loader import Batch
from robustmim.models.vit import stochastic_depth
from robustmim.rng import Keys
from robustmim.train.distributed import World
from robustmim.train.losses import Logits
from robustmim.types import Images

Objective = Callable[[nn.Module, Batch, Keys, int], dict[str, Tensor]]
"""(model, batch, keys of this step, step) → named scalars; "loss" is minimised, the rest is logged.

It may be called on a part of a process's batch, and must not use `torch.no_grad` on the model: autocast would remember
weights that were cast without a gradient."""


@dataclass(frozen=True)
class Training:
    """Where a run stands after a step.

    Attributes:
        model: the network itself.
        average: its averaged weights; empty without them.
        optimizer: what has just made the step.
        step, total: steps done, steps in all.
        steps_per_epoch: steps of an epoch.
        world: this process among the others.
    """

    model: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int
    total: int
    steps_per_epoch: int
    world: World


@runtime_checkable
class FollowsSteps(Protocol):
    """An objective that does something after each optimiser step, alike in every process."""

    def after_step(self, training: Training) -> bool:
        """Look at the run, change its weights; return whether it must end here."""


@runtime_checkable
class KeepsState(Protocol):
    """An objective that remembers something from step to step, the same in every process; checkpoints hold it."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to know."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Remember what `state` returned."""


def passed(model: nn.Module, images: Images, keys: Keys) -> Logits:
    """Return the logits of a training pass: with dropped paths, where the model has any."""
    with stochastic_depth(model, keys):
        return model(images)


def accuracy(logits: Logits, batch: Batch, classes: int | None = None) -> Tensor:
    """Return the share of a batch that is taken for its label; for a mixed image, that of its larger part.

    Args:
        logits: of the images.
        batch: their labels.
        classes: of the labels, where there are more logits: classes then stand for their number modulo this.
    """
    return (logits.argmax(1) % (classes or logits.shape[1]) == batch.likeliest).float().mean()


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with label smoothing."""

    label_smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy of the batch."""
        logits = passed(model, batch.images, keys.fold("clean"))
        loss = F.cross_entropy(logits, batch.goal, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": accuracy(logits, batch)}
