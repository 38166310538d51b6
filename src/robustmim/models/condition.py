"""What a diffusion model is told beside the image: its noise level and, where there are classes, one of them or none."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.types import Labels, PerSample, Tokens

_ROWS = 4
"""Rows in which a sample's condition is written down, all alike. Matrix products of fewer rows add up in another order, and a
sample's result would depend on the size of its batch."""
_FREQUENCIES = 64
_HIGHEST_FREQUENCY = 32.0  # radians per unit of ln(σ) / 4, which spans about three units


class Condition(nn.Module):
    """Noise level and class as one vector.

    Args:
        width: of the vector.
        classes: labels that it can be told; 0 for none.
    """

    frequencies: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        frequencies = torch.logspace(0, math.log10(_HIGHEST_FREQUENCY), _FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.fc1 = nn.Linear(2 * _FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)
        # One row more than there are classes: no class.
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, noise: PerSample, labels: Labels | None) -> Tokens:
        """Embed c_noise and, for a network with classes, a class or none, in `_ROWS` equal rows for each sample."""
        angle = (noise[:, None] * self.frequencies)[:, None].expand(-1, _ROWS, -1)
        vector = self.fc2(F.silu(self.fc1(torch.cat([angle.cos(), angle.sin()], dim=-1))))
        if self.label is not None:
            none = torch.full((len(noise),), self.label.num_embeddings - 1, device=noise.device)
            vector = vector + self.label(none if labels is None else labels)[:, None]
        return F.silu(vector)
