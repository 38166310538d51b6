"""ScoreOpt against a Gaussian whose score is known, and against torch's Adam."""

from __future__ import annotations

import pytest
import torch

from robustmim.config import BaselineConfig, GradientConfig, PurifyRecipe
from robustmim.errors import InputError, RecipeError
from robustmim.models.edm import to_signed, to_unit
from robustmim.purify.baselines.scoreopt import ScoreOpt
from robustmim.purify.load import make_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys
from tests.unit.gaussian import (
    DEVIATION,
    MEAN,
    CurvedDenoiser,
    GaussianDenoiser,
    gaussian_images,
    slope_and_difference,
)

DRAWN = keys(0, "purify", torch.arange(5))
EXACT = GradientConfig(mode="exact")
FORMS = pytest.mark.parametrize("form", ["image", "noised"])
x = gaussian_images(5)


@FORMS
def test_it_is_adam_on_the_objective_of_the_paper(form):
    """For N(m, s²), D(x + σ n) − x = (σ² (m − x) + s² σ n) / (s² + σ²), and the noise seen in z is σ (z − m) / (s² + σ²)."""
    sigma = 0.3
    purifier = ScoreOpt(model=GaussianDenoiser(), form=form, steps=7, learning_rate=0.05, sigma=sigma, spread=0.0)
    total, start = DEVIATION**2 + sigma**2, to_signed(x)
    added = DRAWN.fold("noise").normal(3, 4, 4)
    point = (start if form == "image" else start + sigma * added).clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=0.05)
    for step in range(7):
        adam.zero_grad()
        if form == "image":
            noise = DRAWN.fold("step", step).fold("noise").normal(3, 4, 4)
            wrong = (sigma**2 * (MEAN - point) + DEVIATION**2 * sigma * noise) / total
        else:
            wrong = sigma * (point - MEAN) / total - added
        wrong.square().mean((1, 2, 3)).sum().backward()
        adam.step()
    expected = point.detach()
    if form == "noised":
        expected = (DEVIATION**2 * expected + sigma**2 * MEAN) / total
    torch.testing.assert_close(purifier(x, keys=DRAWN), to_unit(expected).clamp(0, 1), atol=1e-4, rtol=0)


def test_optimised_images_come_nearer_to_the_likely_ones():
    far = (x + 0.2).clamp(0, 1)
    purifier = ScoreOpt(model=GaussianDenoiser(), steps=40, learning_rate=0.02)
    before, after = ((to_signed(images) - MEAN).square().mean() for images in (far, purifier(far, keys=DRAWN)))
    assert after < 0.5 * before


@FORMS
def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(form):
    purifier = ScoreOpt(model=CurvedDenoiser(), form=form, steps=3)
    assert isinstance(purifier, DifferentiablePurifier)
    assert purifier.traits.randomised and purifier.traits.optimises_at_test_time
    states = []
    together = purifier(x, keys=DRAWN, callback=states.append)
    assert together.min() >= 0 and together.max() <= 1
    assert [state["step"] for state in states] == [0, 1, 2] and states[0]["value"].shape == (5,)
    for i in range(5):
        assert torch.equal(purifier(x[i : i + 1], keys=DRAWN[i : i + 1])[0], together[i])
    assert not torch.equal(purifier(x, keys=keys(1, "purify", torch.arange(5))), together)
    assert purifier(x[:0], keys=DRAWN[:0]).shape == (0, 3, 4, 4)


@FORMS
def test_gradient_equals_finite_differences(form):
    purifier = ScoreOpt(model=CurvedDenoiser().double(), form=form, steps=4, learning_rate=0.03)
    inside = x.clamp(0.35, 0.65).double()
    purified, slope, difference = slope_and_difference(purifier, inside, DRAWN, EXACT)
    torch.testing.assert_close(purified, purifier(inside, keys=DRAWN))
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=0)


@FORMS
def test_an_objective_without_slope_moves_nothing_and_has_a_gradient(form):
    class Echo:
        classes = 0

        def denoise(self, noised, sigma, *, labels=None):
            return (
                noised * 1.0 if form == "image" else noised - DRAWN.fold("noise").normal(3, 4, 4)[: len(noised)] * 0.25
            )

    leaf = x[:4].clone().requires_grad_()
    purifier = ScoreOpt(model=Echo(), form=form, steps=2)
    purified = purifier.differentiable(leaf, keys=DRAWN[:4], gradient=EXACT)
    (slope,) = torch.autograd.grad(purified.sum(), leaf)
    torch.testing.assert_close(purified, leaf, atol=1e-5, rtol=0)
    inside = (leaf > 0) & (leaf < 1)
    torch.testing.assert_close(slope[inside], torch.ones_like(slope[inside]))


def test_a_recipe_and_mistakes(monkeypatch):
    recipe = PurifyRecipe(
        baseline=BaselineConfig(name="scoreopt", model="unet", options={"form": "noised", "steps": 2})
    )
    monkeypatch.setattr("robustmim.purify.load.load_model", lambda name, device: CurvedDenoiser())
    assert make_purifier(recipe)(x, keys=DRAWN).shape == x.shape
    with pytest.raises(RecipeError, match="at least one step"):
        ScoreOpt(model=GaussianDenoiser(), steps=0)
    with pytest.raises(RecipeError, match="above 0"):
        ScoreOpt(model=GaussianDenoiser(), sigma=0.1)
    with pytest.raises(InputError, match="255"):
        ScoreOpt(model=GaussianDenoiser())(x * 255, keys=DRAWN)
