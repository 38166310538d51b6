"""COUP against a Gaussian whose score is known and a classifier whose confidence is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustmim.config import BaselineConfig, DiffusionConfig, GradientConfig, PurifyRecipe
from robustmim.errors import RecipeError
from robustmim.models.edm import noise_grid, to_signed, to_unit
from robustmim.models.variance_preserving import time_of_level
from robustmim.purify.baselines.coup import COUP
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.load import load_purifier, make_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys
from tests.unit.gaussian import (
    DEVIATION,
    MEAN,
    CurvedDenoiser,
    GaussianDenoiser,
    TwoClasses,
    gaussian_images,
    slope_and_difference,
)

DRAWN = keys(0, "purify", torch.arange(5))
EXACT = GradientConfig(mode="exact")
x = gaussian_images(5)


def test_a_step_is_that_of_the_guided_sde():
    """β (x / 2 + score + λ slope) Δt + √(β Δt) z, in the variables of DDPM; then the estimate of the last level."""
    guidance, slope = 2.0, 0.3
    purifier = COUP(model=GaussianDenoiser(), classifier=TwoClasses(slope), guidance=guidance, steps=2)
    levels = noise_grid(2, 0.34, 0.001, spacing="vp")
    times = [time_of_level(level) for level in levels[:2]]
    kept = [1 / (1 + level**2) for level in levels[:2]]  # ᾱ
    scaled = math.sqrt(kept[0]) * (to_signed(x) + 0.34 * DRAWN.fold("diffuse").normal(3, 4, 4))
    score = (math.sqrt(kept[0]) * MEAN - scaled) / (kept[0] * DEVIATION**2 + 1 - kept[0])
    bright = slope * (scaled / 2).sum((1, 2, 3))  # the classifier's logit: its input is (x_t + 1) / 2
    wrong = torch.sigmoid(-bright.abs())  # d log p / d logit of the class that wins is 1 − p
    towards = (bright.sign() * wrong * slope / 2).view(-1, 1, 1, 1)
    span, beta = times[0] - times[1], 0.1 + 19.9 * times[0]
    drift = beta * (scaled / 2 + score + guidance * towards)
    z = DRAWN.fold("reverse", 0).normal(3, 4, 4)
    reached = (scaled + span * drift + math.sqrt(beta * span) * z) / math.sqrt(kept[1])
    # At the last level, σ = 0.001, the estimate is the image to within σ².
    torch.testing.assert_close(purifier(x, keys=DRAWN), to_unit(reached).clamp(0, 1), atol=1e-4, rtol=0)


def test_no_guidance_is_diffusion_and_more_of_it_more_confidence():
    config = DiffusionConfig(sigma=0.34, steps=4, final_sigma=0.001, solver="vp-sde", spacing="vp")
    plain = DiffusionPurifier(GaussianDenoiser(), config)(x, keys=DRAWN)
    found = {}
    for guidance in (0.0, 1.0, 4.0):
        for through in ("noised", "estimate"):
            classifier = TwoClasses(0.5)
            purifier = COUP(
                model=GaussianDenoiser(), classifier=classifier, guidance=guidance, steps=4, through=through
            )
            purified = purifier(x, keys=DRAWN)
            assert purified.min() >= 0 and purified.max() <= 1
            found[guidance, through] = classifier(purified).log_softmax(1).amax(1).mean().item()
            if guidance == 0:
                torch.testing.assert_close(purified, plain)
    for through in ("noised", "estimate"):
        assert found[0.0, through] < found[1.0, through] < found[4.0, through]


@pytest.mark.parametrize(("through", "graphs"), [("noised", {False}), ("estimate", {True})])
def test_the_denoiser_keeps_a_graph_only_where_the_confidence_passes_it(through, graphs):
    seen = set()

    class Spy(CurvedDenoiser):
        def denoise(self, noised, sigma, *, labels=None):
            found = super().denoise(noised, sigma)
            seen.add(found.requires_grad)
            return found

    COUP(model=Spy(), classifier=TwoClasses(), steps=2, through=through)(x, keys=DRAWN)
    assert seen == graphs


@pytest.mark.parametrize("through", ["noised", "estimate"])
def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(through):
    purifier = COUP(model=CurvedDenoiser(), classifier=TwoClasses(), steps=3, through=through)
    assert isinstance(purifier, DifferentiablePurifier)
    assert purifier.traits.randomised and purifier.traits.optimises_at_test_time
    states = []
    together = purifier(x, keys=DRAWN, callback=states.append)
    assert [state["step"] for state in states] == [0, 1, 2]
    for i in range(5):
        assert torch.equal(purifier(x[i : i + 1], keys=DRAWN[i : i + 1])[0], together[i])


@pytest.mark.parametrize("through", ["noised", "estimate"])
@pytest.mark.parametrize("solver", ["vp-sde", "heun"])
def test_gradient_equals_finite_differences(through, solver):
    model = CurvedDenoiser().double()
    purifier = COUP(model=model, classifier=TwoClasses(), guidance=3.0, steps=3, through=through, solver=solver)
    inside = x.clamp(0.3, 0.7).double()
    purified, slope, difference = slope_and_difference(purifier, inside, DRAWN, EXACT)
    torch.testing.assert_close(purified, purifier(inside, keys=DRAWN))
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


def test_a_recipe_names_both_networks(monkeypatch):
    recipe = PurifyRecipe(baseline=BaselineConfig(name="coup", model="unet", options={"classifier": "net", "steps": 2}))
    monkeypatch.setattr("robustmim.purify.load.load_model", lambda name, device: CurvedDenoiser())
    monkeypatch.setattr("robustmim.purify.load.open_classifier", lambda name, device: TwoClasses())
    assert make_purifier(recipe)(x, keys=DRAWN).shape == x.shape


def test_the_shipped_recipe_asks_the_classifier_that_is_defended():
    photos = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for half in (slice(0, 1536), slice(1536, 3072)):
        defended = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
        nn.init.zeros_(defended[1].weight)
        nn.init.constant_(defended[1].weight[0, half], 1e-3)
        found.append(load_purifier("coup-unet-cifar10", classifier=defended)(photos, keys=DRAWN[:2]))
    assert (found[0] - found[1]).abs().max() > 1e-6  # the same draws: another classifier makes all the difference
    with pytest.raises(RecipeError, match="the classifier that it defends"):
        load_purifier("coup-unet-cifar10")


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="not negative"):
        COUP(model=GaussianDenoiser(), classifier=TwoClasses(), guidance=-1.0)
    with pytest.raises(RecipeError, match="at least one step"):
        COUP(model=GaussianDenoiser(), classifier=TwoClasses(), steps=0)
    recipe = PurifyRecipe(baseline=BaselineConfig(name="coup", model="mae-patch4-cifar10"))
    with pytest.raises(RecipeError, match="classifier"):
        make_purifier(recipe)
