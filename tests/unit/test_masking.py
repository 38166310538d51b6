"""Masks: how many they hide, what they depend on, and how the schemes differ."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustmim.errors import InputError, RecipeError
from robustmim.models.masking import (
    MaskSchedule,
    check_mask,
    coarser,
    enlarge,
    hidden_count,
    in_turn,
    partition_masks,
    random_mask,
    split_ids,
)
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(5))


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(2, 12), ratio=st.floats(0.01, 0.99))
def test_each_sample_hides_the_same_number(rows, columns, ratio):
    mask = random_mask(KEYS, (rows, columns), ratio)
    assert mask.shape == (5, rows, columns)
    assert (mask.flatten(1).sum(1) == hidden_count(rows * columns, ratio)).all()


def test_every_cell_is_hidden_equally_often():
    mask = random_mask(keys(0, "many", torch.arange(8000)), (4, 4), 0.25)
    share = mask.float().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 2.0])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(RecipeError, match="between 0 and 1"):
        random_mask(KEYS, (4, 4), ratio)


def test_partition_hides_each_cell_once():
    parts = partition_masks(KEYS, (8, 8), 0.25)
    assert len(parts) == 4
    assert torch.stack(parts).sum(0).eq(1).all()


def test_partition_where_the_ratio_does_not_divide():
    parts = torch.stack(partition_masks(KEYS, (8, 8), 0.3))
    assert parts.sum(0).max() == 1
    assert (parts.flatten(2).sum(2) == 19).all()


def test_schemes():
    grid = (8, 8)
    fresh = MaskSchedule(scheme="fresh")
    assert not torch.equal(fresh.masks(KEYS, grid, 0)[0], fresh.masks(KEYS, grid, 1)[0])
    fixed = MaskSchedule(scheme="fixed")
    assert torch.equal(fixed.masks(KEYS, grid, 0)[0], fixed.masks(KEYS, grid, 9)[0])
    assert not torch.equal(fixed.masks(KEYS, grid, 0)[0][0], fixed.masks(KEYS, grid, 0)[0][1])
    everywhere = MaskSchedule(scheme="fixed-global").masks(KEYS, grid, 3)[0]
    assert everywhere.eq(everywhere[:1]).all()
    other = MaskSchedule(scheme="fixed-global").masks(keys(9, "other", torch.arange(5)), grid, 0)[0]
    assert torch.equal(everywhere, other)
    cycle = MaskSchedule(scheme="complementary")
    first = torch.stack([cycle.masks(KEYS, grid, step)[0] for step in range(4)])
    second = torch.stack([cycle.masks(KEYS, grid, step)[0] for step in range(4, 8)])
    assert first.sum(0).eq(1).all()
    assert second.sum(0).eq(1).all()
    assert not torch.equal(first, second)


def test_averaged_complementary_masks_cover_the_image_in_one_iteration():
    masks = MaskSchedule(scheme="complementary", average=4).masks(KEYS, (8, 8), 3)
    assert torch.stack(masks).sum(0).eq(1).all()
    assert len(MaskSchedule(average=3).masks(KEYS, (8, 8), 0)) == 3


def constant_on_cells(mask, scale):
    coarse = mask[:, ::scale, ::scale]
    return torch.equal(mask, enlarge(coarse, scale)[:, 0])


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(2, 6), scale=st.integers(1, 5), ratio=st.floats(0.01, 0.99))
def test_a_coarse_mask_is_constant_on_its_cells_and_hides_the_same_share_of_them(rows, columns, scale, ratio):
    mask = random_mask(KEYS, (rows * scale, columns * scale), ratio, scale)
    assert mask.shape == (5, rows * scale, columns * scale)
    assert constant_on_cells(mask, scale)
    assert (mask.flatten(1).sum(1) == scale**2 * hidden_count(rows * columns, ratio)).all()
    assert torch.equal(mask[2:3], random_mask(KEYS[2:3], (rows * scale, columns * scale), ratio, scale))


def test_coarse_masks_are_drawn_for_themselves_and_dealt_without_overlap():
    grid = (16, 16)
    enlarged = enlarge(random_mask(KEYS, (8, 8), 0.25), 2)[:, 0]
    assert not torch.equal(random_mask(KEYS, grid, 0.25, 2), enlarged)  # independent of those of another scale
    parts = partition_masks(KEYS, grid, 0.25, 4)
    assert torch.stack(parts).sum(0).eq(1).all()
    assert all(constant_on_cells(part, 4) for part in parts)


def test_scales_take_turns_mask_after_mask():
    grid = (16, 16)

    def coarsest(mask):
        return max(scale for scale in (1, 2, 4) if constant_on_cells(mask, scale))

    def scales(steps, **options):
        schedule = MaskSchedule(scales=(4, 2, 1), **options)
        return [[coarsest(mask) for mask in schedule.masks(KEYS, grid, step)] for step in range(steps)]

    assert scales(4) == [[4], [2], [1], [4]]
    assert scales(3, average=2) == [[4, 2], [1, 4], [2, 1]]
    assert scales(2, average=3, scheme="fixed") == [[4, 2, 1], [4, 2, 1]]
    assert scales(4, scheme="fixed-global") == scales(4, scheme="complementary") == scales(4)
    plain, fresh = MaskSchedule(), MaskSchedule(scales=(2, 1))
    assert torch.equal(plain.masks(KEYS, grid, 3)[0], fresh.masks(KEYS, grid, 3)[0])  # the scale changes nothing else


def test_each_scale_cycles_through_partitions_of_its_own():
    schedule = MaskSchedule(scheme="complementary", scales=(1, 2, 2))
    masks = [schedule.masks(KEYS, (16, 16), step)[0] for step in range(12)]
    fine = [mask for number, mask in enumerate(masks) if number % 3 == 0]
    coarse = [mask for number, mask in enumerate(masks) if number % 3]
    assert torch.stack(fine).sum(0).eq(1).all()
    for four in (coarse[:4], coarse[4:]):
        assert torch.stack(four).sum(0).eq(1).all()


def test_scales_that_no_grid_can_have_are_refused():
    with pytest.raises(InputError, match=r"scale 3 do not fit a grid of 16 × 8 cells.*15 × 6"):
        random_mask(KEYS, (16, 8), 0.5, 3)
    with pytest.raises(RecipeError, match="two patches"):
        random_mask(KEYS, (16, 16), 0.5, 16)
    for scales in ((), (0,), (1, -2)):
        with pytest.raises(RecipeError, match="mask_scales"):
            MaskSchedule(scales=scales)
    assert coarser((16, 8), 4) == (4, 2)


def test_training_gives_every_ratio_a_turn_at_every_scale():
    turns = [in_turn((0.25, 0.5), (1, 2), step) for step in range(5)]
    assert turns == [(0.25, 1), (0.5, 1), (0.25, 2), (0.5, 2), (0.25, 1)]


def test_split_ids_and_enlarge():
    mask = random_mask(KEYS, (3, 4), 0.5)
    visible, hidden = split_ids(mask)
    for sample in range(5):
        assert not mask[sample].flatten()[visible[sample]].any()
        assert mask[sample].flatten()[hidden[sample]].all()
        assert sorted([*visible[sample].tolist(), *hidden[sample].tolist()]) == list(range(12))
    large = enlarge(mask, 2)
    assert large.shape == (5, 1, 6, 8)
    assert torch.equal(large[:, 0, ::2, 1::2], mask)


def test_masks_that_hide_different_numbers_are_no_batch():
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 0, 0] = mask[1, 1, 1] = True
    with pytest.raises(InputError, match="same number of patches in each sample, but these from 1 to 2"):
        split_ids(mask)


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"ratio": 1.0}, {"average": 0}])
def test_a_schedule_without_masks_is_refused_when_it_is_made(options):
    with pytest.raises(RecipeError, match="mask"):
        MaskSchedule(**options)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"\[B, 4, 4\]"):
        check_mask(torch.zeros(1, 3, 4, dtype=torch.bool), (4, 4))
    with pytest.raises(InputError, match="float32"):
        check_mask(torch.zeros(1, 4, 4), (4, 4))
