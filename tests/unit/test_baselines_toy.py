"""Every purifier that follows a score, on a density of two dimensions whose score is known.

The images are of one pixel. Red and green are drawn from two Gaussians in the plane, blue is always mid-grey: whatever noise blue
has must go.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import ks_2samp
from torch import nn

from robustmim.config import BridgeConfig, DiffusionConfig, PerturbedNoiseConfig
from robustmim.data.loader import Batch
from robustmim.models.edm import Denoiser, to_signed, to_unit
from robustmim.purify.baselines.adp import AdaptiveDenoisingPurification
from robustmim.purify.baselines.coup import COUP
from robustmim.purify.baselines.nim import NoisyImageModelling
from robustmim.purify.baselines.scoreopt import ScoreOpt
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.train.bridge import BridgeTraining
from robustmim.train.perturbed_noise import PerturbedNoiseTraining

MEANS = torch.tensor([[-0.4, -0.3], [0.4, 0.3]], dtype=torch.float64)  # in [-1, 1]
DEVIATION = 0.12
COUNT = 3000
KEYS = keys(0, "toy", torch.arange(COUNT))


def log_density(y, sigma):
    """Of the noised images, `[B]`."""
    variance = DEVIATION**2 + sigma.square()
    plane = (y[:, :2, 0, 0][:, None] - MEANS.to(y)).square().sum(2) / (2 * variance[:, None])
    blue = y[:, 2, 0, 0].square() / (2 * sigma.square())
    return (-plane).logsumexp(1) - variance.log() - blue


class Plane(nn.Module):
    """The best denoiser, written as a mean over the two Gaussians."""

    classes = 0

    def denoise(self, noised, sigma, *, labels=None):
        variance = (DEVIATION**2 + sigma.square())[:, None]
        point, means = noised[:, None, :2, 0, 0], MEANS.to(noised)
        weights = (-(point - means).square().sum(2) / (2 * variance)).softmax(1)
        pulled = means + (DEVIATION**2 / variance)[..., None] * (point - means)
        plane = (weights[..., None] * pulled).sum(1)
        return torch.cat([plane, torch.zeros_like(plane[:, :1])], dim=1)[..., None, None]


class Posterior(nn.Module):
    """The best classifier: from which of the two Gaussians an image is."""

    def forward(self, images):
        apart = (to_signed(images)[:, None, :2, 0, 0] - MEANS.to(images)).square().sum(2)
        return -apart / (2 * DEVIATION**2)


def drawn_images():
    """Return images of the density in turns from one and the other Gaussian, and which they are from."""
    labels = torch.arange(COUNT) % 2
    plane = MEANS[labels] + DEVIATION * KEYS.fold("data").normal(2).double()
    return to_unit(torch.cat([plane, torch.zeros(COUNT, 1).double()], dim=1)[..., None, None]), labels


X, LABELS = drawn_images()
TOWARDS = (MEANS[1] - MEANS[0]) / (MEANS[1] - MEANS[0]).norm()
ATTACKED = X.clone()
ATTACKED[:, :2, 0, 0] += 0.09 * (1 - 2 * LABELS.double())[:, None] * TOWARDS
"""A good third of the way to the border between the two, in [0, 1]."""
SCORE = {
    "diffpure-ddpm": lambda: DiffusionPurifier(Plane(), DiffusionConfig(sigma=0.2, steps=30, solver="ancestral")),
    "diffpure-sde": lambda: DiffusionPurifier(
        Plane(), DiffusionConfig(sigma=0.2, steps=30, solver="vp-sde", spacing="vp", final_sigma=0.01)
    ),
    "coup": lambda: COUP(model=Plane(), classifier=Posterior(), guidance=0.05, sigma=0.2, steps=30),
    "scoreopt-image": lambda: ScoreOpt(
        model=Plane(), form="image", steps=60, learning_rate=0.01, sigma=0.15, spread=0.05
    ),
    "scoreopt-noised": lambda: ScoreOpt(
        model=Plane(), form="noised", steps=20, learning_rate=0.02, sigma=0.15, spread=0.0
    ),
    "adp": lambda: AdaptiveDenoisingPurification(Plane(), noise=0.03, sigma=0.08, fraction=0.3),
    "nim": lambda: NoisyImageModelling(Plane(), noise=0.08),
}


def likelihood(images):
    """Return the mean log density of red and green."""
    flat = to_signed(images).clone()
    flat[:, 2] = 0
    return log_density(flat, torch.full((COUNT,), 1e-3, dtype=flat.dtype)).mean().item()


def test_the_denoiser_is_tweedies_formula():
    sigma = 0.05 + 0.5 * KEYS.fold("sigma").uniform(1)[:, 0].double()
    y = (to_signed(X) + sigma.view(-1, 1, 1, 1) * KEYS.fold("noise").normal(3, 1, 1)).requires_grad_()
    (score,) = torch.autograd.grad(log_density(y, sigma).sum(), y)
    assert isinstance(Plane(), Denoiser)
    torch.testing.assert_close(Plane().denoise(y, sigma), y + sigma.square().view(-1, 1, 1, 1) * score)


@pytest.mark.parametrize("name", SCORE)
def test_what_was_attacked_becomes_likely_and_blue_grey(name):
    purified = SCORE[name]()(ATTACKED, keys=KEYS)
    assert likelihood(purified) > likelihood(ATTACKED) + 1
    tinted = ATTACKED.clone()
    tinted[:, 2] += 0.1
    left = (SCORE[name]()(tinted, keys=KEYS)[:, 2] - 0.5).abs().mean().item()
    assert left < 0.01


@pytest.mark.parametrize(("solver", "spacing"), [("ancestral", "edm"), ("sde", "edm"), ("vp-sde", "vp")])
def test_diffpure_returns_the_density_to_itself(solver, spacing):
    """Noised and walked back by a random solver, images of the density are images of the density (Anderson 1982)."""
    config = DiffusionConfig(sigma=0.34, steps=200, solver=solver, spacing=spacing, final_sigma=0.005)
    purified = DiffusionPurifier(Plane(), config)(X, keys=KEYS)
    for along in (TOWARDS, TOWARDS.flip(0) * torch.tensor([-1.0, 1.0])):
        before, after = ((images[:, :2, 0, 0] - 0.5) @ along for images in (X, purified))
        assert ks_2samp(before, after).statistic < 0.05
    # But not each to its own side: that is what the noise costs.
    assert (Posterior()(purified).argmax(1) != LABELS).float().mean() > 0.005


def test_diffpures_flow_is_scipys():
    """dy/dσ = −σ ∇ log p_σ(y), by an integrator that is not ours and a score that autograd takes."""
    few = slice(0, 6)
    config = DiffusionConfig(sigma=0.34, steps=120, solver="heun", final_sigma=0.005)
    purified = DiffusionPurifier(Plane(), config)(X[few], keys=KEYS[torch.arange(6)])
    start = to_signed(X[few]) + 0.34 * KEYS[torch.arange(6)].fold("diffuse").normal(3, 1, 1)

    def slope(sigma, flat):
        y = torch.tensor(flat).view(6, 3, 1, 1).requires_grad_()
        (score,) = torch.autograd.grad(log_density(y, torch.full((6,), sigma).double()).sum(), y)
        return (-sigma * score).flatten().numpy()

    solved = solve_ivp(slope, (0.34, 0.005), start.flatten().numpy(), rtol=1e-8, atol=1e-10).y[:, -1]
    y = torch.tensor(solved).view(6, 3, 1, 1)
    expected = Plane().denoise(y, torch.full((6,), 0.005).double())
    torch.testing.assert_close(purified, to_unit(expected), atol=2e-4, rtol=0)


def test_coup_keeps_more_on_their_side_than_the_same_diffusion():
    """Guided by the posterior: its slope vanishes where it is sure, and points away from the border near it."""
    shares = []
    for guidance in (0.0, 1.0, 3.0):
        purifier = COUP(model=Plane(), classifier=Posterior(), guidance=guidance, sigma=0.3, steps=40)
        shares.append((Posterior()(purifier(X, keys=KEYS)).argmax(1) == LABELS).float().mean().item())
    assert shares[0] < shares[1] - 0.005
    assert shares[1] < shares[2] - 0.003


def multipliers(objective, network, batch, drawn):
    """Return the loss's slope in the two numbers that multiply what a closed form says."""
    values = objective(network, batch, drawn, 0)
    return torch.autograd.grad(values["loss"], (network.shift, network.gain))


def gaussian_batch(count):
    """Return images of N(−0.1, 0.2²), colour by colour, all of class 0."""
    ids = torch.arange(count)
    images = to_unit(-0.1 + 0.2 * keys(0, "data", ids).normal(3, 1, 1))
    return Batch(images, torch.zeros(count, dtype=torch.int64), ids), keys(0, "step", ids)


class RedOrGreen(nn.Module):
    """p(0 | x) = sigmoid(red − green): the slope of its loss has one sign at red, another at green, and none at blue."""

    def forward(self, images):
        score = images[:, 0, 0, 0] - images[:, 1, 0, 0]
        return torch.stack([score, torch.zeros_like(score)], dim=1)


class Multiplied(nn.Module):
    """m + gain · G (y − m − shift · offset), with G and the offset of a closed form."""

    classes = 0

    def __init__(self, gain=1.0, shift=1.0):
        super().__init__()
        self.gain, self.shift = (nn.Parameter(torch.tensor(value)) for value in (gain, shift))

    def closed_form(self, sigma):
        raise NotImplementedError

    def denoise(self, noised, sigma, *, labels=None):
        matrix, offset = self.closed_form(sigma)
        seen = noised[..., 0, 0] + 0.1 - self.shift * offset
        return (-0.1 + self.gain * (matrix @ seen[..., None])[..., 0])[..., None, None]


def test_adbm_is_least_at_the_denoiser_that_knows_the_bridge():
    """On a Gaussian, E[x | x + σ n + (σ² / s²) d] = m + τ² / (τ² + σ²) (y − (σ² / s²) d − m): the attack is taken away."""
    start = math.exp(0.1 * 0.15 + 9.95 * 0.15**2) - 1  # s² = 1 / ᾱ − 1 at t = 0.15

    class Bridge(Multiplied):
        def closed_form(self, sigma):
            eye = torch.eye(3) * (0.04 / (0.04 + sigma.square())).view(-1, 1, 1)
            attack = 2 * 32 / 255 * torch.tensor([-1.0, 1.0, 0.0])  # class 0 has more red
            return eye, sigma.square()[:, None] / start * attack

    batch, drawn = gaussian_batch(80000)
    objective = BridgeTraining(
        RedOrGreen(), BridgeConfig(radius=Radius("32/255"), step_size=Radius("32/255"), start_times=(0.15, 0.15))
    )
    ignorant = multipliers(objective, Bridge(shift=0.0), batch, drawn)[0]
    shift, gain = multipliers(objective, Bridge(), batch, drawn)
    assert ignorant < 0
    assert abs(shift) < 0.1 * -ignorant
    assert abs(gain) < 0.1 * abs(multipliers(objective, Bridge(gain=0.5), batch, drawn)[1])


def test_addt_is_least_at_the_denoiser_that_knows_the_ranked_noise():
    """Ranked by the classifier's slope, three normal draws are order statistics, whose means and covariances are known
    (Godwin 1949): the best affine denoiser follows."""
    strength, most = 0.5, 0.9
    mean = torch.tensor([-1.0, 1.0, 0.0]) * 3 / (2 * math.sqrt(math.pi))
    largest, middle = 0.559467, 0.448671
    neighbours, ends = 0.275664, 0.164868
    ranked = torch.tensor([[largest, ends, neighbours], [ends, largest, neighbours], [neighbours, neighbours, middle]])

    class Ranked(Multiplied):
        def closed_form(self, sigma):
            share = (strength / sigma).clamp(max=most)
            part = share.square().view(-1, 1, 1)
            noise = sigma.square().view(-1, 1, 1) * ((1 - part) * torch.eye(3) + part * ranked)
            return 0.04 * torch.linalg.inv(0.04 * torch.eye(3) + noise), (sigma * share)[:, None] * mean

    batch, drawn = gaussian_batch(80000)
    objective = PerturbedNoiseTraining(RedOrGreen(), PerturbedNoiseConfig(strength=strength, most=most, steps=2))
    ignorant = multipliers(objective, Ranked(shift=0.0), batch, drawn)[0]
    shift, gain = multipliers(objective, Ranked(), batch, drawn)
    assert ignorant < 0
    assert abs(shift) < 0.1 * -ignorant
    assert abs(gain) < 0.1 * abs(multipliers(objective, Ranked(gain=0.5), batch, drawn)[1])
