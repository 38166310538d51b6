"""Projection, random points and steepest steps keep their promises for any images, norm and radius."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.rng import keys

NORMS = ("linf", "l2", "l1")
radii = st.floats(0.001, 3.0)
seeds = st.integers(0, 2**31)


def images(seed: int, n: int = 3, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 4, 4, generator=generator) * spread


@settings(max_examples=40, deadline=None)
@given(norm=st.sampled_from(NORMS), eps=radii, seed=seeds)
def test_projection_lands_in_the_ball_and_in_the_cube_and_stays(norm, eps, seed):
    ball, center = Ball(norm=norm, eps=eps), images(seed)
    far = center + 4 * (images(seed + 1) - 0.5)
    near = ball.project(far, center)
    assert near.min() >= 0
    assert near.max() <= 1
    assert (ball.distance(near, center) <= eps * (1 + 1e-4) + 1e-6).all()
    torch.testing.assert_close(ball.project(near, center), near, atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(norm=st.sampled_from(NORMS), eps=radii, seed=seeds)
def test_random_points_are_in_the_ball_and_depend_on_their_key_alone(norm, eps, seed):
    ball, center = Ball(norm=norm, eps=eps), images(seed)
    drawn = keys(seed, "start", torch.arange(3))
    start = ball.random(center, drawn)
    assert (ball.distance(start, center) <= eps * (1 + 1e-4) + 1e-6).all()
    assert start.min() >= 0
    assert start.max() <= 1
    assert torch.equal(ball.random(center[1:2], drawn[1:2])[0], start[1])


@settings(max_examples=30, deadline=None)
@given(norm=st.sampled_from(NORMS), seed=seeds)
def test_steepest_step_has_unit_length_and_climbs(norm, seed):
    ball, gradient = Ball(norm=norm, eps=1.0), images(seed) - 0.5
    step = ball.steepest(gradient)
    length = ball.distance(step, torch.zeros_like(step))
    torch.testing.assert_close(length, torch.ones(3))
    assert ((step * gradient).sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steepest_step_is_the_best_of_its_length(norm):
    ball, gradient = Ball(norm=norm, eps=1.0), images(0, 1) - 0.5
    best = (ball.steepest(gradient) * gradient).sum()
    for seed in range(200):
        other = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed))
        other = other / ball.distance(other, torch.zeros_like(other)).view(-1, 1, 1, 1)
        assert (other * gradient).sum() <= best + 1e-5


def test_l1_projection_is_the_nearest_point():
    point = np.array([0.36, -0.16, 0.1, 0.02])
    found = minimize(
        lambda z: ((z[:4] - z[4:] - point) ** 2).sum(),
        np.full(8, 0.03),
        bounds=[(0, None)] * 8,
        constraints={"type": "ineq", "fun": lambda z: 0.28 - z.sum()},
        options={"ftol": 1e-14},
    )
    expected = torch.tensor(found.x[:4] - found.x[4:], dtype=torch.float32)
    center = torch.full((1, 1, 2, 2), 0.5)
    ours = Ball(norm="l1", eps=0.28).project(center + torch.tensor(point).float().view(1, 1, 2, 2), center) - center
    torch.testing.assert_close(ours.flatten(), expected, atol=1e-4, rtol=0)


def test_a_ball_of_infinite_radius_is_the_cube():
    center = images(0)
    far = center + 10 * (images(1) - 0.5)
    for norm in NORMS:
        torch.testing.assert_close(Ball(norm=norm, eps=float("inf")).project(far, center), far.clamp(0, 1))


@pytest.mark.parametrize(("norm", "eps"), [("linf", -0.1), ("l2", float("nan"))])
def test_impossible_balls_are_refused(norm, eps):
    with pytest.raises(RecipeError):
        Ball(norm=norm, eps=eps)
