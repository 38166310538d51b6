"""Square Attack (Andriushchenko et al. 2020): random search over squares, asking for nothing but logits."""

from __future__ import annotations

import math

import torch

from robustmim.attacks.objectives import margin
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Fractions of the queries after which the squares' share of the image halves (section 4)."""


@register("attack", "square")
class Square:
    """Square Attack in l∞: every query repaints one square of the perturbation in ±ε, and keeps it if that is worse.

    For a random defence a candidate is kept if it is worse on average over `target.draws` draws; the value it must beat
    was averaged over others.

    Args:
        queries: candidates, each asked about once (times the target's draws).
        share: fraction of the image that the first squares cover.

    Raises:
        RecipeError: fewer than one query.
    """

    norms = ("linf",)
    black_box = True

    def __init__(self, *, queries: int = 5000, share: float = 0.8) -> None:
        if queries < 1:
            raise RecipeError(f"Square takes at least one query, not {queries}")
        self.queries, self.share = queries, share

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the squares at a query."""
        share = self.share / 2 ** sum(query / self.queries > place for place in HALVINGS)
        return min(max(1, round(math.sqrt(share * height * width))), height - 1, width - 1)

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the worst image found for each sample; see `Attack`."""
        channels, width = x.shape[1], x.shape[3]
        # The first guess: stripes, one random sign for each column and channel.
        stripes = 2 * (target.keys.fold("stripes").uniform(channels, 1, width) < 0.5).to(x) - 1
        best = ball.project(x + ball.eps * stripes.expand_as(x), x)
        left = torch.arange(len(x), device=x.device)
        value = torch.zeros(len(x), device=x.device)
        candidate = best.clone()
        for query in range(self.queries):
            part, labels = target[left], y[left]
            if query:
                candidate = self._repaint(best[left], x[left], ball, part.keys.fold("square", query), query)
            asked = part.value(candidate, labels, margin, query, progress=query / self.queries)
            better = asked.value > value[left] if query else torch.ones_like(left, dtype=torch.bool)
            best[left[better]], value[left[better]] = candidate[better], asked.value[better]
            if callback is not None:
                callback({"step": query, "x": best, "value": value, "center": x, "ball": ball})
            left = left[~(better & part.fallen(candidate, labels, asked, query))]
            if not len(left):
                break
        return best

    def _repaint(self, best: Images, x: Images, ball: Ball, drawn: Keys, query: int) -> Images:
        """Set one square of each perturbation to ±ε, a random sign for each channel."""
        _, channels, height, width = x.shape
        side = self.side(query, height, width)
        place = drawn.fold("place").uniform(2)
        top = (place[:, 0] * (height - side + 1)).long().view(-1, 1, 1, 1)
        first = (place[:, 1] * (width - side + 1)).long().view(-1, 1, 1, 1)
        rows = torch.arange(height, device=x.device).view(1, 1, -1, 1)
        columns = torch.arange(width, device=x.device).view(1, 1, 1, -1)
        inside = (rows >= top) & (rows < top + side) & (columns >= first) & (columns < first + side)
        signs = 2 * (drawn.fold("sign").uniform(channels, 1, 1) < 0.5).to(x) - 1
        return ball.project(torch.where(inside, x + ball.eps * signs, best), x)
