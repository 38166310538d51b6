"""Randomness is a pure function of its keys, and random enough."""

from __future__ import annotations

import math

import torch
from scipy import stats

from robustmim.rng import Keys, content_ids, keys, permutation


def test_a_sample_draws_the_same_alone_and_in_any_batch():
    ids = torch.tensor([7, 3, 900, 3])
    drawn = keys(0, "mask", ids, 5).uniform(4, 4)
    for place, sample in enumerate(ids):
        assert torch.equal(keys(0, "mask", sample[None], 5).uniform(4, 4)[0], drawn[place])
    assert torch.equal(drawn[1], drawn[3])


def test_seed_purpose_id_and_step_each_matter():
    ids = torch.tensor([1])
    reference = keys(0, "mask", ids, 0).bits(8)
    for other in (
        keys(1, "mask", ids, 0),
        keys(0, "noise", ids, 0),
        keys(0, "mask", ids + 1, 0),
        keys(0, "mask", ids, 1),
    ):
        assert not (other.bits(8) == reference).any()


def test_order_of_folding_matters():
    base = keys(0, "x", torch.arange(3))
    assert not torch.equal(base.fold("a", 1).values, base.fold(1, "a").values)


def test_draws_take_nothing_away_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    base = keys(0, "x", torch.arange(3))
    assert torch.equal(base.normal(5), base.normal(5))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_known_values_hold_on_every_platform():
    # SplitMix64 from state 0 gives this first output (Vigna's reference implementation).
    assert Keys(torch.tensor([0])).bits(1).item() == 0xE220A8397B1DCDAF - 2**64


def test_uniform_is_uniform():
    drawn = keys(3, "u", torch.arange(2000)).uniform(25).flatten()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-3


def test_normal_is_normal_and_uncorrelated_over_samples():
    drawn = keys(3, "n", torch.arange(4000)).normal(10)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(drawn.T) - torch.eye(10)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


def test_content_ids_tell_images_apart_but_not_their_batch():
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[4] = x[1]
    ids = content_ids(x)
    assert torch.equal(content_ids(x[1:3]), ids[1:3])
    assert ids[4] == ids[1]
    x[4, 0, 0, 0] += 1e-7
    assert content_ids(x)[4] != ids[1]
    assert content_ids(x[:1].flip(3)) != ids[0]


def test_permutation_visits_each_once_and_changes_with_the_epoch():
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(0, 0, 1000))
