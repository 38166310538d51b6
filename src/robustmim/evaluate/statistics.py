"""Intervals for accuracies."""

from __future__ import annotations

import math


def wilson_interval(correct: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927), 95 % by default.

    Unlike the normal approximation it holds near 0 and 1 and for small samples.

    Args:
        correct: successes; for shares averaged over draws their sum, which makes the interval the wider one.
        n: trials; with none the interval is (0, 1).
        z: normal quantile.
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the bound is exact; rounding must not leave [0, 1].
    low = 0.0 if correct == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if correct == n else min(1.0, (middle + half) / scale)
    return low, high


def clopper_pearson_lower(correct: int, n: int, alpha: float) -> float:
    """Return the one-sided lower bound of a proportion (Clopper and Pearson 1934), exact at every sample size.

    The share p at which so many successes, or more, have the probability alpha. Over repetitions the true proportion lies
    below the bound with a probability of at most alpha.

    Args:
        correct: successes, 0 to n.
        n: trials, at least one.
        alpha: in (0, 1).
    """
    if correct == 0:
        return 0.0
    if correct == n:
        return alpha ** (1 / n)
    from scipy.stats import beta

    return float(beta.ppf(alpha, correct, n - correct + 1))
