"""Square keeps to ball and cube, asks for no gradient, and a sample's result is its own."""

from __future__ import annotations

import pytest
import torch

from robustmim.geometry import Ball
from robustmim.registry import build
from tests.unit.test_attacks_apgd import images, network, target_of


@pytest.mark.parametrize("eps", [0.02, 0.1])
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(eps):
    model, x = network(), images()
    y = model(x).argmax(1)
    ball, attack = Ball(norm="linf", eps=eps), build("attack", "square", queries=80)
    target = target_of(model, x)
    found = attack(target, x, y, ball)
    assert target.cost.backward == 0
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= eps + 1e-6).all()
    some = torch.tensor([5, 2])
    torch.testing.assert_close(
        attack(target_of(model, x[some]), x[some], y[some], ball), found[some], rtol=0, atol=1e-6
    )


def test_dropping_saves_queries_and_changes_no_verdict():
    model, x = network(), images()
    y = model(x).argmax(1)
    ball, attack = Ball(norm="linf", eps=0.06), build("attack", "square", queries=80)
    dropping, staying = target_of(model, x), target_of(model, x, drop=False)
    first, second = attack(dropping, x, y, ball), attack(staying, x, y, ball)
    assert (model(first).argmax(1) != y).any()
    assert torch.equal(model(first).argmax(1) != y, model(second).argmax(1) != y)
    assert dropping.cost.forward < staying.cost.forward
