"""Auto-PGD keeps its promises in every norm, for any batch, and with random defences."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from robustmim.attacks.apgd import checkpoints
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball, project_l1_cube
from robustmim.registry import build
from robustmim.rng import content_ids, keys

NAMES = ("apgd-ce", "apgd-dlr", "apgd-targeted")
BALLS = (Ball(norm="linf", eps=0.08), Ball(norm="l2", eps=0.5), Ball(norm="l1", eps=2.0))


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, classes))
    return nn.Sequential(*layers).eval().requires_grad_(False)


def images(n: int = 8) -> torch.Tensor:
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return (2 * x - 0.5).clamp(0, 1)  # many pixels are black or white


def target_of(model, x, **options) -> Target:
    return Target(scores=lambda z, drawn, progress: model(z), keys=keys(0, "attack", content_ids(x)), **options)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(name, ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", name, steps=20, restarts=2, patience=2.0)
    found = attack(target_of(model, x), x, y, ball)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-5)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dropping_the_fallen_saves_queries_and_changes_no_verdict(name, ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    dropping, staying = target_of(model, x), target_of(model, x)
    first = model(build("attack", name, steps=20)(dropping, x, y, ball)).argmax(1) != y
    second = model(build("attack", name, steps=20, drop=False)(staying, x, y, ball)).argmax(1) != y
    assert first.any()
    assert torch.equal(first, second)
    assert dropping.cost.forward < staying.cost.forward


@pytest.mark.parametrize("classes", [2, 3])
def test_with_few_classes_the_targeted_attack_climbs_another_loss(classes):
    model, x = network(classes), images()
    y = model(x).argmax(1)
    ball = Ball(norm="l2", eps=3.0)
    found = build("attack", "apgd-targeted", steps=30)(target_of(model, x), x, y, ball)
    assert (model(found).argmax(1) != y).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_random_defence_is_climbed_on_average(name):
    model, x = network(), images()
    y = model(x).argmax(1)

    def noisy(z, drawn, progress):
        return model(z + 0.1 * drawn.normal(*z.shape[1:]))

    drawn = keys(0, "attack", content_ids(x))
    target = Target(scores=noisy, keys=drawn, draws=4, randomised=True)
    ball = Ball(norm="l2", eps=0.8)
    found = build("attack", name, steps=15)(target, x, y, ball)
    fresh = keys(7, "verdict", content_ids(x))

    def missed(z):
        return torch.stack([noisy(z, fresh.fold(k), 0.0).argmax(1) != y for k in range(20)]).float().mean()

    assert missed(found) > missed(x) + 0.2


def test_an_infinite_budget_is_the_cube():
    model, x = network(), images()
    y = model(x).argmax(1)
    for norm in ("linf", "l2", "l1"):
        found = build("attack", "apgd-ce", steps=20)(target_of(model, x), x, y, Ball(norm=norm, eps=float("inf")))
        assert (model(found).argmax(1) != y).all()


def test_the_callback_hears_of_the_samples_at_work():
    model, x = network(), images()
    y = model(x).argmax(1)
    told = []
    build("attack", "apgd-ce", steps=5)(target_of(model, x), x, y, BALLS[0], callback=told.append)
    assert told[0]["samples"].tolist() == list(range(8))
    assert all(torch.equal(note["center"], x[note["samples"]]) for note in told)


def test_step_sizes_are_reconsidered_where_the_paper_says():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_projection_onto_l1_ball_and_cube_is_the_nearest_point():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        center = (torch.rand(1, 1, 2, 3, generator=generator) * 1.6 - 0.3).clamp(0, 1)
        point = center + 2 * (torch.rand(1, 1, 2, 3, generator=generator) - 0.5)
        start, goal = center.flatten().double().numpy(), point.flatten().double().numpy()
        best = minimize(
            lambda z, start=start, goal=goal: ((start + z[:6] - z[6:] - goal) ** 2).sum(),
            [0.01] * 12,
            bounds=[(0, 1 - value) for value in start] + [(0, value) for value in start],
            constraints={"type": "ineq", "fun": lambda z: 0.6 - z.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = torch.tensor(start + best.x[:6] - best.x[6:], dtype=torch.float32)
        torch.testing.assert_close(project_l1_cube(point, center, 0.6).flatten(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(RecipeError):
        build("attack", "apgd-ce", **options)
    with pytest.raises(RecipeError):
        build("attack", "apgd-targeted", targets=0)
