"""Pixel statistics: every model takes images in [0, 1] and normalises them itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustmim.types import Images

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of each channel, in pixel fractions."""

CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN: Statistics = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Normalise(nn.Module):
    """(x − mean) / deviation, channel by channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        mean, deviation = statistics
        # Not persistent: other people's checkpoints have no such entries; the config tells the statistics.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)

    def forward(self, x: Images) -> Tensor:
        """Normalise images in [0, 1]."""
        return (x - self.mean) / self.deviation

    def undo(self, x: Tensor) -> Tensor:
        """Return to pixel units."""
        return x * self.deviation + self.mean
