"""RayS comes near the l∞ distance to a hyperplane by decisions alone, and is not led astray by luck."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from robustmim.attacks.rays import blocks
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.unit.linear import Linear, lucky
from tests.unit.test_attacks_apgd import images, network, target_of

BALL = Ball(norm="linf", eps=0.15)


def test_blocks_halve_and_come_round_again():
    first = list(islice(blocks(6), 1 + 1 + 2 + 4 + 6 + 6))
    assert [part.stop - part.start for part in first[:4]] == [0, 6, 3, 3]
    for begin, count in ((2, 2), (4, 4), (8, 6), (14, 6)):
        assert [i for part in first[begin : begin + count] for i in range(part.start, part.stop)] == list(range(6))


def test_the_distance_to_a_hyperplane_is_approached_from_above():
    """The nearest corner's ray is the signs of the weights: with single values flipped greedily, it is found."""
    linear = Linear()
    ratios = linear.ratios(build("attack", "rays", queries=700), "linf")
    assert ratios.min() > 0.999
    assert ratios.max() < 1.1


def test_a_linear_classifier_falls_beyond_its_distance_and_never_before():
    assert Linear().falls_beyond_its_distance_and_never_before(build("attack", "rays", queries=500), "linf", 1.2)


def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch():
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", "rays", queries=150)
    found = attack(target_of(model, x), x, y, BALL)
    assert (model(found).argmax(1) != y).any()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (BALL.distance(found, x) <= BALL.eps * (1 + 1e-5)).all()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], BALL)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-3)


def test_no_gradient_is_asked_for_and_queries_are_limited():
    model, x = network(), images()
    target = target_of(model, x, drop=False)
    build("attack", "rays", queries=50)(target, x, model(x).argmax(1), Ball(norm="linf", eps=0.01))
    assert target.cost.backward == 0
    assert target.cost.forward <= 8 * (50 + 12)  # a bisection that has begun is finished


def test_a_lucky_draw_is_no_break():
    x = images()
    target = Target(scores=lucky, keys=keys(0, "attack", content_ids(x)), draws=2, randomised=True)
    attack = build("attack", "rays", queries=60)
    attack(target, x, torch.zeros(8, dtype=torch.int64), Ball(norm="linf", eps=1.0))
    assert target.cost.forward >= 2 * 8 * 60  # nobody is left alone


def test_a_random_defence_misses_what_is_found():
    model, x = network(), images()
    y = model(x).argmax(1)

    def noisy(z, drawn, progress):
        return model(z + 0.05 * drawn.normal(*z.shape[1:]))

    target = Target(scores=noisy, keys=keys(0, "attack", content_ids(x)), draws=2, randomised=True)
    found = build("attack", "rays", queries=200)(target, x, y, BALL)
    fresh = keys(7, "verdict", content_ids(x))
    missed = torch.stack([noisy(found, fresh.fold(k), 0.0).argmax(1) != y for k in range(20)]).float().mean(0)
    assert (missed > 0.5).sum() >= 3


def test_impossible_options_are_refused():
    with pytest.raises(RecipeError):
        build("attack", "rays", queries=0)
