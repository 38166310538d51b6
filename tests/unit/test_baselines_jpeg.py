"""The JPEG purifier is Pillow's encoder and decoder, and its gradient is one that an attacker can use."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn

from robustmim.config import BaselineConfig, GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.purify.baselines.jpeg import Jpeg, cosine_basis, quantisation_steps
from robustmim.purify.load import load_purifier, make_baseline
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(4))
SMOOTH = GradientConfig(mode="straight-through", forward="smooth")


def images(height=32, width=32, seed=0, dtype=torch.float32):
    """Smooth pictures with some texture, of 256 levels, away from black and white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(4, 3, 4, 4, generator=generator)
    x = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 0.6 + 0.2
    x = x + 0.05 * torch.rand(4, 3, height, width, generator=generator)
    return ((255 * x).round() / 255).to(dtype)


def by_pillow(x, quality, halve_colour):
    rows = []
    for image in x:
        file = io.BytesIO()
        picture = Image.fromarray((255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=quality, subsampling="4:2:0" if halve_colour else "4:4:4")
        rows.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(rows).float()


@pytest.mark.parametrize("quality", [1, 30, 75, 95])
@pytest.mark.parametrize("halve_colour", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (48, 16), (21, 33)], ids=str)
def test_is_pillows_jpeg_to_within_the_rounding_of_integers(quality, halve_colour, size):
    x = images(*size)
    ours = 255 * Jpeg(quality=quality, halve_colour=halve_colour)(x, keys=KEYS)
    wrong = (ours - by_pillow(x, quality, halve_colour)).abs()
    # A coefficient half-way between two steps may fall to either side; it moves a whole block by a little.
    assert wrong.mean() < 0.7
    assert (wrong <= 2).float().mean() > 0.95


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_steps_are_those_that_pillow_writes(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    for table, steps in zip(Image.open(file).quantization.values(), quantisation_steps(quality), strict=True):
        assert sorted(table) == sorted(steps.flatten().tolist())


def test_the_transform_is_scipys():
    block = torch.rand(8, 8, dtype=torch.float64)
    ours = cosine_basis() @ block @ cosine_basis().T
    np.testing.assert_allclose(ours.numpy(), dctn(block.numpy(), norm="ortho"), atol=1e-12)


def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch():
    x = images(21, 33)
    purifier = Jpeg(quality=40)
    together = purifier(x, keys=KEYS)
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert torch.equal(purifier(x, keys=keys(7, "other", torch.arange(4))), together)
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 21, 33)


@pytest.mark.parametrize("mode", ["straight-through", "tanh", "rational", "exact", "normalised"])
def test_the_attackers_images_are_the_defences(mode):
    x, purifier = images(), Jpeg(quality=40)
    assert isinstance(purifier, DifferentiablePurifier)
    point = x.clone().requires_grad_()
    found = purifier.differentiable(point, keys=KEYS, gradient=GradientConfig(mode=mode))
    assert torch.equal(found.detach(), purifier(x, keys=KEYS))
    (gradient,) = torch.autograd.grad(found.square().sum(), point)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("mode", ["straight-through", "tanh"])
@pytest.mark.parametrize("halve_colour", [False, True])
def test_gradient_of_the_smooth_purifier_equals_finite_differences(mode, halve_colour):
    x = images(19, 18, dtype=torch.float64) + 1e-3
    purifier, config = Jpeg(quality=75, halve_colour=halve_colour), replace(SMOOTH, mode=mode)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def value(point):
        return (weights * purifier.differentiable(point, keys=KEYS, gradient=config)).sum()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(point), point)
    direction, h = torch.randn(x.shape, generator=generator, dtype=torch.float64), 1e-9
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-4, atol=1e-3)


def test_without_rounding_colour_at_full_size_passes_as_it_is():
    x = images(19, 18, dtype=torch.float64)
    found = Jpeg(quality=100, halve_colour=False).differentiable(x, keys=KEYS, gradient=SMOOTH)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=0)


def test_the_shipped_recipe_builds_it():
    assert isinstance(load_purifier("jpeg"), Jpeg)
    assert make_baseline(BaselineConfig(name="jpeg", options={"quality": 30})).quality == 30


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="between 1 and 100"):
        Jpeg(quality=0)
    with pytest.raises(InputError, match="255"):
        Jpeg()(images() * 255, keys=KEYS)
