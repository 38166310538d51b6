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
        raise RecipeError(
            "a mask needs at least two patches, but the image holds one: take a larger image or a smaller patch"
        )
    return min(max(round(ratio * cells), 1), cells - 1)


def coarser(grid: tuple[int, int], scale: int) -> tuple[int, int]:
    """Return rows and columns of a grid whose cells are `scale` × `scale` cells of this one.

    Raises:
        RecipeError: a scale below one.
        InputError: a scale that does not divide the grid.
    """
    check_scales((scale,))
    if grid[0] % scale or grid[1] % scale:
        raise InputError(
            f"masks of scale {scale} do not fit a grid of {grid[0]} × {grid[1]} cells; choose a scale that divides both, or "
            f"resize or crop the image to a grid of {grid[0] - grid[0] % scale} × {grid[1] - grid[1] % scale}"
        )
    return grid[0] // scale, grid[1] // scale


def check_scales(scales: tuple[int, ...]) -> None:
    """Refuse scales of masks that no grid can have.

    Raises:
        RecipeError: none at all, or one below one.
    """
    if not scales or min(scales) < 1:
        raise RecipeError(f"mask_scales lists one or more whole numbers from 1 up, not {list(scales)}")


def in_turn(ratios: tuple[float, ...], scales: tuple[int, ...], step: int) -> tuple[float, int]:
    """Return ratio and scale of the masks of a training step: all ratios at a scale, then all at the next."""
    turn, number = divmod(step, len(ratios))
    return ratios[number], scales[turn % len(scales)]


def _scores(keys: Keys, grid: tuple[int, int], scale: int) -> Int[Tensor, "batch cells"]:
    """Draw a number for each coarse cell; masks of different scales are independent of each other."""
    return (keys if scale == 1 else keys.fold("scale", scale)).bits(grid[0] * grid[1])


def _refined(mask: Mask, scale: int) -> Tensor:
    return mask if scale == 1 else enlarge(mask, scale)[:, 0]


def random_mask(keys: Keys, grid: tuple[int, int], ratio: float, scale: int = 1) -> Mask:
    """Hide a uniformly random subset of cells in each sample.

    Args:
        keys: one per sample; the mask of a sample depends on its key alone.
        grid: rows and columns.
        ratio: the fraction hidden, in (0, 1).
        scale: the mask is drawn on cells so many times coarser, and enlarged to the grid.

    Raises:
        RecipeError, InputError: see `hidden_count` and `coarser`.
    """
    grid = coarser(grid, scale)
    scores = _scores(keys, grid, scale)
    threshold = scores.kthvalue(hidden_count(scores.shape[1], ratio), dim=1, keepdim=True).values
    return _refined((scores <= threshold).reshape(-1, *grid), scale)


def partition_masks(keys: Keys, grid: tuple[int, int], ratio: float, scale: int = 1) -> list[Mask]:
    """Deal the cells of each sample at random into disjoint masks of the same size, as many as fit.

    At ratio 1/4 the four masks hide every cell exactly once; where the ratio does not divide the grid, a few cells
    stay visible in all of them.

    Args:
        keys, grid, ratio, scale: as for `random_mask`.
    """
    grid = coarser(grid, scale)
    scores = _scores(keys, grid, scale)
    count = hidden_count(scores.shape[1], ratio)
    rank = scores.argsort(dim=1).argsort(dim=1).reshape(-1, *grid)
    starts = range(0, scores.shape[1] - count + 1, count)
    return [_refined((rank >= start) & (rank < start + count), scale) for start in starts]


@dataclass(frozen=True, kw_only=True)
class MaskSchedule:
    """Which masks each iteration of a purification sees.

    Attributes:
        ratio: fraction of cells hidden (AMRM-Pure, Table 19).
        scheme: "fresh" masks per sample and iteration; "fixed" per sample and call; "fixed-global", one mask for all
            samples and calls (a deterministic defence); "complementary", which cycles through a random partition so
            that every cell is hidden once a cycle, each scale through partitions of its own.
        average: number of masks whose losses are averaged in each iteration (K).
        scales: how many times coarser than the model's own cells those of a mask are, mask after mask, in turns (ours).

    Raises:
        RecipeError: a ratio outside (0, 1), no mask to average, no scales, or one below one.
    """

    ratio: float = 0.25
    scheme: MaskScheme = "fresh"
    average: int = 1
    scales: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_scales(self.scales)
        hidden_count(2, self.ratio)  # refuses a ratio that no grid can have
        if self.average < 1:
            raise RecipeError(f"mask_average is the number of masks of an iteration, at least 1, not {self.average}")

    def masks(self, keys: Keys, grid: tuple[int, int], step: int) -> list[Mask]:
        """Return the K masks of an iteration: a pure function of (keys, step)."""
        numbers = range(step * self.average, (step + 1) * self.average)
        scales = [self.scales[number % len(self.scales)] for number in numbers]
        if self.scheme == "complementary":
            return self._dealt(keys, grid, list(zip(numbers, scales, strict=True)))
        if self.scheme == "fixed-global":
            keys = keys.shared()
        draws = numbers if self.scheme == "fresh" else range(self.average)
        return [
            random_mask(keys.fold("mask", draw), grid, self.ratio, scale)
            for draw, scale in zip(draws, scales, strict=True)
        ]

    def _dealt(self, keys: Keys, grid: tuple[int, int], wanted: list[tuple[int, int]]) -> list[Mask]:
        """Return the masks with these numbers and scales from the partitions of each scale."""
        partitions: dict[tuple[int, int], list[Mask]] = {}
        chosen = []
        for number, scale in wanted:
            rows, columns = coarser(grid, scale)
            cycle = rows * columns // hidden_count(rows * columns, self.ratio)
            rounds, rest = divmod(number, len(self.scales))
            earlier = rounds * self.scales.count(scale) + self.scales[:rest].count(scale)
            turn, part = divmod(earlier, cycle)
            if (scale, turn) not in partitions:
                partitions[scale, turn] = partition_masks(keys.fold("mask", turn), grid, self.ratio, scale)
            chosen.append(partitions[scale, turn][part])
        return chosen


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

    Raises:
        InputError: masks that do not hide the same number in each sample, which sequences of one length cannot hold.
    """
    flat = mask.flatten(1)
    hidden, most = torch.stack(flat.sum(1).aminmax()).tolist()
    if hidden != most:
        raise InputError(f"masks hide the same number of patches in each sample, but these from {hidden} to {most}")
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : flat.shape[1] - hidden], order[:, flat.shape[1] - hidden :]


def take(
    tokens: Float[Tensor, "#batch tokens width"], ids: Int[Tensor, "batch chosen"]
) -> Float[Tensor, "batch chosen width"]:
    """Pick the tokens with these indices, sample by sample; a batch of one serves all samples."""
    # As rows of one table: whole rows are copied, where a gather would look up each number.
    if len(tokens) > 1:
        ids = ids + tokens.shape[1] * torch.arange(len(tokens), device=ids.device)[:, None]
    return tokens.flatten(0, 1).index_select(0, ids.flatten()).view(*ids.shape, tokens.shape[-1])


def enlarge(mask: Mask, patch_size: int) -> Tensor:
    """Blow a mask up from cells to pixels: bool `[B, 1, rows·p, columns·p]`."""
    return mask.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)[:, None]
