"""The median filter is SciPy's, and its gradient goes where the median came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from robustmim.config import GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.purify.baselines.median import MedianFilter
from robustmim.purify.load import load_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(4))
EXACT = GradientConfig(mode="exact")
x = torch.rand(4, 3, 11, 14, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_is_scipys(size):
    found = MedianFilter(size=size)(x, keys=KEYS)
    expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="nearest")
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch():
    purifier = load_purifier("median")
    assert isinstance(purifier, DifferentiablePurifier)
    together = purifier(x, keys=KEYS)
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert torch.equal(purifier.differentiable(x, keys=KEYS, gradient=EXACT), together)
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 11, 14)


@pytest.mark.parametrize("size", [2, 3])
def test_gradient_equals_finite_differences(size):
    point, purifier = x.double(), MedianFilter(size=size)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def value(images):
        return (weights * purifier.differentiable(images, keys=KEYS, gradient=EXACT)).sum()

    leaf = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    direction, h = torch.randn(x.shape, generator=generator, dtype=torch.float64), 1e-9
    difference = (value(point + h * direction) - value(point - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-5, atol=1e-5)


def test_a_lone_pixel_is_removed():
    image = torch.zeros(1, 3, 7, 7)
    image[0, :, 3, 3] = 1
    assert MedianFilter()(image, keys=KEYS[:1]).eq(0).all()


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="at least one pixel"):
        MedianFilter(size=0)
    with pytest.raises(InputError, match="255"):
        MedianFilter()(x * 255, keys=KEYS)
