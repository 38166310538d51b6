"""FAB finds the nearest adversarial image: exactly so for a linear classifier, and in the cube."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog, minimize

from robustmim.attacks.fab import onto_plane
from robustmim.attacks.target import Target
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_attacks_apgd import BALLS, images, network, target_of

NAMES = ("fab", "fab-targeted")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", NAMES)
def test_the_distance_to_a_hyperplane_is_found(name, norm):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 48, generator=generator)
    x = torch.rand(12, 3, 4, 4, generator=generator) * 0.2 + 0.4

    def model(z, drawn=None, progress=0.0):
        return (z - 0.5).flatten(1) @ weight.T

    y = model(x).argmax(1)
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    gaps = model(x).gather(1, y[:, None]) - model(x)
    lengths = torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=order, dim=2)
    nearest = (gaps / lengths).scatter(1, y[:, None], torch.inf).amin(1)
    assert (nearest < 0.45).any()
    ball = Ball(norm=norm, eps=float("inf"))
    found = build("attack", name, steps=30)(Target(scores=model, keys=keys(0, "attack", torch.arange(12))), x, y, ball)
    assert (model(found).argmax(1) != y).all()
    inside = nearest < 0.35  # beyond, the cube is in the way in l1
    ratio = ball.distance(found, x)[inside] / nearest[inside]
    assert (ratio > 0.999).all()
    assert (ratio < 1.02).all()


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(name, ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", name, steps=12, restarts=2, patience=2.0)
    found = attack(target_of(model, x), x, y, ball)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps + 1e-6).all()
    moved = (found != x).flatten(1).any(1)
    assert moved.any()
    assert torch.equal(moved, model(found).argmax(1) != y)
    some = torch.tensor([5, 2])
    torch.testing.assert_close(
        attack(target_of(model, x[some]), x[some], y[some], ball), found[some], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_dropping_saves_queries_and_changes_no_verdict(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    dropping, staying = target_of(model, x), target_of(model, x)
    first = build("attack", "fab-targeted", steps=15)(dropping, x, y, ball)
    second = build("attack", "fab-targeted", steps=15, drop=False)(staying, x, y, ball)
    assert torch.equal(model(first).argmax(1) != y, model(second).argmax(1) != y)
    assert (ball.distance(second, x) <= ball.distance(first, x) + 1e-6).all()
    assert dropping.cost.forward < staying.cost.forward


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_onto_a_plane_in_the_cube_is_the_nearest_point(norm):
    generator = torch.Generator().manual_seed(5)
    for _ in range(15):
        x = (torch.rand(1, 1, 2, 3, generator=generator) * 1.4 - 0.2).clamp(0, 1)
        normal = torch.randn(1, 1, 2, 3, generator=generator)
        w, start = normal.flatten().double().numpy(), x.flatten().double().numpy()
        room = torch.where(normal > 0, 1 - x, x).mul(normal.abs()).sum()
        gap = float(0.6 * room)
        z = onto_plane(x, normal, torch.tensor([gap]), norm)
        assert float((normal * (z - x)).sum()) == pytest.approx(gap, abs=1e-5)
        ours = float(Ball(norm=norm, eps=1.0).distance(z, x))
        if norm == "l2":
            best = (
                minimize(
                    lambda v, start=start: ((v - start) ** 2).sum(),
                    z.flatten().double().numpy() * 0.5 + 0.25,
                    bounds=[(0, 1)] * 6,
                    constraints={"type": "eq", "fun": lambda v, w=w, start=start, gap=gap: w @ (v - start) - gap},
                    options={"ftol": 1e-14, "maxiter": 500},
                ).fun
                ** 0.5
            )
        else:
            # The shift is up minus down; the last variable bounds every coordinate for linf.
            cost = [0.0] * 12 + [1.0] if norm == "linf" else [1.0] * 12 + [0.0]
            rows = [[1.0 if j in (i, i + 6) else 0.0 for j in range(12)] + [-1.0] for i in range(6)]
            best = linprog(
                cost,
                A_ub=rows if norm == "linf" else None,
                b_ub=[0.0] * 6 if norm == "linf" else None,
                A_eq=[[*w, *(-w), 0.0]],
                b_eq=[gap],
                bounds=[(0, 1 - v) for v in start] + [(0, v) for v in start] + [(0, None)],
            ).fun
        assert ours == pytest.approx(best, abs=1e-4)


def test_an_unreachable_plane_ends_in_the_corner_nearest_to_it():
    x, normal = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, -1.0, 2.0, 0.0]).view(1, 1, 2, 2)
    for norm in ("linf", "l2", "l1"):
        z = onto_plane(x, normal, torch.tensor([100.0]), norm).flatten()
        torch.testing.assert_close(z[:3], torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_what_is_nearest_before_a_random_defence_is_not_the_luckiest(ball):
    model, x = network(), images()
    y = model(x).argmax(1)

    def noisy(z, drawn, progress=0.0):
        return model(z + 0.05 * drawn.normal(*z.shape[1:]))

    def missed(found):
        fresh = keys(0, "verdict", torch.arange(len(x)))
        return torch.stack([noisy(found, fresh.fold(draw)).argmax(1) != y for draw in range(40)]).float().mean(0)

    target = Target(scores=noisy, keys=keys(0, "attack", torch.arange(len(x))), draws=4, randomised=True)
    found = build("attack", "fab-targeted", steps=20, drop=False)(target, x, y, ball)
    assert (ball.distance(found, x) <= ball.eps + 1e-6).all()
    best = build("attack", "pgd", steps=40)(target, x, y, ball)
    assert (missed(found) > 0.5).sum() >= (missed(best) > 0.5).sum() - 1 > 2
