"""Auto-PGD and Square against closed forms: a linear classifier falls beyond its margin and nowhere before it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from robustmim.attacks.square import hill_and_hollow
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.unit.test_attacks_apgd import images, network, target_of

L2 = Ball(norm="l2", eps=0.5)


def hyperplane():
    """Two classes, eight images equally far from the boundary between them, and that distance in each norm."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 4, generator=generator)
    x = torch.rand(8, 3, 4, 4, generator=generator) * 0.2 + 0.4
    y = torch.arange(8) % 2
    away = 0.8 * (2 * y - 1) - ((x - 0.5) * weight).sum((1, 2, 3))
    x = x + away.view(-1, 1, 1, 1) * weight / weight.square().sum()

    def model(z, drawn=None, progress=0.0):
        score = ((z - 0.5) * weight).sum((1, 2, 3))
        return torch.stack([-score, score], 1)

    lengths = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}
    return model, x, y, {norm: 0.8 / float(length) for norm, length in lengths.items()}


def falls(attack, model, x, y, ball):
    found = attack(Target(scores=model, keys=keys(0, "attack", content_ids(x))), x, y, ball)
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    return model(found).argmax(1) != y


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-targeted"])
def test_a_linear_classifier_falls_just_beyond_its_margin(name, norm):
    model, x, y, distances = hyperplane()
    attack = build("attack", name, steps=100)
    beyond = 1.02 if norm == "linf" else 1.1
    assert falls(attack, model, x, y, Ball(norm=norm, eps=distances[norm] * beyond)).all()
    assert not falls(attack, model, x, y, Ball(norm=norm, eps=distances[norm] * 0.98)).any()


@pytest.mark.parametrize(("norm", "beyond"), [("linf", 1.02), ("l2", 1.5)])
def test_square_breaks_a_linear_classifier_beyond_its_margin_and_never_before(norm, beyond):
    """In l∞ the search ends in the best corner; in l2 its patterns come only near to the best direction."""
    model, x, y, distances = hyperplane()
    attack = build("attack", "square", queries=3000)
    assert falls(attack, model, x, y, Ball(norm=norm, eps=distances[norm] * beyond)).all()
    assert not falls(attack, model, x, y, Ball(norm=norm, eps=distances[norm] * 0.98)).any()


def test_square_in_l2_stays_in_ball_and_cube_and_does_not_depend_on_the_batch():
    model, x = network(), images()
    y = model(x).argmax(1)
    attack, target = build("attack", "square", queries=120), target_of(model, x)
    found = attack(target, x, y, L2)
    assert target.cost.backward == 0
    assert (model(found).argmax(1) != y).any()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (L2.distance(found, x) <= L2.eps * (1 + 1e-5)).all()
    some = torch.tensor([5, 2])
    torch.testing.assert_close(attack(target_of(model, x[some]), x[some], y[some], L2), found[some], rtol=0, atol=1e-5)


def test_square_in_l2_spends_its_budget_and_never_loses_ground():
    """Inside the cube nothing is clipped: every candidate is as long as the budget."""
    model, x = network(), images() * 0 + 0.5
    y, told = model(x).argmax(1), []
    build("attack", "square", queries=60)(target_of(model, x, drop=False), x, y, L2, callback=told.append)
    for before, after in pairwise(told):
        assert (after["value"] >= before["value"]).all()
        torch.testing.assert_close(L2.distance(after["x"], x), torch.full((len(x),), 0.5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_finds_what_a_random_defence_misses_on_average(norm):
    model, x = network(), images()
    y = model(x).argmax(1)

    def noisy(z, drawn, progress):
        return model(z + 0.1 * drawn.normal(*z.shape[1:]))

    target = Target(scores=noisy, keys=keys(0, "attack", content_ids(x)), draws=4, randomised=True)
    ball = Ball(norm=norm, eps={"linf": 0.12, "l2": 1.0}[norm])
    found = build("attack", "square", queries=150)(target, x, y, ball)
    fresh = keys(7, "verdict", content_ids(x))

    def missed(z):
        return torch.stack([noisy(z, fresh.fold(k), 0.0).argmax(1) != y for k in range(20)]).float().mean()

    assert missed(found) > missed(x) + 0.2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (1, 1, 1, 7), (1, 2, 4, 9)])
def test_square_takes_small_and_oblong_images(shape, norm):
    x = torch.full(shape, 0.5)
    weight = torch.randn(2, x[0].numel(), generator=torch.Generator().manual_seed(2))

    def model(z, drawn=None, progress=0.0):
        return (z - 0.5).flatten(1) @ weight.T

    ball = Ball(norm=norm, eps=float("inf"))
    assert falls(build("attack", "square", queries=200), model, x, model(x).argmax(1), ball).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 7), (4, 1)])
def test_the_pattern_of_l2_squares_is_a_hill_beside_its_negative(shape):
    pattern = hill_and_hollow(*shape)
    assert pattern.shape == shape
    assert pattern.norm() == pytest.approx(1)
    if shape[0] > 1:
        assert (pattern[: shape[0] // 2] > 0).all()
        assert (pattern[shape[0] // 2 :] < 0).all()


def test_impossible_options_of_square_are_refused():
    for options in ({"queries": 0}, {"initial": 0.0}, {"initial": 1.5}):
        with pytest.raises(RecipeError):
            build("attack", "square", **options)
