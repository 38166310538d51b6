"""Gaussian images, whose score is known, and a classifier whose confidence has a slope in closed form."""

from __future__ import annotations

import torch

from robustmim.models.edm import to_unit
from robustmim.rng import keys

MEAN, DEVIATION = -0.1, 0.2  # in [-1, 1]; few samples come near the ends


class GaussianDenoiser(torch.nn.Module):
    """The best denoiser of independent pixels N(m, s²)."""

    classes = 0

    def denoise(self, noised, sigma, *, labels=None):
        square = sigma.view(-1, 1, 1, 1).square()
        return (DEVIATION**2 * noised + square * MEAN) / (DEVIATION**2 + square)


class CurvedDenoiser(torch.nn.Module):
    """A denoiser with second derivatives, of any σ, and with a convolution, as a network has."""

    classes = 0

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            self.mix.weight.copy_(0.3 * torch.randn(self.mix.weight.shape, generator=generator))
            self.mix.bias.zero_()

    def denoise(self, noised, sigma, *, labels=None):
        square = sigma.view(-1, 1, 1, 1).square()
        return (0.25 * noised + square * torch.tanh(self.mix(noised))) / (0.25 + square)


class TwoClasses(torch.nn.Module):
    """p(0 | x) = sigmoid(slope · Σ x): class 0 for bright images."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        bright = self.slope * (x - 0.5).sum((1, 2, 3))
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)


def gaussian_images(n):
    return to_unit(MEAN + DEVIATION * keys(0, "data", torch.arange(n)).normal(3, 4, 4)).clamp(0, 1)


def slope_and_difference(purifier, x, drawn, gradient):
    """Return the derivative of a random functional of the result along a random way: by the purifier, and by differences."""
    upstream, way = (drawn.fold(name).normal(*x.shape[1:]).double() for name in ("upstream", "way"))
    leaf = x.clone().requires_grad_()
    purified = purifier.differentiable(leaf, keys=drawn, gradient=gradient)
    (slope,) = torch.autograd.grad((purified * upstream).sum(), leaf)
    with torch.no_grad():
        up = purifier.differentiable(x + 1e-6 * way, keys=drawn, gradient=gradient)
        down = purifier.differentiable(x - 1e-6 * way, keys=drawn, gradient=gradient)
    return purified.detach(), (slope * way).sum(), ((up - down) * upstream).sum() / 2e-6
