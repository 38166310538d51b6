"""MIMIR's bounds on I(x + δ; z), from how often a classifier sees another class after reconstruction.

p_e is the probability that a classifier's label of the attacked image differs from its label of the reconstruction, H the
entropy of its labels of attacked images, c the number of classes. All in bits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import InputError

Numbers = Float[Tensor, "*shape"]


def _checked(disagreement: Numbers) -> Numbers:
    if bool((disagreement < 0).any() or (disagreement > 1).any()):
        raise InputError("the probability that two labels differ lies between 0 and 1")
    return disagreement


def binary_entropy(p: Numbers) -> Numbers:
    """Return -p log₂ p - (1 - p) log₂ (1 - p), 0 at both ends.

    Raises:
        InputError: something that is no probability.
    """
    _checked(p)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0, dtype=p.dtype))


def lower_bound(disagreement: Numbers, label_entropy: float, classes: int) -> Numbers:
    """Return Proposition III.2: H - H_b(p_e) - p_e log₂(c - 1) ≤ I(x + δ; z), by Fano's inequality.

    It falls with p_e until p_e = 1 - 1/c, where for uniform labels it is 0, and rises after. It is not below what is
    returned, but may be below zero, where it says nothing.

    Args:
        disagreement: p_e, in [0, 1].
        label_entropy: H in bits, from 0 to log₂ c.
        classes: c, two at least.

    Raises:
        InputError: numbers out of their range.
    """
    _check_labels(label_entropy, classes)
    several = torch.log2(torch.tensor(float(classes - 1), dtype=disagreement.dtype))
    return label_entropy - binary_entropy(disagreement) - disagreement * several


def upper_bound(disagreement: Numbers, label_entropy: float, classes: int) -> Numbers:
    """Return Proposition III.3: I(x + δ; z) ≲ H - 2 p_e, by the inequality of Hellman and Raviv.

    It holds as far as I(F(x + δ); x_re) ≈ I(x + δ; z), that is, where nothing is lost on the way to the labels: an
    assumption that images, which hold far more bits than their labels, do not meet. Read it as the paper's
    heuristic, not as a guarantee. The inequality itself also speaks of the best guess of the label, whose error p_e bounds
    from above; for p_e above 1 - 1/c the expression can fall below `lower_bound`.

    Args:
        disagreement: p_e, in [0, 1].
        label_entropy: H in bits, from 0 to log₂ c.
        classes: c, two at least.

    Raises:
        InputError: numbers out of their range.
    """
    _check_labels(label_entropy, classes)
    return label_entropy - 2 * _checked(disagreement)


def _check_labels(label_entropy: float, classes: int) -> None:
    most = float(torch.log2(torch.tensor(float(max(classes, 1)))))
    if classes < 2 or not 0 <= label_entropy <= most + 1e-6:
        raise InputError(
            f"{classes} classes with {label_entropy:g} bits; there are two classes or more, and log₂ c bits at most"
        )
