"""The Hilbert-Schmidt independence criterion: zero (for the true distribution) if and only if x and z are independent.

Biased: Gretton et al. (ALT 2005), which divides by (n - 1)²; MIMIR, Eq. 29, divides by n². Unbiased: Song et al. (JMLR 13,
2012), Eq. 5, which needs four samples and may fall below zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import InputError, RecipeError, suggest
from robustmim.information.kernels import MEDIAN, Gram, Samples, Width, centred, check_pair, gaussian_gram

Scalar = Float[Tensor, ""]
DIVISORS = ("n²", "(n-1)²")


def biased_hsic(k: Gram, m: Gram, *, divisor: str = "n²") -> Scalar:
    """Return tr(K H M H) / n², or / (n - 1)²: not negative.

    Args:
        k, m: Gram matrices of x and z over the same samples.
        divisor: "n²" as in MIMIR's Eq. 29, "(n-1)²" as in Gretton et al. and in the unused function of MIMIR's code.

    Raises:
        RecipeError: another divisor.
    """
    if divisor not in DIVISORS:
        raise RecipeError(f"the biased HSIC cannot be divided by {divisor!r}. {suggest(divisor, DIVISORS)}")
    n = len(k)
    # tr(K H M H) = Σ (HKH) ∘ M; centring both keeps the sum small and so exact.
    total = (centred(k) * centred(m)).sum()
    return total / (n**2 if divisor == "n²" else (n - 1) ** 2)


def unbiased_hsic(k: Gram, m: Gram) -> Scalar:
    """Return Song et al.'s estimate, whose mean over samples is the true HSIC.

    [tr(K̃M̃) + 1ᵀK̃1 · 1ᵀM̃1 / ((n - 1)(n - 2)) - 2/(n - 2) · 1ᵀK̃M̃1] / (n(n - 3)), where ~ sets the diagonal to zero.

    Raises:
        InputError: fewer than four samples.
    """
    n = len(k)
    if n < 4:
        raise InputError(f"{n} samples: the unbiased HSIC needs four at least")
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    # Both are shifted by their mean off the diagonal, which the estimate does not depend on: near-constant Gram matrices
    # would otherwise lose their digits.
    k, m = ((gram - (gram * off).sum() / (n * (n - 1))) * off for gram in (k, m))
    pairs = (k * m).sum()
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (pairs + sums - 2 / (n - 2) * (k.sum(1) @ m.sum(1))) / (n * (n - 3))


def hsic(
    x: Samples,
    z: Samples,
    *,
    width: Width = MEDIAN,
    z_width: Width | None = None,
    unbiased: bool = False,
    divisor: str = "n²",
) -> Scalar:
    """Return the HSIC of paired samples under Gaussian kernels.

    Args:
        x, z: `[B, …]` each.
        width: of the kernel of x, and of z unless that is given too.
        z_width: of the kernel of z.
        unbiased: Song et al.'s estimate.
        divisor: of the biased one.

    Raises:
        InputError: samples that do not pair up, or too few.
    """
    check_pair(x, z)
    k, m = gaussian_gram(x, width), gaussian_gram(z, z_width or width)
    return unbiased_hsic(k, m) if unbiased else biased_hsic(k, m, divisor=divisor)
