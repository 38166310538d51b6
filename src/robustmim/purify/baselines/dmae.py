"""Denoising masked autoencoder (DMAE; Wu et al. 2023): noise and masks at once, and every patch is predicted.

In the paper this is pre-training for a classifier that is then certified by randomised smoothing; its decoder is thrown away.
Here the decoder purifies: the noised image is drawn anew from the quarter of it that is left visible. The published networks
are of ImageNet size; `pretrain/dmae-mae-cifar10` trains a small one, and the paper's numbers are not reproduced.
"""

from __future__ import annotations

import torch
from torch import nn

from robustmim.errors import RecipeError
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import freeze
from robustmim.models.masking import hidden_count, random_mask
from robustmim.purify.amrm import padded_batch
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "dmae")
class DenoisingMaskedAutoencoder(OnePass):
    """Add noise, hide patches, and draw all of them from those left; the mean over several such draws.

    Args:
        model: a masked autoencoder that was trained on all patches (`loss_over: all`) of noised images; it is frozen. One with a
            normalised target takes each patch's mean and deviation from the noised image.
        noise: deviation of the noise in pixel fractions.
        mask_ratio: fraction of the patches hidden.
        average: draws of noise and mask whose predictions are averaged.

    Raises:
        RecipeError: a negative deviation, a ratio outside (0, 1), no draw, or another kind of model.
    """

    randomised = True

    def __init__(self, model: nn.Module, *, noise: float = 0.25, mask_ratio: float = 0.75, average: int = 1) -> None:
        if noise < 0:
            raise RecipeError(f"dmae: noise is a standard deviation, but this one is {noise}")
        if average < 1:
            raise RecipeError(f"dmae takes the mean of at least one draw, not of {average}")
        if not isinstance(model, MaskedAutoencoder):
            raise RecipeError(f"dmae needs a masked autoencoder, but a {type(model).__name__} is none")
        hidden_count(2, mask_ratio)  # refuses a ratio that no grid can have
        freeze(model)
        self.model, self.noise, self.mask_ratio, self.average = model, noise, mask_ratio, average

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return the mean of the predictions; see `OnePass`."""
        size = len(x)
        x, keys = padded_batch(x, keys)
        grid = self.model.grid(*x.shape[-2:])
        total = torch.zeros_like(x)
        for draw in range(self.average):
            own = keys.fold("draw", draw)
            noised = x + self.noise * own.fold("noise").normal(*x.shape[1:]).to(x)
            total = total + self.model.render(noised, random_mask(own.fold("mask"), grid, self.mask_ratio))
        return (total / self.average)[:size]
