"""Plain accuracies and losses over a data set, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from robustmim.config import DenoisingConfig
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.models.edm import Denoiser, log_normal_levels, to_signed, weighted_error
from robustmim.models.masked import MaskedModel, with_draws
from robustmim.models.masking import random_mask
from robustmim.rng import keys
from robustmim.types import PerSample


def in_order(source: Source, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Go through a data set in its own order, without augmentation."""
    for first in range(0, len(source), batch_size):
        indices = torch.arange(first, min(first + batch_size, len(source)))
        images = source.fetch(indices).to(device).to(torch.float32) / 255
        yield Batch(images, source.labels[indices].to(device), source.ids[indices].to(device))


@torch.no_grad()
def classifier_accuracy(model: nn.Module, source: Source, *, device: torch.device, batch_size: int = 256) -> float:
    """Return the fraction of images classified rightly."""
    right = sum(
        int((model(batch.images).argmax(1) == batch.labels).sum()) for batch in in_order(source, batch_size, device)
    )
    return right / len(source)


def attacked_accuracy(
    model: nn.Module, source: Source, ball: Ball, *, limit: int, device: torch.device, steps: int = 10
) -> float:
    """Return the accuracy of the first `limit` images under PGD: a quick look during training, not an evaluation."""
    right = total = 0
    for batch in in_order(source, 128, device):
        images, labels = batch.images[: limit - total], batch.labels[: limit - total]
        attacked = projected_descent(
            lambda x, step, labels=labels: F.cross_entropy(model(x), labels, reduction="none"),  # type: ignore[misc]
            images,
            ball,
            steps=steps,
            step_size=lambda step: 2.5 / steps * ball.eps,
            maximise=True,
        ).last
        with torch.no_grad():
            right += int((model(attacked).argmax(1) == labels).sum())
        total += len(images)
        if total >= limit:
            break
    return right / total


@torch.no_grad()
def masked_loss(
    model: MaskedModel, source: Source, *, ratio: float, seed: int, device: torch.device, batch_size: int = 128
) -> float:
    """Return the mean masked loss under masks fixed by (seed, sample id), so that epochs compare like with like."""
    total = 0.0
    for batch in in_order(source, batch_size, device):
        grid = model.grid(*batch.images.shape[-2:])
        drawn = keys(seed, "validation", batch.ids)
        mask = random_mask(drawn, grid, ratio)
        total += float(with_draws(model, drawn).reconstruct(batch.images, mask).loss.sum())
    return total / len(source)


@torch.no_grad()
def denoising_errors(
    model: Denoiser,
    source: Source,
    *,
    config: DenoisingConfig,
    seed: int,
    device: torch.device,
    batch_size: int = 128,
) -> PerSample:
    """Return each sample's weighted denoising error, with level and noise fixed by (seed, sample id); no class is told."""
    errors = []
    for batch in in_order(source, batch_size, device):
        drawn = keys(seed, "validation", batch.ids)
        errors.append(
            weighted_error(
                model,
                to_signed(batch.images),
                sigma=log_normal_levels(drawn.fold("level"), config.log_mean, config.log_deviation),
                noise=drawn.fold("noise").normal(*batch.images.shape[1:]),
            )
        )
    return torch.cat(errors)
