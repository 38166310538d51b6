"""ADBM and ADDT: what a denoiser is fine-tuned on, against the formulas in DDPM's variables, and what comes of it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

from robustmim.config import BridgeConfig, ModelConfig, PerturbedNoiseConfig, PretrainRecipe
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.models.edm import precondition, to_signed
from robustmim.models.unet import UNet
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.train.bridge import BridgeTraining
from robustmim.train.perturbed_noise import PerturbedNoiseTraining, gaussian_by_rank
from robustmim.train.pretraining import pretraining_objective
from tests.unit.gaussian import GaussianDenoiser, TwoClasses, gaussian_images

IDS = torch.arange(32)
DRAWN = keys(0, "step", IDS)
BATCH = Batch(gaussian_images(32), torch.arange(32) % 2, IDS)


class Spy(GaussianDenoiser):
    """Remembers what it was asked last."""

    def denoise(self, noised, sigma, *, labels=None):
        self.asked, self.levels = noised.detach(), sigma
        self.answer = super().denoise(noised, sigma)
        return self.answer


def kept(times):
    return (-(0.1 * times + 9.95 * times.square())).exp().view(-1, 1, 1, 1)


def test_the_bridge_is_that_of_the_paper():
    """Li et al. 2025: a known linear classifier is attacked by the sign of its weight, so d is known."""
    model, config = Spy(), BridgeConfig(radius=Radius("8/255"))
    found = BridgeTraining(TwoClasses(), config)(model, BATCH, DRAWN, 0)["loss"]
    start = 0.1 + 0.1 * DRAWN.fold("start").uniform(1)[:, 0]
    time = 1e-5 + (start - 1e-5) * DRAWN.fold("time").uniform(1)[:, 0]
    a, at_start = kept(time), kept(start)
    x, n = to_signed(BATCH.images), DRAWN.fold("noise").normal(3, 4, 4)
    # Class 0 is the bright one: its images are made darker, the others brighter.
    towards = (2 * BATCH.labels - 1).view(-1, 1, 1, 1)
    d = to_signed((BATCH.images + 8 / 255 * towards).clamp(0, 1)) - x
    bridge = a.sqrt() * x + (1 - a).sqrt() * n + at_start * (1 - a) / ((1 - at_start) * a.sqrt()) * d
    torch.testing.assert_close(a.sqrt() * model.asked, bridge, atol=2e-5, rtol=1e-5)
    target = n + d * (1 / a - 1).sqrt() * at_start / (1 - at_start)
    sigma = ((1 - a) / a).sqrt()
    predicted = (model.asked - model.answer) / sigma
    wrong = (predicted - target).square().mean((1, 2, 3))
    weight = precondition(sigma.flatten()).weight * sigma.flatten().square()  # 1 + 4 σ²
    torch.testing.assert_close(weight, 1 + 4 * sigma.flatten().square(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found, (weight * wrong).mean(), rtol=1e-3, atol=0)


def test_a_bridge_has_all_of_the_attack_at_its_start_and_none_at_its_end():
    for late, share in ((0.99999, 1.0), (0.0, 0.0)):

        class Fixed(type(DRAWN)):
            """Keys whose uniform draws are all alike."""

            def fold(self, *parts):
                return Fixed(super().fold(*parts).values)

            def uniform(self, *shape, late=late):
                return torch.full((len(self.values), *shape), late)

        model, calm = Spy(), Spy()
        BridgeTraining(TwoClasses())(model, BATCH, Fixed(DRAWN.values), 0)
        BridgeTraining(TwoClasses(), BridgeConfig(radius=Radius("0")))(calm, BATCH, Fixed(DRAWN.values), 0)
        moved = (model.asked - calm.asked).abs().amax((1, 2, 3))
        torch.testing.assert_close(moved, torch.full((32,), share * 16 / 255), atol=1e-3, rtol=0)


def test_a_slope_becomes_gaussian_and_keeps_its_order():
    slope = DRAWN.fold("slope").normal(3, 20, 20).exp() * 1e-6
    found = gaussian_by_rank(slope, DRAWN)
    in_order = found.flatten(1).gather(1, slope.flatten(1).argsort(dim=1, stable=True))
    assert (in_order.diff(dim=1) >= 0).all()
    assert kstest(found.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(gaussian_by_rank(slope[3:4], DRAWN[3:4])[0], found[3])


def test_perturbed_noise_has_the_level_it_is_said_to_have_and_misleads():
    """r = 0.03 √ᾱ / √(1 − ᾱ), at most 0.3 (Liu et al. 2025); the classifier's slope is known, so is who is misled."""
    model, calm = Spy(), Spy()
    config = PerturbedNoiseConfig(steps=2)
    found = PerturbedNoiseTraining(TwoClasses(0.1), config)(model, BATCH, DRAWN, 0)["loss"]
    PerturbedNoiseTraining(TwoClasses(0.1), PerturbedNoiseConfig(strength=0.0))(calm, BATCH, DRAWN, 0)
    time = 1e-3 + (1 - 1e-3) * DRAWN.fold("time").uniform(1)
    a = kept(time[:, 0]).flatten()
    torch.testing.assert_close(model.levels, ((1 - a) / a).sqrt(), rtol=1e-3, atol=0)
    sigma, x = model.levels.view(-1, 1, 1, 1), to_signed(BATCH.images)
    share = (0.03 * a.sqrt() / (1 - a).sqrt()).clamp(max=0.3).view(-1, 1, 1, 1)
    noise = DRAWN.fold("noise").normal(3, 4, 4)
    mixed = (model.asked - x) / sigma
    perturbation = (mixed - (1 - share.square()).sqrt() * noise) / share
    near = share.flatten() > 0.02  # elsewhere the difference is lost in rounding
    assert near.sum() > 10
    assert perturbation[near].std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close((calm.asked - x) / sigma, noise, atol=1e-3, rtol=1e-3)
    assert found > 0


def test_slopes_are_followed():
    """With a slope that differs from pixel to pixel, the perturbation follows it: here it is that of a weighted sum."""
    weight = DRAWN[:1].fold("weight").normal(3, 4, 4)

    class Weighted(torch.nn.Module):
        def forward(self, images):
            score = (weight * images).sum((1, 2, 3))
            return torch.stack([score, torch.zeros_like(score)], dim=1)

    model = Spy()
    PerturbedNoiseTraining(Weighted(), PerturbedNoiseConfig(most=0.9, strength=0.5))(model, BATCH, DRAWN, 0)
    x, sigma = to_signed(BATCH.images), model.levels.view(-1, 1, 1, 1)
    share = (0.5 / sigma).clamp(max=0.9)
    perturbation = (model.asked - x) / sigma - (1 - share.square()).sqrt() * DRAWN.fold("noise").normal(3, 4, 4)
    along = (perturbation / share * weight).mean((1, 2, 3)) * (2 * BATCH.labels - 1)
    assert (along[share.flatten() > 0.1] > 0.5).all()


@pytest.mark.parametrize("training", [BridgeTraining, PerturbedNoiseTraining])
def test_a_step_trains_the_denoiser_alone_and_samples_apart(training):
    torch.manual_seed(0)
    model, classifier = (
        UNet(image_size=4, widths=(8,), blocks=(1,), condition_width=8),
        TwoClasses().requires_grad_(False),
    )
    model.head.weight.data += 0.1
    values = training(classifier)(model, BATCH, DRAWN, 0)
    values["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.training
    parts = [
        training(classifier)(model, part, DRAWN[16 * i : 16 * i + 16], 0)["loss"]
        for i, part in enumerate(BATCH.parts(2))
    ]
    assert (sum(parts) / 2).item() == pytest.approx(values["loss"].item(), rel=1e-4)


def test_recipes_that_do_not_go_together():
    unet = UNet(widths=(8,), blocks=(1,), condition_width=8)
    about = {"model": ModelConfig(name="unet"), "mask_ratios": (0.0,)}
    assert isinstance(pretraining_objective(PretrainRecipe(**about, bridge=BridgeConfig()), unet), BridgeTraining)
    perturbed = PretrainRecipe(**about, perturbed_noise=PerturbedNoiseConfig())
    assert isinstance(pretraining_objective(perturbed, unet), PerturbedNoiseTraining)
    for wrong, model, says in (
        ({"bridge": BridgeConfig(), "perturbed_noise": PerturbedNoiseConfig()}, unet, "exclude"),
        ({"bridge": BridgeConfig()}, torch.nn.Identity(), "is none"),
        ({"bridge": BridgeConfig(), "mask_ratios": (0.5,)}, unet, "no other attack"),
        ({"bridge": BridgeConfig(steps=0)}, unet, "at least once"),
    ):
        with pytest.raises(RecipeError, match=says):
            pretraining_objective(PretrainRecipe(**(about | wrong)), model)


def test_time_and_level_agree_with_the_formula_of_the_bridge():
    """ᾱ_u (1 − ᾱ) / ((1 − ᾱ_u) √ᾱ) / √ᾱ = σ² / s²."""
    for t, u in ((0.03, 0.1), (0.1, 0.17)):
        a, at_start = (math.exp(-(0.1 * z + 9.95 * z * z)) for z in (t, u))
        assert at_start * (1 - a) / ((1 - at_start) * a) == pytest.approx((1 / a - 1) / (1 / at_start - 1))
