"""Adaptive denoising: densities whose score is known, a closed form, and the exact gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustmim.config import GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.models.edm import Denoiser
from robustmim.purify.baselines.adp import AdaptiveDenoisingPurification, pixel_denoiser
from robustmim.purify.load import load_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys
from tests.unit.test_masked_models import tiny_conv

KEYS = keys(0, "test", torch.arange(4))
EXACT = GradientConfig(mode="exact")
MEANS = torch.tensor([[-0.5, -0.3, -0.4], [0.4, 0.5, 0.3]], dtype=torch.float64)  # in [-1, 1]
DEVIATION = 0.2


class Mixture(nn.Module):
    """Knows that images of three numbers are drawn from two Gaussians."""

    classes = 0

    def log_density(self, noised, sigma):
        variance = (DEVIATION**2 + sigma.square())[:, None]
        apart = (noised.flatten(1)[:, None] - MEANS.to(noised)).square().sum(2)
        return (-apart / (2 * variance)).logsumexp(1) - 1.5 * variance[:, 0].log()

    def denoise(self, noised, sigma, *, labels=None):
        variance = (DEVIATION**2 + sigma.square())[:, None]
        flat, means = noised.flatten(1)[:, None], MEANS.to(noised)
        weights = (-(flat - means).square().sum(2) / (2 * variance)).softmax(1)
        kept = (DEVIATION**2 / variance)[..., None]
        return (weights[..., None] * (means + kept * (flat - means))).sum(1).view_as(noised)


class Gaussian(nn.Module):
    classes = 0

    def denoise(self, noised, sigma, *, labels=None):
        kept = (DEVIATION**2 / (DEVIATION**2 + sigma.square())).view(-1, 1, 1, 1)
        return 0.2 + kept * (noised - 0.2)


def dots(n=4, dtype=torch.float64):
    return torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_steps_are_the_papers_on_a_known_score():
    """Climb log p_σ, differentiated by autograd, with the released code's absolute numbers at σ = 0.25."""
    model, sigma, x = Mixture(), 0.25, dots()
    assert isinstance(model, Denoiser)

    def score(point):
        leaf = point.clone().requires_grad_()
        level = torch.full((len(point),), 2 * sigma, dtype=point.dtype)
        return torch.autograd.grad(model.log_density(2 * leaf - 1, level).sum(), leaf)[0]

    point = x.clone()
    going = torch.ones(4, dtype=torch.bool)
    for _ in range(10):
        slope = score(point)
        ahead = score(point + 1e-3 * slope)
        alike = (slope * ahead).sum((1, 2, 3)) / slope.square().sum((1, 2, 3))
        length = (0.05 * 1e-3 / (1 - alike)).clamp(1e-5, 0.1)
        going &= length > 1e-3
        point = (point + (length * going).view(-1, 1, 1, 1) * slope).clamp(0, 1)
    found = AdaptiveDenoisingPurification(model, noise=0.0)(x, keys=KEYS)
    torch.testing.assert_close(found, point)
    assert (found - x).abs().max() > 0.01


def test_of_a_gaussian_each_step_goes_the_same_part_of_the_way():
    x = 0.3 + 0.4 * dots()
    for fraction, steps in ((0.05, 10), (0.5, 3)):
        purifier = AdaptiveDenoisingPurification(Gaussian(), noise=0.0, sigma=0.25, fraction=fraction, steps=steps)
        expected = 0.6 + (1 - fraction) ** steps * (x - 0.6)
        torch.testing.assert_close(purifier(x, keys=KEYS), expected)


def test_an_image_at_the_peak_stays():
    x = torch.full((2, 3, 1, 1), 0.6, dtype=torch.float64)
    torch.testing.assert_close(AdaptiveDenoisingPurification(Gaussian(), noise=0.0)(x, keys=KEYS[:2]), x)


def test_noise_is_what_is_asked_for_and_of_the_keys():
    x = torch.full((4, 3, 32, 32), 0.5)
    # A step that is never longer than `stop` is never taken: what is left is the noise.
    noisy = AdaptiveDenoisingPurification(Gaussian(), noise=0.05, stop=10.0)
    found = noisy(x, keys=KEYS)
    assert found.std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(noisy(x, keys=KEYS), found)
    assert not torch.equal(noisy(x, keys=keys(1, "test", torch.arange(4))), found)


@pytest.mark.parametrize("model", [Gaussian(), tiny_conv()], ids=["denoiser", "masked"])
def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(model):
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    purifier = AdaptiveDenoisingPurification(model, noise=0.1, sigma=0.1, fraction=0.3, steps=4, stop=1e-4)
    assert isinstance(purifier, DifferentiablePurifier)
    assert purifier.traits.randomised
    steps = []
    together = purifier(x, keys=KEYS, callback=lambda state: steps.append(state["value"].shape))
    assert steps == [(4,)] * 4
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    point = x.clone().requires_grad_()
    assert torch.equal(purifier.differentiable(point, keys=KEYS, gradient=EXACT).detach(), together)
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("model", [Mixture(), tiny_conv().double()], ids=["denoiser", "masked"])
def test_gradient_equals_finite_differences(model):
    size = 1 if isinstance(model, Mixture) else 8
    generator = torch.Generator().manual_seed(3)
    x = 0.3 + 0.4 * torch.rand(4, 3, size, size, generator=generator, dtype=torch.float64)
    purifier = AdaptiveDenoisingPurification(model, noise=0.02, sigma=0.1, fraction=0.3, steps=3, stop=1e-6)
    weights, direction = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def value(point):
        return (weights * purifier.differentiable(point, keys=KEYS, gradient=EXACT)).sum()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(point), point)
    h = 1e-6
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-5, atol=1e-8)
    assert not math.isclose(gradient.sum().item(), weights.sum().item(), rel_tol=1e-3)


def test_a_masked_model_is_asked_for_each_pixel_from_the_others():
    x, model = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), tiny_conv()
    estimate = pixel_denoiser(model, 0.1, 0.5)
    point = x.clone().requires_grad_()
    predicted = estimate(point, KEYS[:2])
    (gradient,) = torch.autograd.grad(predicted[:, :, 7, 7].sum(), point)
    assert gradient[:, :, 7, 7].eq(0).all()
    assert gradient.abs().max() > 0


def test_the_shipped_recipe_builds_it_and_mistakes_are_named():
    assert load_purifier("adp-cifar10").traits.steps == 10
    with pytest.raises(RecipeError, match="neither"):
        AdaptiveDenoisingPurification(nn.Linear(1, 1))
    with pytest.raises(RecipeError, match="at least one step"):
        AdaptiveDenoisingPurification(Gaussian(), steps=0)
    with pytest.raises(RecipeError, match="above"):
        AdaptiveDenoisingPurification(Gaussian(), sigma=0.0)
    with pytest.raises(RecipeError, match="above 0"):
        AdaptiveDenoisingPurification(Gaussian(), shortest=2.0)
    with pytest.raises(InputError, match="255"):
        AdaptiveDenoisingPurification(Gaussian())(dots() * 255, keys=KEYS)
