"""Gaussian Gram matrices of a batch, and how wide the Gaussian is.

k(a, b) = exp(-|a - b|² / (2 σ²)), in single precision even under autocast: squared norms of long vectors reach values where
half precision has steps of 16. Time is O(B² d), memory O(B² + B d).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import InputError, RecipeError, suggest

Gram = Float[Tensor, "batch batch"]
Samples = Float[Tensor, "batch ..."]

RULES = ("fixed", "dimension", "median", "neighbours")


def _rows(x: Samples) -> Float[Tensor, "batch width"]:
    """Flatten each sample; half precision becomes single, double stays."""
    if len(x) < 2:
        raise InputError(f"{len(x)} samples: dependence is measured over pairs, so two are needed at least")
    return x.reshape(len(x), -1).to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def squared_distances(x: Samples) -> Gram:
    """Return |xᵢ - xⱼ|² of all pairs: not negative, zero on the diagonal, differentiable everywhere."""
    rows = _rows(x)
    # |a|² + |b|² - 2ab cancels where a and b are far from the origin and near each other; the batch's mean is neither.
    rows = rows - rows.mean(0, keepdim=True)
    with torch.autocast(rows.device.type, enabled=False):
        products = rows @ rows.T
    norms = products.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * products).clamp_min(0)
    return distances * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))


@dataclass(frozen=True)
class Width:
    """How σ is chosen. Widths that depend on the data are constants to the gradient.

    Attributes:
        rule: "fixed", σ = value; "dimension", σ = value · √d, d numbers in a sample (MIMIR's code has value 5);
            "median", σ = value · the median distance of different samples; "neighbours", σ = value · the mean distance
            to a sample's `neighbours` nearest ones, over all samples (the deterministic information bottleneck, Yu et al.
            2021, takes 10).
        value: factor, above zero.
        neighbours: for that rule.
    """

    rule: str = "median"
    value: float = 1.0
    neighbours: int = 10

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise RecipeError(f"there is no rule {self.rule!r} for a kernel's width. {suggest(self.rule, RULES)}")
        if not (self.value > 0 and math.isfinite(self.value)) or self.neighbours < 1:
            raise RecipeError(f"a kernel's width needs a positive value and a neighbour or more, not {self}")

    def sigma(self, distances: Gram, dimensions: int) -> Tensor | float:
        """Return σ for a batch with these squared distances and so many numbers in a sample."""
        if self.rule == "fixed":
            return self.value
        if self.rule == "dimension":
            return self.value * math.sqrt(dimensions)
        away = distances.detach().sqrt()
        n = len(away)
        if self.rule == "median":
            found = away[torch.triu(torch.ones_like(away, dtype=torch.bool), diagonal=1)].median()
        else:
            # Each row's smallest distance is the sample's own, to itself.
            found = away.sort(1).values[:, 1 : 1 + min(self.neighbours, n - 1)].mean()
        # If most samples are the same there is no scale; any width gives the right kernel for equal samples.
        return self.value * torch.where(found > 0, found, torch.ones_like(found))


MEDIAN = Width("median")
NEIGHBOURS = Width("neighbours")
FIVE_ROOT_D = Width("dimension", 5.0)
"""What MIMIR's code takes on both sides."""


def gaussian_gram(x: Samples, width: Width) -> Gram:
    """Return k(xᵢ, xⱼ) of all pairs: symmetric, in [0, 1], one on the diagonal.

    Raises:
        InputError: fewer than two samples.
    """
    distances = squared_distances(x)
    sigma = width.sigma(distances, x[0].numel())
    return torch.exp(-distances / (2 * sigma**2))


def linear_gram(x: Samples) -> Gram:
    """Return the inner products of all pairs of samples.

    Raises:
        InputError: fewer than two samples.
    """
    rows = _rows(x)
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.T


def centred(gram: Gram) -> Gram:
    """Return H K H with H = I - 11ᵀ/n, without forming H."""
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def check_pair(x: Tensor, z: Tensor) -> None:
    """Raise InputError unless both have the same number of samples."""
    if len(x) != len(z):
        raise InputError(f"{len(x)} samples of x but {len(z)} of z; they must come in pairs")


Estimator = Callable[[Tensor, Tensor], Tensor]
"""(x `[B, …]`, z `[B, …]`) → a number, differentiable in both."""
