"""The loop on functions whose optimum is known."""

from __future__ import annotations

import torch

from robustmim.descent import projected_descent
from robustmim.geometry import Ball


def quadratic(goal):
    return lambda x, step: (x - goal).square().sum((1, 2, 3))


def test_descends_to_the_goal_and_climbs_to_the_corner():
    x, goal = torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2, 2), 0.53)
    ball = Ball(norm="linf", eps=0.1)
    down = projected_descent(quadratic(goal), x, ball, steps=50, step_size=lambda s: 0.01 * 0.9**s, maximise=False)
    torch.testing.assert_close(down.last, goal, atol=1e-3, rtol=0)
    up = projected_descent(quadratic(goal), x, ball, steps=50, step_size=lambda s: 0.01, maximise=True)
    torch.testing.assert_close(up.last, x - 0.1)


def test_each_sample_goes_its_own_way():
    generator = torch.Generator().manual_seed(0)
    x, goal = torch.rand(4, 3, 5, 5, generator=generator), torch.rand(4, 3, 5, 5, generator=generator)
    for norm in ("linf", "l2", "l1"):
        ball = Ball(norm=norm, eps=0.3)
        together = projected_descent(quadratic(goal), x, ball, steps=7, step_size=lambda s: 0.1, maximise=False).last
        for i in range(4):
            alone = projected_descent(
                quadratic(goal[i : i + 1]), x[i : i + 1], ball, steps=7, step_size=lambda s: 0.1, maximise=False
            ).last
            assert torch.equal(alone[0], together[i])


def test_best_and_mean_are_what_they_say():
    x, goal = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.52)
    for output in ("best", "mean", "last"):
        seen = []
        result = projected_descent(
            quadratic(goal),
            x,
            Ball(eps=0.1),
            steps=6,
            step_size=lambda s: 0.015,
            maximise=False,
            output=output,
            callback=lambda state, seen=seen: seen.append(state["x"].clone()),
        )
        if output == "best":
            assert (result.output - goal).square().item() == min((point - goal).square().item() for point in seen)
        elif output == "mean":
            torch.testing.assert_close(result.output, torch.stack([*seen, result.last]).mean(0))
        else:
            assert torch.equal(result.output, result.last)


def test_momentum_crosses_a_ripple_that_stops_plain_steps():
    def ripple(x, step):
        return ((x - 0.9).square() + 0.05 * torch.cos(60 * x)).sum((1, 2, 3))

    x = torch.full((1, 1, 1, 1), 0.1)
    ball = Ball(norm="l2", eps=1.0)

    def best(momentum):
        return projected_descent(
            ripple, x, ball, steps=60, step_size=lambda s: 0.02, maximise=False, momentum=momentum, output="best"
        ).output

    assert ripple(best(0.9), 0) < ripple(best(0.0), 0)


def test_a_start_outside_is_kept_inside_after_a_step_and_the_input_is_untouched():
    x = torch.full((1, 1, 2, 2), 0.5)
    kept = x.clone()
    result = projected_descent(
        quadratic(x), x, Ball(eps=0.1), steps=1, step_size=lambda s: 0.01, maximise=True, start=x + 0.05
    )
    assert torch.equal(x, kept)
    assert not x.requires_grad
    torch.testing.assert_close(result.last, x + 0.06)
