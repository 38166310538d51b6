"""SPSA: its slope is that of a linear function on average, and it breaks what has no gradient."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.spsa import SPSA
from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_attacks_apgd import images, network, target_of

BALLS = (Ball(norm="linf", eps=0.08), Ball(norm="l2", eps=0.5))


def test_the_slope_of_a_linear_function_is_found_on_average():
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    x = torch.full((3, 3, 2, 2), 0.5)

    def scores(z, drawn, progress):
        return z.flatten(1) @ weight.T

    target = Target(scores=scores, keys=keys(0, "attack", torch.arange(3)))
    slope = SPSA(directions=600)._slope(target, x, torch.zeros(3, dtype=torch.long), 1, 0.0).flatten(1)
    exact = (weight[1] - weight[0]).expand(3, 12)
    assert torch.nn.functional.cosine_similarity(slope, exact).min() > 0.97
    assert not torch.equal(slope[0], slope[1])  # each sample has draws of its own


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", "spsa", steps=10, directions=16)
    found = attack(target_of(model, x), x, y, ball)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps + 1e-6).all()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-3)


def test_it_needs_no_gradient():
    model, x = network(), images()
    y = model(x).argmax(1)

    def cut_off(z, drawn=None, progress=0.0):
        return model((z.detach() * 255).round() / 255)

    target = Target(scores=cut_off, keys=keys(0, "attack", torch.arange(len(x))))
    found = build("attack", "spsa", steps=15, directions=32)(target, x, y, BALLS[0])
    best = build("attack", "pgd", steps=20)(target_of(model, x), x, y, BALLS[0])
    assert (cut_off(found).argmax(1) != y).sum() >= (model(best).argmax(1) != y).sum() - 1 > 0


def test_one_answer_that_is_no_number_does_not_take_the_image_with_it():
    model, x = network(), images()
    y = model(x).argmax(1)
    asked = []

    def flaky(z, drawn=None, progress=0.0):
        asked.append(len(z))
        logits = model(z)
        if len(asked) == 5:
            logits[1] = torch.nan
        return logits

    target = Target(scores=flaky, keys=keys(0, "attack", torch.arange(len(x))))
    found = build("attack", "spsa", steps=5, directions=8)(target, x, y, BALLS[0])
    assert found.isfinite().all()
    assert (found != x).flatten(1).any(1).all()


@pytest.mark.parametrize("options", [{"steps": 0}, {"directions": 0}, {"step_size": 0.0}, {"reach": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(RecipeError, match="SPSA"):
        build("attack", "spsa", **options)
