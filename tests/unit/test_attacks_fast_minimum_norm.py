"""FMN finds the nearest adversarial image: that of a linear classifier is known, and FAB's is as near on a network."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_attacks_apgd import BALLS, images, network, target_of


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_distance_to_a_hyperplane_is_found(norm):
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
    inside = nearest < 0.35  # beyond, the cube is in the way in l1
    assert inside.any()
    ball = Ball(norm=norm, eps=float("inf"))
    found = build("attack", "fast-minimum-norm", steps=300)(
        Target(scores=model, keys=keys(0, "attack", torch.arange(12))), x, y, ball
    )
    assert (model(found).argmax(1) != y).all()
    ratio = ball.distance(found, x)[inside] / nearest[inside]
    assert (ratio > 0.999).all()
    assert (ratio < 1.05).all()


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", "fast-minimum-norm", steps=40)
    found = attack(target_of(model, x), x, y, ball)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps + 1e-6).all()
    assert (model(found).argmax(1) != y).any()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_comes_as_near_as_fab(norm):
    model, x = network(), images()
    y = model(x).argmax(1)
    ball = Ball(norm=norm, eps=float("inf"))
    ours = build("attack", "fast-minimum-norm", steps=200, drop=False)(target_of(model, x), x, y, ball)
    theirs = build("attack", "fab-targeted", steps=50, drop=False)(target_of(model, x), x, y, ball)
    assert (model(ours).argmax(1) != y).all()
    assert (ball.distance(ours, x) / ball.distance(theirs, x)).median() < 1.05


def test_what_is_wrong_as_it_is_has_distance_zero_and_dropping_saves_queries():
    model, x = network(), images()
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    dropping, staying = target_of(model, x), target_of(model, x)
    first = build("attack", "fast-minimum-norm", steps=30)(dropping, x, y, BALLS[0])
    build("attack", "fast-minimum-norm", steps=30, drop=False)(staying, x, y, BALLS[0])
    assert torch.equal(first[0], x[0])
    assert dropping.cost.forward < staying.cost.forward


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_a_random_defence_is_broken_for_most_draws(ball):
    """A search that turns back where half of the draws miss stays where an image is never sure to be broken."""
    model, x = network(), images()
    y = model(x).argmax(1)
    drawn = keys(0, "attack", torch.arange(len(x)))

    def noisy(z, drawn, progress=0.0):
        return model(z + 0.05 * drawn.normal(*z.shape[1:]))

    def missed(found):
        fresh = keys(0, "verdict", torch.arange(len(x)))
        return torch.stack([noisy(found, fresh.fold(draw)).argmax(1) != y for draw in range(40)]).float().mean(0)

    target = Target(scores=noisy, keys=drawn, draws=4, randomised=True)
    found = build("attack", "fast-minimum-norm", steps=40, drop=False)(target, x, y, ball)
    best = build("attack", "pgd", steps=40)(target, x, y, ball)
    assert (missed(found) > 0.5).sum() >= (missed(best) > 0.5).sum() - 1 > 2


@pytest.mark.parametrize("options", [{"steps": 0}, {"step_size": 0.0}, {"change": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(RecipeError, match="FMN"):
        build("attack", "fast-minimum-norm", **options)
