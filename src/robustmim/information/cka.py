"""Centred kernel alignment (Cortes et al. 2012; Kornblith et al., ICML 2019): HSIC(x, z) / √(HSIC(x, x) HSIC(z, z)).

Linear CKA does not change when either side is turned, mirrored or scaled; with Gaussian kernels whose width follows the
data the same holds. With the unbiased HSIC it is near zero for independent samples whatever their number; the biased one
rises towards one as the dimensions outgrow the samples.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from robustmim.errors import RecipeError, suggest
from robustmim.information.hsic import biased_hsic, unbiased_hsic
from robustmim.information.kernels import MEDIAN, Samples, Width, check_pair, gaussian_gram, linear_gram

KERNELS = ("linear", "gaussian")


def cka(
    x: Samples,
    z: Samples,
    *,
    kernel: str = "linear",
    width: Width = MEDIAN,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    """Return the alignment of paired samples: 1 for x with itself; in [0, 1], unless unbiased, which may be below zero.

    A side that does not vary is aligned with nothing: 0.

    Args:
        x, z: `[B, …]` each.
        kernel: "linear", inner products, or "gaussian".
        width: of the Gaussians.
        unbiased: use Song et al.'s HSIC throughout.

    Raises:
        InputError: samples that do not pair up, or too few.
        RecipeError: no such kernel.
    """
    check_pair(x, z)
    if kernel not in KERNELS:
        raise RecipeError(f"there is no kernel {kernel!r}. {suggest(kernel, KERNELS)}")
    k, m = (linear_gram(side) if kernel == "linear" else gaussian_gram(side, width) for side in (x, z))
    between = unbiased_hsic if unbiased else biased_hsic
    own = between(k, k).clamp_min(0) * between(m, m).clamp_min(0)
    # The square root is only taken of what is above zero: its slope at zero would make the gradient NaN.
    varies = own > 0
    return between(k, m) * varies / own.where(varies, own.new_ones(())).sqrt()
