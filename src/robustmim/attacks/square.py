"""Square Attack (Andriushchenko et al. 2020): random search over squares, asking for nothing but logits.

"Square Attack: a query-efficient black-box adversarial attack via random search" (ECCV 2020): Algorithm 1 with the
candidates of Algorithm 2 for l∞ and of Algorithm 3 for l2. Its form for l1 is that of l2 with lengths in l1 and the
exact projection onto ball and cube, after Croce and Hein, "Mind the box" (ICML 2021).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustmim.attacks.objectives import margin
from robustmim.attacks.search import bounded, nearest
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Fractions of the queries after which the squares' share of the image halves (section 4)."""
_TILES = 5  # of the first perturbation in l2 and l1, along each side
_TINY = 1e-12


def _corners(drawn: Keys, side: int, height: int, width: int) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Draw the first row and the first column of a square that lies in the image."""
    place = drawn.uniform(2)
    return (place[:, 0] * (height - side + 1)).long(), (place[:, 1] * (width - side + 1)).long()


def _inside(
    top: Int[Tensor, " batch"], first: Int[Tensor, " batch"], side: int, height: int, width: int
) -> Bool[Tensor, "batch 1 height width"]:
    """Say which pixels lie in each sample's square."""
    top, first = top.view(-1, 1, 1, 1), first.view(-1, 1, 1, 1)
    rows = torch.arange(height, device=top.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=top.device).view(1, 1, 1, -1)
    return (rows >= top) & (rows < top + side) & (columns >= first) & (columns < first + side)


def _hill(height: int, width: int) -> Float[Tensor, "height width"]:
    """Return a hill of rectangular terraces, each 1/k² above the one around it (Equation 2)."""
    size = max(height, width) // 2
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    terrace = size - torch.maximum(rows[:, None], columns[None])
    rises = 1 / torch.arange(size + 1, 0, -1, dtype=torch.float32).square()
    return rises.cumsum(0)[terrace]


def hill_and_hollow(height: int, width: int) -> Float[Tensor, "height width"]:
    """Return η: a hill in the upper half of a window and its negative in the lower half, of unit length in l2."""
    upper = height // 2
    shape = torch.cat([_hill(upper, width), -_hill(height - upper, width)]) if upper else _hill(height, width)
    return shape / shape.norm()


@register("attack", "square")
class Square:
    """Square Attack in l∞, l2 and l1; a candidate is kept if it is worse.

    In l∞ every query repaints one square of the perturbation in ±ε. In l2 and l1 it takes the perturbation out of one
    square and spends it, with whatever is left of the budget, on a pattern in another.

    For a random defence a candidate is kept if it is worse on average over `target.draws` draws; the value it must beat
    was averaged over others.

    Args:
        queries: candidates, each asked about once (times the target's draws).
        initial: fraction of the image that the first squares cover.

    Raises:
        RecipeError: fewer than one query, or a fraction that is not in (0, 1].
    """

    norms = ("linf", "l2", "l1")
    black_box = True

    def __init__(self, *, queries: int = 5000, initial: float = 0.8) -> None:
        if queries < 1:
            raise RecipeError(f"Square takes at least one query, not {queries}")
        if not 0 < initial <= 1:
            raise RecipeError(f"Square's first squares cover a fraction of the image in (0, 1], not {initial}")
        self.queries, self.initial = queries, initial

    def side(self, query: int, height: int, width: int, norm: str = "linf") -> int:
        """Return the side of the squares at a query; otherwise odd, so that a window has a middle, and 3 at least."""
        share = self.initial / 2 ** sum(query / self.queries > place for place in HALVINGS)
        side = round(math.sqrt(share * height * width))
        if norm == "linf":
            return max(1, min(side, height - 1, width - 1))
        side = max(3, side) | 1
        smallest = min(height, width)
        return side if side <= smallest else max(1, smallest - 1 + smallest % 2)

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return the worst image found for each sample; see `Attack`."""
        ball = bounded(ball, x)
        begin, change = (_stripes, _repaint) if ball.norm == "linf" else (_tiles, _move)
        best = begin(x, ball, target.keys)
        left = torch.arange(len(x), device=x.device)
        value = torch.zeros(len(x), device=x.device)
        candidate = best.clone()
        for query in range(self.queries):
            part, labels = target[left], y[left]
            if query:
                side = self.side(query, x.shape[2], x.shape[3], ball.norm)
                candidate = change(best[left], x[left], ball, part.keys.fold("square", query), side)
            asked = part.value(candidate, labels, margin, query, progress=query / self.queries)
            better = asked.value > value[left] if query else torch.ones_like(left, dtype=torch.bool)
            best[left[better]], value[left[better]] = candidate[better], asked.value[better]
            if callback is not None:
                callback({"step": query, "x": best.clone(), "value": value.clone(), "center": x, "ball": ball})
            left = left[~(better & part.fallen(candidate, labels, asked, query))]
            if not len(left):
                break
        return best


def _stripes(x: Images, ball: Ball, drawn: Keys) -> Images:
    """Return the first guess in l∞: stripes, one random sign for each column and channel."""
    stripes = drawn.fold("stripes").signs(x.shape[1], 1, x.shape[3]).to(x)
    return ball.project(x + ball.eps * stripes.expand_as(x), x)


def _repaint(best: Images, x: Images, ball: Ball, drawn: Keys, side: int) -> Images:
    """Set one square of each perturbation to ±ε, a random sign for each channel (Algorithm 2)."""
    inside = _inside(*_corners(drawn.fold("place"), side, *x.shape[2:]), side, *x.shape[2:])
    signs = drawn.fold("sign").signs(x.shape[1], 1, 1).to(x)
    return ball.project(torch.where(inside, x + ball.eps * signs, best), x)


def _order(ball: Ball) -> int:
    return 2 if ball.norm == "l2" else 1


def _tiles(x: Images, ball: Ball, drawn: Keys) -> Images:
    """Return the first guess in l2 and l1: a grid of patterns, a random sign for each tile and channel (section 3.4)."""
    _, channels, height, width = x.shape
    count = min(_TILES, height, width)
    rows, columns = torch.arange(height).tensor_split(count), torch.arange(width).tensor_split(count)
    pattern = torch.cat([torch.cat([hill_and_hollow(len(r), len(c)) for c in columns], 1) for r in rows])
    row = torch.cat([torch.full_like(r, number) for number, r in enumerate(rows)]).to(x.device)
    column = torch.cat([torch.full_like(c, number) for number, c in enumerate(columns)]).to(x.device)
    signs = drawn.fold("tiles").signs(channels, count, count)[:, :, row][:, :, :, column]
    shift = (signs * pattern.to(signs)).to(x)
    length = shift.flatten(1).norm(_order(ball), dim=1).view(-1, 1, 1, 1)
    return nearest(ball, x + ball.eps * shift / length.clamp(min=_TINY), x)


def _move(best: Images, x: Images, ball: Ball, drawn: Keys, side: int) -> Images:
    """Empty one window of each perturbation and spend its length, and what was unspent, in another (Algorithm 3).

    What the clip to [0, 1] took from earlier candidates is unspent, and thus not lost.
    """
    _, channels, height, width = x.shape
    order, shift = _order(ball), best - x
    top, first = _corners(drawn.fold("place"), side, height, width)
    emptied = _inside(*_corners(drawn.fold("emptied"), side, height, width), side, height, width)
    either = emptied | _inside(top, first, side, height, width)
    unspent = (ball.eps**order - shift.abs().pow(order).sum((1, 2, 3))).clamp(min=0)
    spendable = ((shift * either).abs().pow(order).sum((2, 3)) + unspent[:, None] / channels) ** (1 / order)

    pattern = hill_and_hollow(side, side).to(x)
    lies = (drawn.fold("turn").uniform(1, 1, 1) < 0.5).to(x.device)
    pattern = torch.where(lies, pattern.T, pattern) * drawn.fold("sign").signs(channels, 1, 1).to(x)
    span = torch.arange(side, device=x.device)
    window = (
        torch.arange(len(x), device=x.device).view(-1, 1, 1, 1),
        torch.arange(channels, device=x.device).view(1, -1, 1, 1),
        (top[:, None] + span).view(-1, 1, side, 1),
        (first[:, None] + span).view(-1, 1, 1, side),
    )
    old = shift[window]
    pattern = pattern / pattern.flatten(2).norm(order, dim=2).clamp(min=_TINY)[..., None, None]
    new = pattern + old / old.flatten(2).norm(order, dim=2).clamp(min=_TINY)[..., None, None]
    new = new / new.flatten(2).norm(order, dim=2).clamp(min=_TINY)[..., None, None]
    shift = shift.masked_fill(emptied, 0.0)
    shift[window] = new * spendable[..., None, None]
    return nearest(ball, x + shift, x)
