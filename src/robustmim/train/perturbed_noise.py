"""ADDT (Liu et al. 2025): a denoiser is fine-tuned on noise into which a classifier's slope is mixed.

The noise n at level σ becomes √(1 − r²) n + r δ. δ is the sum of a few slopes of the classifier's loss of the estimate, each
taken with the δ before it, and turned into Gaussian noise by ranks: its values are those of a normal draw, put in the order of
the slope (rank-based Gaussian mapping). So the mixed noise is of the same level, and what the network sees keeps its
distribution, but the part δ misleads the classifier. r = strength / σ, cut off, so that δ weighs about as much at every level.
Purification is the reverse process of any denoiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.config import PerturbedNoiseConfig
from robustmim.data.loader import Batch
from robustmim.models.edm import Denoiser, per_pixel, to_signed, to_unit, weighted
from robustmim.models.variance_preserving import levels_at_times
from robustmim.rng import Keys
from robustmim.train.masked_attack import attacked_model
from robustmim.types import Signed

_EARLIEST = 1e-3  # the first of DDPM's thousand times


def gaussian_by_rank(values: Signed, keys: Keys) -> Signed:
    """Return normal draws in the order of `values`, within each sample."""
    flat = values.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    drawn = keys.normal(flat.shape[1]).to(values).sort(dim=1).values
    return drawn.gather(1, ranks).view_as(values)


@dataclass(frozen=True)
class PerturbedNoiseTraining:
    """Denoising of perturbed noise at times drawn evenly from (0, 1], with EDM's weight.

    Attributes:
        classifier: frozen; images in [0, 1] → logits.
        config: share of the perturbation and number of slopes.
    """

    classifier: nn.Module
    config: PerturbedNoiseConfig = PerturbedNoiseConfig()

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch under fresh times and noise; no class is told."""
        network, config = cast(Denoiser, model), self.config
        clean = to_signed(batch.images)
        sigma = levels_at_times(_EARLIEST + (1 - _EARLIEST) * keys.fold("time").uniform(1)[:, 0])
        share = per_pixel((config.strength / sigma).clamp(max=config.most))
        noise = keys.fold("noise").normal(*clean.shape[1:])

        def estimate(perturbation: Signed) -> Signed:
            mixed = (1 - share.square()).sqrt() * noise + share * perturbation
            return network.denoise(clean + per_pixel(sigma) * mixed, sigma)

        perturbation = total = torch.zeros_like(clean)
        with attacked_model(model), torch.enable_grad():
            for number in range(config.steps):
                leaf = perturbation.detach().requires_grad_()
                confusion = F.cross_entropy(self.classifier(to_unit(estimate(leaf))), batch.labels, reduction="sum")
                total = total + torch.autograd.grad(confusion, leaf)[0]
                perturbation = gaussian_by_rank(total, keys.fold("rank", number))
        return {"loss": weighted(estimate(perturbation), clean, sigma).mean()}
