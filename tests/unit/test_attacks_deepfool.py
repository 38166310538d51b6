"""DeepFool is exact for a linear classifier, and goes nowhere it must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.unit.linear import Linear, lucky
from tests.unit.test_attacks_apgd import BALLS, images, network, target_of

NORMS = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_to_a_hyperplane_is_found_in_one_step(norm):
    linear, told = Linear(), []
    attack = build("attack", "deepfool", overshoot=0.01, targets=3)
    torch.testing.assert_close(linear.ratios(attack, norm), torch.full((12,), 1.01), rtol=1e-3, atol=0)
    attack(linear.target(), linear.x, linear.y, Ball(norm=norm, eps=1.0), callback=told.append)
    assert len(told) == 2
    assert told[0]["gradient"].shape == linear.x.shape


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_classifier_falls_beyond_its_distance_and_never_before(norm):
    assert Linear().falls_beyond_its_distance_and_never_before(build("attack", "deepfool"), norm, 1.021)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", "deepfool", steps=10)
    found = attack(target_of(model, x), x, y, ball)
    assert (model(found).argmax(1) != y).any()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5)).all()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-4)


def test_every_class_costs_a_gradient_for_every_draw():
    linear = Linear()
    costs = []
    for draws in (1, 3):
        target = linear.target(draws=draws, drop=False)
        build("attack", "deepfool", targets=2)(target, linear.x, linear.y, Ball(norm="l2", eps=1.0))
        costs.append((target.cost.forward, target.cost.backward))
    assert costs[0] == (12 * (1 + 2 * 2), 12 * 2 * 2)  # the ranking, one step, and the look at where it ended
    assert costs[1] == (3 * costs[0][0], 3 * costs[0][1])


def test_a_lucky_draw_is_no_break():
    x, told = images(), []
    target = Target(scores=lucky, keys=keys(0, "attack", content_ids(x)), randomised=True)
    attack = build("attack", "deepfool", steps=10, targets=1)
    attack(target, x, torch.zeros(8, dtype=torch.int64), Ball(norm="l2", eps=1.0), callback=told.append)
    assert [len(note["samples"]) for note in told] == [8] * 10


def test_a_random_defence_is_followed_until_it_misses():
    model, x = network(), images()
    y = model(x).argmax(1)

    def noisy(z, drawn, progress):
        return model(z + 0.1 * drawn.normal(*z.shape[1:]))

    target = Target(scores=noisy, keys=keys(0, "attack", content_ids(x)), draws=4, randomised=True)
    found = build("attack", "deepfool", steps=30)(target, x, y, Ball(norm="l2", eps=3.0))
    fresh = keys(7, "verdict", content_ids(x))
    missed = torch.stack([noisy(found, fresh.fold(k), 0.0).argmax(1) != y for k in range(20)]).float().mean(0)
    assert (missed > 0.8).all()


def test_foolbox_finds_the_same_distances():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 5)).eval().requires_grad_(False)
    x = torch.rand(16, 3, 4, 4) * 0.4 + 0.3
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}
    for norm, attack in theirs.items():
        raw, _, _ = attack(overshoot=0.02, loss="logits", candidates=5)(wrapped, x, y, epsilons=None)
        ball = Ball(norm=norm, eps=float("inf"))
        found = build("attack", "deepfool", overshoot=0.02, targets=4)(target_of(model, x), x, y, ball)
        assert (model(found).argmax(1) != y).all()
        torch.testing.assert_close(ball.distance(found, x), ball.distance(raw, x), rtol=0.03, atol=1e-4)


@pytest.mark.parametrize("options", [{"steps": 0}, {"targets": 0}, {"overshoot": -0.1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(RecipeError):
        build("attack", "deepfool", **options)
