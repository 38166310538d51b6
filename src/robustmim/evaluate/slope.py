"""Is what an attack follows the slope of the defence? Its gradient against differences, along random directions.

Differences know nothing of graphs: where the derivative of something else passes for a purifier's, or a gradient is cut off,
the two have little in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from robustmim.attacks.objectives import Logits, margin
from robustmim.attacks.target import Target
from robustmim.rng import Keys
from robustmim.types import Images, Labels

DIRECTIONS = 20
REACH = 1 / 255
"""How far both ends of a difference are from the image: a step of the images themselves."""


def slope_agreement(
    target: Target, answer: Callable[[Images, Keys], Logits], x: Images, y: Labels, drawn: Keys
) -> float | None:
    """Return the cosine between slopes of the margin by gradient and by differences, averaged over the images.

    Args:
        target: the defence as the attack sees it; it is asked on one known draw.
        answer: the defence itself, of images and keys of its draws.
        x: `[B, C, H, W]` in [0, 1]; moved off black and white by a grey level, so that both ends are images.
        y: true classes `[B]`.
        drawn: keys `[B]` of the directions and of the defence's frozen draws.

    Returns:
        About zero for slopes that have nothing in common, within 1/√(20 B); None if neither has any.
    """
    frozen = drawn.fold("defence")
    middle = x * (1 - 2 * REACH) + REACH
    gradient = replace(target, known=frozen, draws=1, chunk=1).gradient(middle, y, margin, 0).ascent
    said, seen = [], []
    for number in range(DIRECTIONS):
        sign = drawn.fold("direction", number).signs(*x.shape[1:]).to(x)
        ends = [margin(answer((middle + way * REACH * sign).clamp(0, 1), frozen), y) for way in (1, -1)]
        said.append((gradient * sign).flatten(1).sum(1))
        seen.append((ends[0] - ends[1]) / (2 * REACH))
    by_gradient, by_difference = torch.stack(said, 1), torch.stack(seen, 1)
    some = by_difference.isfinite().all(1) & ((by_gradient != 0) | (by_difference != 0)).any(1)
    if not some.any():
        return None
    return float(torch.nn.functional.cosine_similarity(by_gradient[some], by_difference[some], dim=1).mean())
