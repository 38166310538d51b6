"""Losses of adversarial training: pure functions of logits and goals, one value per sample.

A goal is a distribution over classes for each sample: one class, or two where images are mixed. The means over a batch
are the objectives of the papers; docs/concepts has them side by side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustmim.types import PerSample

Logits = Float[Tensor, "batch classes"]
Doubled = Float[Tensor, "batch doubled"]
Goal = Float[Tensor, "batch classes"]
"""What each sample should be taken for; sums to one."""


def smoothed(goal: Goal, smoothing: float) -> Goal:
    """Move a share of each goal to the uniform distribution (Szegedy et al. 2016, section 7)."""
    return (1 - smoothing) * goal + smoothing / goal.shape[1] if smoothing else goal


def cross_entropy(logits: Logits, goal: Goal, smoothing: float = 0.0) -> PerSample:
    """Return −Σ_k goal_k log p_k."""
    return -(smoothed(goal, smoothing) * logits.log_softmax(1)).sum(1)


def divergence(clean: Logits, attacked: Logits) -> PerSample:
    """Return KL(p(x) ‖ p(x′)), which TRADES and MART keep small: differentiable in both."""
    return (clean.softmax(1) * (clean.log_softmax(1) - attacked.log_softmax(1))).sum(1)


def squared_distance(clean: Logits, attacked: Logits) -> PerSample:
    """Return ‖p(x) − p(x′)‖², SCORE's distance, which obeys what the divergence does not: the triangle inequality."""
    return (clean.softmax(1) - attacked.softmax(1)).square().sum(1)


def trades(clean: Logits, attacked: Logits, goal: Goal, *, beta: float, smoothing: float = 0.0) -> PerSample:
    """Return CE(p(x), y) + β KL(p(x) ‖ p(x′)) (TRADES, Zhang et al. 2019, Eq. 5; β is their 1/λ)."""
    return cross_entropy(clean, goal, smoothing) + beta * divergence(clean, attacked)


def mart(clean: Logits, attacked: Logits, goal: Goal, *, beta: float, smoothing: float = 0.0) -> PerSample:
    """Return BCE(p(x′), y) + β KL(p(x) ‖ p(x′)) (1 − p_y(x)) (MART, Wang et al. 2020, section 3).

    BCE(p, y) = −log p_y − log(1 − max_{k≠y} p_k): the second term pushes the likeliest wrong class down. Samples that the
    model gets wrong as they are weigh more in the divergence. The constant keeps the logarithm finite, as in its code.
    """
    likeliest_wrong = attacked.softmax(1).masked_fill(goal > 0, 0).amax(1)
    boosted = cross_entropy(attacked, goal, smoothing) - (1.0001 - likeliest_wrong).log()
    wrong = 1 - (goal * clean.softmax(1)).sum(1)
    return boosted + beta * divergence(clean, attacked) * wrong


def score(clean: Logits, attacked: Logits, goal: Goal, *, beta: float, smoothing: float = 0.0) -> PerSample:
    """Return ‖p(x) − y‖² + β ‖p(x) − p(x′)‖²: TRADES with SCORE's distance (Pang et al. 2022)."""
    error = (clean.softmax(1) - smoothed(goal, smoothing)).square().sum(1)
    return error + beta * squared_distance(clean, attacked)


def double_boundary(clean: Doubled, attacked: Doubled, goal: Goal, *, smoothing: float = 0.0) -> PerSample:
    """Return the mean of CE over x as class y and x′ as class y + K, out of 2K classes (DBAT, Levi and Kontorovich 2024).

    Args:
        clean, attacked: logits of 2K classes: K for images as they are, K for attacked ones.
        goal: over the K classes.
        smoothing: over all 2K.
    """
    other = torch.zeros_like(goal)
    as_clean = cross_entropy(clean, torch.cat([goal, other], 1), smoothing)
    as_attacked = cross_entropy(attacked, torch.cat([other, goal], 1), smoothing)
    return (as_clean + as_attacked) / 2


def one_hot(labels: Tensor, classes: int) -> Goal:
    """Return the goals of plain labels."""
    return F.one_hot(labels, classes).float()
