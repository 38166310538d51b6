"""ADBM (Li et al. 2025): a denoiser is fine-tuned to lead from noised attacked images to clean ones.

DiffPure noises an attacked image x + d and goes back as if it were a clean one. The bridge is told where it comes from: a
path that starts, at time u, at the noised attacked image, and ends at the clean one. In DDPM's variables (ᾱ at t, ᾱ_u at u)

    x_t = √ᾱ x + √(1 − ᾱ) n + ᾱ_u (1 − ᾱ) / ((1 − ᾱ_u) √ᾱ) d

and the noise to be predicted is what leads from there to x. Divided by √ᾱ, with noise levels σ at t and s at u, this is

    y = x + σ n + (σ² / s²) d,   D(y; σ) = x

with all of the attack at the start and none at the end. The attack climbs the classifier's loss of D(y; σ), under the very
noise and level that are then trained on. Purification is the reverse process of any denoiser; the authors take five steps of
DDIM from t = 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.config import BridgeConfig
from robustmim.data.loader import Batch
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.models.edm import Denoiser, per_pixel, to_signed, to_unit, weighted
from robustmim.models.variance_preserving import levels_at_times
from robustmim.rng import Keys
from robustmim.train.masked_attack import attacked_model
from robustmim.types import Images, PerSample

_EARLIEST = 1e-5  # of a bridge's times


@dataclass(frozen=True)
class BridgeTraining:
    """Denoising on the bridge, with EDM's weight (which is that of the noise in DDPM's loss, plus a constant).

    Attributes:
        classifier: frozen; images in [0, 1] → logits.
        config: attack and times.
    """

    classifier: nn.Module
    config: BridgeConfig = BridgeConfig()

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch under fresh times and noise; no class is told."""
        network, config = cast(Denoiser, model), self.config
        clean = to_signed(batch.images)
        least, greatest = config.start_times
        start = least + (greatest - least) * keys.fold("start").uniform(1)[:, 0]
        time = _EARLIEST + (start - _EARLIEST) * keys.fold("time").uniform(1)[:, 0]
        sigma = levels_at_times(time)
        share = per_pixel((sigma / levels_at_times(start)).square())
        noised = clean + per_pixel(sigma) * keys.fold("noise").normal(*clean.shape[1:])

        def estimate(attacked: Images) -> Tensor:
            return network.denoise(noised + share * (to_signed(attacked) - clean), sigma)

        def confusion(attacked: Images, number: int) -> PerSample:
            return F.cross_entropy(self.classifier(to_unit(estimate(attacked))), batch.labels, reduction="none")

        with attacked_model(model):
            attacked = projected_descent(
                confusion,
                batch.images,
                Ball(norm="linf", eps=config.radius),
                steps=config.steps,
                step_size=lambda number: config.step_size,
                maximise=True,
            ).last
        return {"loss": weighted(estimate(attacked), clean, sigma).mean()}
