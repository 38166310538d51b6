"""How a diffusion model is trained: denoise (EDM, Karras et al. 2022).

A masked one learns to denoise what is visible and to predict what is hidden (MaskDiT, Zheng et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from robustmim.config import DenoisingConfig
from robustmim.data.loader import Batch
from robustmim.models.edm import Denoiser, log_normal_levels, to_signed, weighted_error
from robustmim.models.masked_denoiser import MaskedDiffusion, denoising_error
from robustmim.models.masking import in_turn, random_mask
from robustmim.rng import Keys
from robustmim.types import Labels


def shown_labels(network: Denoiser, labels: Labels, keys: Keys, dropout: float) -> Labels | None:
    """Return the classes that a network is told: of a fraction of the images none; None for a network without classes."""
    if not network.classes:
        return None
    dropped = keys.fold("label").uniform(1)[:, 0] < dropout
    return torch.where(dropped, torch.full_like(labels, network.classes), labels)


@dataclass(frozen=True)
class Denoising:
    """Denoising score matching at log-normal noise levels (EDM, Eq. 8 and Table 1).

    Attributes:
        config: noise levels and dropping of labels.
    """

    config: DenoisingConfig = DenoisingConfig()

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch under fresh noise levels and noise."""
        network, config = cast(Denoiser, model), self.config
        images = to_signed(batch.images)
        error = weighted_error(
            network,
            images,
            sigma=log_normal_levels(keys.fold("level"), config.log_mean, config.log_deviation),
            noise=keys.fold("noise").normal(*images.shape[1:]),
            labels=shown_labels(network, batch.labels, keys, config.label_dropout),
        )
        return {"loss": error.mean()}


@dataclass(frozen=True)
class MaskedDenoising:
    """Denoising score matching on the visible patches + weight · squared error of the hidden ones (MaskDiT, Eq. 4 to 6).

    Attributes:
        ratios: fractions hidden, taken in turns, step by step; 0 hides nothing (the fine-tuning without masks).
        config: noise levels, weight and target of the hidden patches, dropping of labels.
        scales: of the masks, taken in turns as well, once all ratios have had theirs.
    """

    ratios: tuple[float, ...]
    config: DenoisingConfig = DenoisingConfig()
    scales: tuple[int, ...] = (1,)

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch under fresh masks, noise levels and noise, and its two parts."""
        network, config = cast(MaskedDiffusion, model), self.config
        images = to_signed(batch.images)
        ratio, scale = in_turn(self.ratios, self.scales, step)
        mask = random_mask(keys.fold("mask"), network.grid(*images.shape[-2:]), ratio, scale) if ratio else None
        error = denoising_error(
            network,
            images,
            images,
            mask,
            sigma=log_normal_levels(keys.fold("level"), config.log_mean, config.log_deviation),
            noise=keys.fold("noise").normal(*images.shape[1:]),
            labels=shown_labels(network, batch.labels, keys, config.label_dropout),
            hidden_target=config.hidden_target,
        )
        denoising, hidden = error.denoising.mean(), error.hidden.mean()
        return {"loss": denoising + config.hidden_weight * hidden, "denoising": denoising, "hidden": hidden}
