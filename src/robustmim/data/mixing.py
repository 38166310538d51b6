"""MixUp and CutMix: an image and its label mixed with those of another image of the batch.

The partner makes samples of a training batch depend on one another, as the methods want it; all else is drawn from a
sample's own key. Partners are a function of the whole batch, not of a process's share of it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from robustmim.config import AugmentConfig
from robustmim.data.augment import box
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

_GRID = 4096


@lru_cache(maxsize=8)
def _quantiles(alpha: float, device: torch.device) -> Float[Tensor, " points"]:
    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, _GRID + 1))).float().to(device)


def beta(uniform: PerSample, alpha: float) -> PerSample:
    """Turn uniform draws in [0, 1) into draws from Beta(α, α), by its quantile function between 4,097 points."""
    table = _quantiles(alpha, uniform.device)
    place = uniform * _GRID
    below = place.floor().long()
    return torch.lerp(table[below], table[below + 1], place - below)


def mixup(x: Images, partner: Images, weight: PerSample) -> Images:
    """Return weight · x + (1 − weight) · partner (Zhang et al. 2018)."""
    return torch.lerp(partner, x, weight.view(-1, 1, 1, 1))


def cutmix(x: Images, partner: Images, weight: PerSample, middle: Float[Tensor, "batch 2"]) -> tuple[Images, PerSample]:
    """Paste a box of the partner into each image (Yun et al. 2019, Eq. 2).

    Args:
        x, partner: images.
        weight: share of its area that an image should keep.
        middle: of the box, (row, column), each in [0, 1).

    Returns:
        The images, and the share each has kept, exactly: boxes are whole pixels, and cut off at the border.
    """
    inside = box(1 - weight, torch.ones_like(weight), middle, *x.shape[2:])
    return torch.where(inside, partner, x), 1 - inside.float().mean((1, 2, 3))


def mix(x: Images, partner: Images, keys: Keys, config: AugmentConfig, probability: float) -> tuple[Images, PerSample]:
    """Mix each image with its partner, or leave it.

    Args:
        x, partner: images.
        keys: a sample's weight, box and choices depend on its key alone.
        config: the α of MixUp and of CutMix; zero for none.
        probability: of mixing at all.

    Returns:
        The images, and each one's own weight in its label; 1 where it was left.
    """
    drawn = keys.fold("mix")
    whether, which, amount = drawn.uniform(3).unbind(1)
    cuts = which < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    images, weight = x, torch.ones_like(amount)
    if config.mixup:
        weight = beta(amount, config.mixup)
        images = mixup(x, partner, weight)
    if config.cutmix:
        cut, kept = cutmix(x, partner, beta(amount, config.cutmix), drawn.fold("middle").uniform(2))
        images, weight = torch.where(cuts.view(-1, 1, 1, 1), cut, images), torch.where(cuts, kept, weight)
    mixed = whether < probability
    return torch.where(mixed.view(-1, 1, 1, 1), images, x), torch.where(mixed, weight, torch.ones_like(weight))
