"""The normalised HSIC that MIMIR's code computes where its paper writes HSIC (Eq. 29): Σ Rx ∘ Rzᵀ, R = KH (KH + εnI)⁻¹.

It goes back to the normalised cross-covariance operator of Fukumizu et al. (NeurIPS 2007) and the HSIC bottleneck (Ma et al.
2020). H stands on one side only, the width of both kernels is 5√d and ε is 10⁻⁵; n is the batch on one GPU.

Do not read it as a measure of dependence. With kernels this wide and batches of some hundred samples, R is nearly a
projection onto the kernel's effective range, and tr(Rx Rz) mostly tells how large two such ranges are: for images at n = 128,
independent z score higher than z that are a linear function of x. What it penalises is the spread of z. It is here because
published results rest on it; `unbiased-hsic` and the unbiased forms of CKA do what its name says.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.information.kernels import FIVE_ROOT_D, Gram, Samples, Width, centred, check_pair, gaussian_gram


def _regularised(gram: Gram, epsilon: float) -> Gram:
    """Return HKH (HKH + εnI)⁻¹, which is H R: in the trace of a product it counts like R, and it is symmetric."""
    n = len(gram)
    both_sides = centred(gram)
    ridge = epsilon * n * torch.eye(n, dtype=gram.dtype, device=gram.device)
    # The factors commute, so that one solve does; an explicit inverse would lose twice the digits.
    return torch.linalg.solve(both_sides + ridge, both_sides)


def hsic_cca(
    x: Samples, z: Samples, *, width: Width = FIVE_ROOT_D, z_width: Width | None = None, epsilon: float = 1e-5
) -> Float[Tensor, ""]:
    """Return the normalised HSIC of paired samples: between 0 and n - 1.

    Args:
        x, z: `[B, …]` each.
        width: of the kernel of x, and of z unless that is given too.
        z_width: of the kernel of z.
        epsilon: ridge, times the number of samples.

    Raises:
        InputError: samples that do not pair up, or fewer than two.
    """
    check_pair(x, z)
    of_x = _regularised(gaussian_gram(x, width), epsilon)
    of_z = _regularised(gaussian_gram(z, z_width or width), epsilon)
    return (of_x * of_z.T).sum()
