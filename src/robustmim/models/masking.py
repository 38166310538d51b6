"""Masks for every masked model: one boolean grid `[B, rows, columns]`, True = hidden, the same count in each sample.

Masks are drawn here and injected; no model draws its own. The schemes are the answers to ambiguities A4 and A5 of
AMRM-Pure's Algorithm 1, which does not say whether the mask changes between iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustmim.errors import InputError, RecipeError
from robustmim.rng import Keys
from robustmim.types import Mask

MaskScheme = Literal["fresh", "fixed", "fixed-global", "complementary"]


def hidden_count(cells: int, ratio: float) -> int:
    """Return how many of `cells` a ratio hides: at least one, and never all.

    Raises:
        RecipeError: a ratio outside (0, 1), or a grid of a single cell.
    """
    if not 0 < ratio < 1:
        raise RecipeError(f"a mask ratio lies between 0 and 1 (both excluded), but this one is {ratio}")
    if cells < 2:
        raise RecipeError("a mask needs at least two patches: use a larger image or a smaller patch")
    return min(max(round(ratio * cells), 1), cells - 1)


def random_mask(keys: Keys, grid: tuple[int, int], ratio: float) -> Mask:
    """Hide a uniformly random subset of cells in each sample.

    Args:
        keys: one per sample; the mask of a sample depends on its key alone.
        grid: rows and columns.
        ratio: the fraction hidden, in (0, 1).
    """
    scores = keys.bits(grid[0] * grid[1])
    threshold = scores.kthvalue(hidden_count(scores.shape[1], ratio), dim=1, keepdim=True).values
    return (scores <= threshold).reshape(-1, *grid)


def partition_masks(keys: Keys, grid: tuple[int, int], ratio: float) -> list[Mask]:
    """Deal the cells of each sample at random into disjoint masks of the same size, as many as fit.

    At ratio 1/4 the four masks hide every cell exactly once; where the ratio does not divide the grid, a few cells
    stay visible in all of them.
    """
    scores = keys.bits(grid[0] * grid[1])
    count = hidden_count(scores.shape[1], ratio)
    rank = scores.argsort(dim=1).argsort(dim=1).reshape(-1, *grid)
    return [(rank >= start) & (rank < start + count) for start in range(0, scores.shape[1] - count + 1, count)]


@dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """Which masks each iteration of a purification sees.

    Attributes:
        ratio: fraction of cells hidden (AMRM-Pure, Table 19).
        scheme: "fresh" masks per sample and iteration; "fixed" per sample and call; "fixed-global", one mask for all
            samples and calls (a deterministic defence); "complementary", which cycles through a random partition so
            that every cell is hidden once a cycle.
        average: number of masks whose losses are averaged in each iteration (K).
    """

    ratio: float = 0.25
    scheme: MaskScheme = "fresh"
    average: int = 1

    def masks(self, keys: Keys, grid: tuple[int, int], step: int) -> list[Mask]:
        """Return the K masks of an iteration: a pure function of (keys, step)."""
        first = step * self.average
        if self.scheme == "complementary":
            parts = partition_masks(keys.fold("mask", 0), grid, self.ratio)
            cycle = len(parts)
            drawn = {0: parts}
            chosen = []
            for number in range(first, first + self.average):
                turn, part = divmod(number, cycle)
                if turn not in drawn:
                    drawn[turn] = partition_masks(keys.fold("mask", turn), grid, self.ratio)
                chosen.append(drawn[turn][part])
            return chosen
        if self.scheme == "fresh":
            return [random_mask(keys.fold("mask", first + k), grid, self.ratio) for k in range(self.average)]
        if self.scheme == "fixed-global":
            keys = Keys(torch.zeros_like(keys.values))
        return [random_mask(keys.fold("mask", k), grid, self.ratio) for k in range(self.average)]


def check_mask(mask: Tensor, grid: tuple[int, int]) -> None:
    """Refuse a mask that does not fit the grid.

    Raises:
        InputError: another shape than `[B, rows, columns]`, or not boolean.
    """
    if mask.dtype != torch.bool or mask.ndim != 3 or tuple(mask.shape[1:]) != grid:
        raise InputError(
            f"this model takes boolean masks [B, {grid[0]}, {grid[1]}], but got {mask.dtype} {tuple(mask.shape)}"
        )


def split_ids(mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the indices of visible and of hidden cells, `[B, visible]` and `[B, hidden]`, each in reading order.

    The number hidden is taken from the first sample; masks must hide the same number in each (see `hidden_count`).
    """
    flat = mask.flatten(1)
    hidden = int(flat[0].sum())
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : flat.shape[1] - hidden], order[:, flat.shape[1] - hidden :]


def take(
    tokens: Float[Tensor, "#batch tokens width"], ids: Int[Tensor, "batch chosen"]
) -> Float[Tensor, "batch chosen width"]:
    """Pick the tokens with these indices, sample by sample; a batch of one serves all samples."""
    return tokens.expand(len(ids), -1, -1).gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def enlarge(mask: Mask, patch_size: int) -> Tensor:
    """Blow a mask up from cells to pixels: bool `[B, 1, rows·p, columns·p]`."""
    return mask.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)[:, None]
