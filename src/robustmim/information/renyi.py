"""Matrix-based Rényi entropy of order α (Sánchez Giraldo, Rao and Príncipe 2015; Yu et al. 2019; MIMIR, Eq. 25 to 27).

H(A) = log₂ tr(Aᵅ) / (1 - α) for a Gram matrix A of trace one, in bits: 0 when all samples are alike, log₂ n when all are
apart. The joint entropy is that of the elementwise product of two Gram matrices, scaled to trace one, and
I(x; z) = H(x) + H(z) - H(x, z). For α = 2, tr(A²) is the squared Frobenius norm, and no eigenvalues are needed.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import RecipeError
from robustmim.information.kernels import NEIGHBOURS, Gram, Samples, Width, check_pair, gaussian_gram

Scalar = Float[Tensor, ""]


def entropy(gram: Gram, alpha: float = 2.0) -> Scalar:
    """Return the entropy in bits, from 0 to log₂ n, of a positive semidefinite Gram matrix; it is scaled to trace one.

    Args:
        gram: of the samples.
        alpha: order, above 0; at 1 it is the limit, von Neumann's entropy -Σ λ log₂ λ.

    Raises:
        RecipeError: an order that is not positive and finite.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise RecipeError(f"alpha={alpha:g}: the order of an entropy is a positive number")
    own = gram / gram.diagonal().sum()
    if alpha == 2:
        return -own.square().sum().log2()
    # Rounding makes some eigenvalues of a singular matrix slightly negative; they count as none, and so does their slope,
    # which at zero would be infinite for orders below one.
    values = torch.linalg.eigvalsh((own + own.T) / 2)
    values = values[values > torch.finfo(values.dtype).eps]
    if alpha == 1:
        return -(values * values.log2()).sum()
    return values.pow(alpha).sum().log2() / (1 - alpha)


def joint_entropy(k: Gram, m: Gram, alpha: float = 2.0) -> Scalar:
    """Return the entropy of pairs, from the two Gram matrices over the same samples (MIMIR, Eq. 26)."""
    return entropy(k * m, alpha)


def mutual_information(k: Gram, m: Gram, alpha: float = 2.0) -> Scalar:
    """Return H(x) + H(z) - H(x, z) in bits (MIMIR, Eq. 27).

    With Gaussian kernels the joint entropy lies between the larger of the two and their sum, so that this is not negative
    but for rounding.
    """
    return entropy(k, alpha) + entropy(m, alpha) - joint_entropy(k, m, alpha)


def renyi(
    x: Samples,
    z: Samples,
    *,
    alpha: float = 2.0,
    width: Width = NEIGHBOURS,
    z_width: Width | None = None,
) -> Scalar:
    """Return the mutual information of paired samples under Gaussian kernels.

    Args:
        x, z: `[B, …]` each.
        alpha: order; MIMIR's code has 1.01.
        width: of the kernel of x, and of z unless that is given too; the mean distance to ten neighbours is the rule of the
            deterministic information bottleneck.
        z_width: of the kernel of z.

    Raises:
        InputError: samples that do not pair up, or fewer than two.
        RecipeError: an order that is not positive and finite.
    """
    check_pair(x, z)
    return mutual_information(gaussian_gram(x, width), gaussian_gram(z, z_width or width), alpha)
