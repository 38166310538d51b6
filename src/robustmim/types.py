"""The shapes and units everything speaks: images in [0, 1], budgets as fractions of the pixel range."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]
"""Float images in [0, 1]."""

Signed = Float[Tensor, "batch channels height width"]
"""Images scaled to [-1, 1], the units of diffusion models, with or without noise."""

Labels = Int[Tensor, " batch"]
"""Class indices."""

Mask = Bool[Tensor, "batch rows columns"]
"""One cell per patch; True = hidden. Each sample hides the same number of cells."""

PerSample = Float[Tensor, " batch"]
"""One value for each sample."""

Tokens = Float[Tensor, "batch tokens features"]
"""A sequence of token embeddings."""
