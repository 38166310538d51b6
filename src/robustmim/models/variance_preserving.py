"""The variance-preserving diffusion of DDPM and DiffPure, and where its times lie among noise levels.

    dx = −β(t) x / 2 dt + √β(t) dw,   β(t) = 0.1 + 19.9 t,   0 ≤ t ≤ 1                     (Song et al. 2021, Eq. 32)

so that x_t = √ᾱ x + √(1 − ᾱ) n with ln(1 / ᾱ) = ∫ β = 0.1 t + 9.95 t². Divided by √ᾱ this is an image at noise level
σ = √((1 − ᾱ) / ᾱ) = √(exp(0.1 t + 9.95 t²) − 1). DDPM's thousand steps, β from 10⁻⁴ to 0.02, are the times t = i / 1000.

    t       0.001    0.01     0.02     0.05     0.075    0.1      0.2      0.5      1
    σ       0.0105   0.0447   0.0774   0.1741   0.2560   0.3402   0.7204   3.41     152
"""

from __future__ import annotations

import math

from robustmim.types import PerSample, Signed

BETA_FIRST, BETA_LAST = 0.1, 20.0


def level_at_time(time: float) -> float:
    """Return the noise level at a time in [0, 1]."""
    return math.sqrt(math.expm1(BETA_FIRST * time + (BETA_LAST - BETA_FIRST) * time**2 / 2))


def levels_at_times(times: PerSample) -> PerSample:
    """Return the noise level of each sample's time."""
    return (BETA_FIRST * times + (BETA_LAST - BETA_FIRST) * times.square() / 2).expm1().sqrt()


def time_of_level(level: float) -> float:
    """Return the time at which a noise level is reached; above 1 for a level beyond the diffusion's last."""
    slope, total = BETA_LAST - BETA_FIRST, math.log1p(level**2)
    # The stable root of slope t² / 2 + β₀ t = total.
    return 2 * total / (BETA_FIRST + math.sqrt(BETA_FIRST**2 + 2 * slope * total))


def variance_preserving_step(x: Signed, estimate: Signed, level: float, following: float, z: Signed) -> Signed:
    """Take one step of Euler and Maruyama down the reverse SDE in its own variables (DiffPure, Eq. 5).

    Args:
        x: images at `level`, not scaled.
        estimate: of the clean images.
        level, following: noise levels before and after.
        z: standard normal.

    Returns:
        Images at `following`, not scaled.
    """
    time = time_of_level(level)
    span, beta = time - time_of_level(following), BETA_FIRST + (BETA_LAST - BETA_FIRST) * time
    before, after = (1 + level**2) ** -0.5, (1 + following**2) ** -0.5  # √ᾱ
    scaled = before * x
    score = (before * estimate - scaled) / (1 - before**2)
    return (scaled + beta * span * (scaled / 2 + score) + math.sqrt(beta * span) * z) / after
