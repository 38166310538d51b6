"""Diffusion against closed forms: EDM's preconditioning, and data so simple that the best denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from robustmim.config import DenoisingConfig, DiffusionConfig, GradientConfig
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.models.edm import log_normal_levels, noise_grid, precondition, to_signed, to_unit
from robustmim.models.sampling import denoising_step, sample, walk_down
from robustmim.models.variance_preserving import level_at_time, time_of_level
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.rng import keys
from robustmim.train.denoising import MaskedDenoising

MEAN, DEVIATION = -0.1, 0.2  # of the Gaussian data, in [-1, 1]; few samples come near the ends


class GaussianDenoiser(torch.nn.Module):
    """The best denoiser of independent pixels N(m, v), whose parameters m and v could be wrong."""

    patch_size, image_size, classes, target = 2, 4, 0, "pixels"

    def __init__(self, mean=MEAN, variance=DEVIATION**2):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.tensor(mean))
        self.variance = torch.nn.Parameter(torch.tensor(variance))

    def grid(self, height, width):
        return height // 2, width // 2

    def denoise(self, noised, sigma, *, mask=None, labels=None):
        square = sigma.view(-1, 1, 1, 1).square()
        best = (self.variance * noised + square * self.mean) / (self.variance + square)
        if mask is None:
            return best
        return torch.where(mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None], self.mean, best)


def gaussian_images(n):
    return to_unit(MEAN + DEVIATION * keys(0, "data", torch.arange(n)).normal(3, 4, 4))


@pytest.mark.parametrize("sigma", [0.002, 0.2, 0.5, 3.0, 80.0])
def test_preconditioning_is_that_of_the_paper(sigma):
    """Table 1 of EDM, and why it is so: unit variance of the network's input and of its target (Eq. 114 to 132)."""
    found = precondition(torch.tensor([sigma], dtype=torch.float64))
    data = 0.5
    total = sigma**2 + data**2
    assert found.skip.item() == pytest.approx(data**2 / total)
    assert found.out.item() == pytest.approx(sigma * data / math.sqrt(total))
    assert found.input.item() == pytest.approx(1 / math.sqrt(total))
    assert found.noise.item() == pytest.approx(math.log(sigma) / 4)
    assert found.weight.item() == pytest.approx(total / (sigma * data) ** 2)
    assert (found.input.square() * total).item() == pytest.approx(1)
    residual = ((1 - found.skip) * data).square() + (found.skip * sigma).square()
    assert (residual / found.out.square()).item() == pytest.approx(1)
    assert (found.weight * found.out.square()).item() == pytest.approx(1)


def test_a_hidden_patch_is_one_at_infinite_noise():
    far = precondition(torch.tensor([1e8], dtype=torch.float64))
    assert far.skip.item() == pytest.approx(0, abs=1e-12)
    assert far.out.item() == pytest.approx(0.5)


def test_levels_are_log_normal():
    drawn = log_normal_levels(keys(0, "level", torch.arange(20000)), -1.2, 1.2).log()
    assert drawn.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert drawn.std().item() == pytest.approx(1.2, abs=0.03)


def test_the_grid_is_equation_5():
    levels = noise_grid(18, 80.0, 0.002)
    assert len(levels) == 19
    for i in (0, 7, 17):
        assert levels[i] == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert levels[-1] == 0
    assert noise_grid(1, 0.5, 0.1) == pytest.approx([0.5, 0])
    for steps, high, low in ((0, 1.0, 0.1), (3, 0.1, 1.0), (3, 1.0, 0.0)):
        with pytest.raises(RecipeError):
            noise_grid(steps, high, low)


def test_the_probability_flow_ends_where_it_must_and_at_the_order_of_its_solver():
    """The flow of Gaussian data is known: x₀ = m + (x_T − m) s / √(s² + σ_T²)."""
    drawn = keys(0, "sample", torch.arange(4))
    model = GaussianDenoiser().double()
    start = MEAN + 2.0 * drawn.normal(3, 4, 4).double()
    exact = MEAN + (start - MEAN) * DEVIATION / math.sqrt(DEVIATION**2 + 2.0**2)

    def error(solver, steps):
        # Stopped above zero, since the last step, to the estimate, is another one.
        levels = noise_grid(steps, 2.0, 0.02)[:-1]
        with torch.no_grad():
            found = walk_down(model.denoise, start, levels, solver=solver, keys=drawn)
        scale = math.sqrt((DEVIATION**2 + 0.02**2) / DEVIATION**2)
        return (found - (MEAN + (exact - MEAN) * scale)).abs().max().item()

    assert error("heun", 65) < 1e-3
    assert 1.8 < error("euler", 65) / error("euler", 129) < 2.2
    assert 3.5 < error("heun", 65) / error("heun", 129) < 4.5


@pytest.mark.parametrize(
    ("solver", "steps"), [("euler", 200), ("heun", 60), ("ancestral", 200), ("sde", 400), ("vp-sde", 400)]
)
def test_samples_of_a_gaussian_have_its_mean_and_deviation(solver, steps):
    drawn = sample(
        GaussianDenoiser(), keys(0, "sample", torch.arange(600)), (3, 4, 4), steps=steps, solver=solver, highest=20.0
    )
    values = to_signed(drawn)
    count = values.numel()
    assert values.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(count) + 0.01 * DEVIATION)
    assert values.std().item() == pytest.approx(DEVIATION, rel=4 / math.sqrt(2 * count) + 0.03)
    # Pixels are independent in the data, and so in the samples.
    flat = (values - values.mean()).flatten(1) / values.std()
    assert (flat.T @ flat / len(flat)).fill_diagonal_(0).abs().max() < 6 / math.sqrt(len(flat))


def test_ancestral_steps_are_those_of_ddpm():
    """The same step in DDPM's own variables, √ᾱ x + √(1 − ᾱ) n (Ho et al. 2020, Eq. 6 and 7)."""
    model, drawn = GaussianDenoiser().double(), keys(0, "sample", torch.arange(3))
    before, after = 0.6, 0.75  # ᾱ at t and t − 1
    level, following = math.sqrt((1 - before) / before), math.sqrt((1 - after) / after)
    x = drawn.fold("x").normal(3, 4, 4).double()
    reached, estimate = denoising_step(model.denoise, x, level, following, solver="ancestral", keys=drawn)
    alpha, beta = before / after, 1 - before / after
    mean = math.sqrt(after) * beta / (1 - before) * estimate
    mean = mean + math.sqrt(alpha) * (1 - after) / (1 - before) * (math.sqrt(before) * x)
    variance = beta * (1 - after) / (1 - before)
    z = drawn.normal(3, 4, 4).double()
    torch.testing.assert_close(math.sqrt(after) * reached, mean + math.sqrt(variance) * z)


@pytest.mark.parametrize("time", [1e-5, 0.01, 0.075, 0.1, 0.5, 1.0])
def test_times_of_the_variance_preserving_diffusion_are_integrals_of_its_rate(time):
    total, _ = quad(lambda t: 0.1 + 19.9 * t, 0, time)
    assert level_at_time(time) == pytest.approx(math.sqrt(math.exp(total) - 1), rel=1e-9)
    assert time_of_level(level_at_time(time)) == pytest.approx(time, rel=1e-9)


def test_ddpms_thousand_steps_are_times_of_the_same_diffusion():
    kept = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().log1p().cumsum(0).exp()
    for step in (20, 75, 100, 500):
        discrete = ((1 - kept[step - 1]) / kept[step - 1]).sqrt().item()
        assert level_at_time(step / 1000) == pytest.approx(discrete, rel=0.02)


def test_steps_of_the_variance_preserving_sde_are_those_of_diffpure():
    """Nie et al. 2022, Eq. 5, in its own variables: drift −β (x + 2 score) / 2, backwards, from t = 0.1."""
    model, drawn = GaussianDenoiser().double(), keys(0, "sample", torch.arange(3))
    x = drawn.fold("x").normal(3, 4, 4).double()
    levels = noise_grid(100, level_at_time(0.1), level_at_time(1e-5), spacing="vp")
    assert time_of_level(levels[0]) - time_of_level(levels[1]) == pytest.approx(1e-3, rel=0.02)
    reached, _ = denoising_step(model.denoise, x, levels[0], levels[1], solver="vp-sde", keys=drawn)
    first, second = (math.exp(-(0.1 * t + 9.95 * t * t)) for t in (0.1, time_of_level(levels[1])))  # ᾱ
    scaled, span, beta = math.sqrt(first) * x, 0.1 - time_of_level(levels[1]), 0.1 + 19.9 * 0.1
    # The data are N(m, s²); x_t is N(√ᾱ m, ᾱ s² + 1 − ᾱ).
    score = (math.sqrt(first) * MEAN - scaled) / (first * DEVIATION**2 + 1 - first)
    drift = -0.5 * beta * (scaled + 2 * score)
    found = scaled - drift * span + math.sqrt(beta * span) * drawn.normal(3, 4, 4).double()
    torch.testing.assert_close(reached, found / math.sqrt(second))


def test_the_denoising_loss_is_least_at_the_best_denoiser_and_as_large_as_it_must_be():
    ids = torch.arange(4096)
    batch = Batch(gaussian_images(4096), torch.zeros(4096, dtype=torch.int64), ids)
    drawn = keys(0, "step", ids)
    objective = MaskedDenoising((0.5,), DenoisingConfig(hidden_weight=1.0))

    def values(mean=MEAN, variance=DEVIATION**2):
        model = GaussianDenoiser(mean, variance)
        return model, objective(model, batch, drawn, 0)

    model, found = values()
    # λ(σ) E|D − x|² with E|D − x|² = s² σ² / (s² + σ²), over the levels that were drawn.
    sigma = log_normal_levels(drawn.fold("level"), -1.2, 1.2)
    least = precondition(sigma).weight * (DEVIATION * sigma).square() / (DEVIATION**2 + sigma.square())
    assert found["denoising"].item() == pytest.approx(least.mean().item(), rel=0.02)
    assert found["hidden"].item() == pytest.approx(DEVIATION**2 / 0.5**2, rel=0.02)
    slopes = torch.autograd.grad(found["loss"], list(model.parameters()))
    wrong_model, wrong = values(MEAN + 0.05, DEVIATION**2 * 1.5)
    wrong_slopes = torch.autograd.grad(wrong["loss"], list(wrong_model.parameters()))
    for ours, theirs in zip(slopes, wrong_slopes, strict=True):
        assert ours.abs() < 0.1 * theirs.abs()
    for mean, variance in ((MEAN + 0.05, None), (MEAN - 0.05, None), (MEAN, 1.3), (MEAN, 0.7)):
        _, other = values(mean, DEVIATION**2 * (variance or 1))
        assert other["denoising"] > found["denoising"]


def test_a_noised_target_moves_the_loss_but_not_its_minimum():
    """E|D − (x + n)|² = E|D − x|² + σ² where the prediction sees neither: the same gradient on average."""
    ids = torch.arange(4096)
    batch = Batch(gaussian_images(4096), torch.zeros(4096, dtype=torch.int64), ids)
    drawn = keys(0, "step", ids)
    clean, noised = (
        MaskedDenoising((0.5,), DenoisingConfig(hidden_target=target, log_deviation=0.1))(
            GaussianDenoiser(), batch, drawn, 0
        )["hidden"].item()
        for target in ("clean", "noised")
    )
    sigma = log_normal_levels(drawn.fold("level"), -1.2, 0.1)
    assert noised - clean == pytest.approx((sigma.square().mean() / 0.5**2).item(), rel=0.03)


def test_purification_by_diffusion_is_the_flow_of_the_noised_image():
    x, drawn = gaussian_images(5), keys(0, "purify", torch.arange(5))
    config = DiffusionConfig(sigma=0.34, steps=60, solver="heun", final_sigma=0.005)
    purified = DiffusionPurifier(GaussianDenoiser(), config)(x, keys=drawn)
    start = to_signed(x) + 0.34 * drawn.fold("diffuse").normal(3, 4, 4)
    exact = MEAN + (start - MEAN) * DEVIATION / math.sqrt(DEVIATION**2 + 0.34**2)
    torch.testing.assert_close(purified, to_unit(exact), atol=1e-3, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun", "ancestral", "sde", "vp-sde"])
def test_purification_by_diffusion_is_each_samples_own_and_tells_its_steps(solver):
    x, drawn = gaussian_images(5).clamp(0, 1), keys(0, "purify", torch.arange(5))
    purifier = DiffusionPurifier(GaussianDenoiser(), DiffusionConfig(steps=4, solver=solver))
    states = []
    together = purifier(x, keys=drawn, callback=states.append)
    assert torch.equal(purifier(x[2:3], keys=drawn[2:3])[0], together[2])
    assert not torch.equal(purifier(x, keys=keys(1, "purify", torch.arange(5))), together)
    assert [state["step"] for state in states] == [0, 1, 2, 3]
    assert torch.equal(states[-1]["x"], together)
    assert states[0]["value"].shape == (5,)
    assert purifier.traits.randomised
    assert not purifier.traits.optimises_at_test_time


@pytest.mark.parametrize("solver", ["heun", "ancestral", "sde", "vp-sde"])
def test_gradients_through_diffusion_are_exact(solver):
    x = gaussian_images(2).clamp(0.2, 0.8).double()
    drawn = keys(0, "purify", torch.arange(2))
    purifier = DiffusionPurifier(GaussianDenoiser().double(), DiffusionConfig(steps=5, solver=solver))
    gradient = GradientConfig(mode="exact")
    leaf = x.clone().requires_grad_()
    upstream, way = (drawn.fold(name).normal(3, 4, 4).double() for name in ("upstream", "way"))
    purified = purifier.differentiable(leaf, keys=drawn, gradient=gradient)
    torch.testing.assert_close(purified.detach(), purifier(x, keys=drawn))
    (slope,) = torch.autograd.grad((purified * upstream).sum(), leaf)
    with torch.no_grad():
        up = purifier.differentiable(x + 1e-6 * way, keys=drawn, gradient=gradient)
        down = purifier.differentiable(x - 1e-6 * way, keys=drawn, gradient=gradient)
    torch.testing.assert_close((slope * way).sum(), ((up - down) * upstream).sum() / 2e-6, rtol=1e-6, atol=0)
    fewer = purifier.differentiable(x, keys=drawn, gradient=GradientConfig(mode="exact", steps=2))
    assert (fewer - purified).abs().max() > 1e-3
