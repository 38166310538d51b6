"""Total variation denoising: SciPy's optimum, a closed form, and the exact gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize

from robustmim.config import GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.purify.baselines.total_variation import TotalVariation
from robustmim.purify.load import load_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(4))


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_images(signal, rows=4):
    """Repeat a signal down the rows of an image and over its channels: two dimensions are then one."""
    return signal.expand(1, 3, rows, -1).contiguous()


@pytest.mark.parametrize("weight", [0.02, 0.1, 0.4])
def test_a_signal_is_denoised_as_scipy_finds_it(weight):
    # In one dimension the dual is a box: minimise ‖x − λ Dᵀ p‖² over |p| ≤ 1, and u = x − λ Dᵀ p.
    signal = noise(12)
    difference = np.diff(np.eye(12), axis=0)
    dual = lsq_linear(weight * difference.T, signal.numpy(), bounds=(-1, 1), tol=1e-14).x
    expected = signal.numpy() - weight * difference.T @ dual
    found = TotalVariation(weight=weight, steps=3000)(as_images(signal), keys=KEYS[:1])
    np.testing.assert_allclose(found[0, 1, 2].numpy(), expected, atol=2e-4)


def test_a_step_keeps_its_place_and_loses_contrast_by_the_closed_form():
    # Five pixels of 0.2 and three of 0.8: the levels move by λ / 5 and λ / 3 towards each other.
    signal = torch.tensor([0.2] * 5 + [0.8] * 3, dtype=torch.float64)
    found = TotalVariation(weight=0.3, steps=2000)(as_images(signal), keys=KEYS[:1])[0, 0, 0]
    expected = torch.tensor([0.2 + 0.3 / 5] * 5 + [0.8 - 0.3 / 3] * 3, dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_picture_is_denoised_as_scipy_finds_it():
    x, weight = noise(1, 3, 4, 5), 0.1
    found = TotalVariation(weight=weight, steps=3000)(x, keys=KEYS[:1])[0, 0].numpy()

    def value(u):
        u = u.reshape(4, 5)
        down, right = np.zeros((4, 5)), np.zeros((4, 5))
        down[:-1], right[:, :-1] = np.diff(u, axis=0), np.diff(u, axis=1)
        return ((u - x[0, 0].numpy()) ** 2).sum() / 2 + weight * np.sqrt(down**2 + right**2 + 1e-14).sum()

    best = minimize(value, x[0, 0].numpy().ravel(), method="BFGS", options={"gtol": 1e-9, "maxiter": 3000})
    assert value(found.ravel()) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x.reshape(4, 5), atol=2e-3)


def test_the_mean_is_kept_and_the_range_shrinks():
    x = noise(4, 3, 16, 12).float()
    found = TotalVariation(weight=0.1)(x, keys=KEYS)
    torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
    assert found.amax() <= x.amax()
    assert found.amin() >= x.amin()
    assert (found.std((2, 3)) < x.std((2, 3))).all()


def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch():
    x, purifier = noise(4, 3, 16, 13).float(), load_purifier("total-variation")
    assert isinstance(purifier, DifferentiablePurifier)
    together = purifier(x, keys=KEYS)
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 13)


def test_gradient_equals_finite_differences():
    x, purifier = noise(2, 3, 6, 7), TotalVariation(weight=0.1, steps=30)
    weights = noise(2, 3, 6, 7, seed=1) - 0.5
    gradient_config = GradientConfig(mode="exact")

    def value(point):
        return (weights * purifier.differentiable(point, keys=KEYS[:2], gradient=gradient_config)).sum()

    point = x.clone().requires_grad_()
    assert torch.equal(
        purifier.differentiable(point, keys=KEYS[:2], gradient=gradient_config), purifier(x, keys=KEYS[:2])
    )
    (gradient,) = torch.autograd.grad(value(point), point)
    direction, h = noise(2, 3, 6, 7, seed=2) - 0.5, 1e-7
    difference = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-5, atol=1e-9)


def test_a_flat_image_stays_as_it_is_and_has_a_finite_gradient():
    x = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    found = TotalVariation().differentiable(x, keys=KEYS[:1], gradient=GradientConfig(mode="exact"))
    torch.testing.assert_close(found.detach(), x.detach())
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.isfinite(gradient).all()


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="above 0"):
        TotalVariation(weight=0.0)
    with pytest.raises(RecipeError, match="at least one step"):
        TotalVariation(steps=0)
    with pytest.raises(InputError, match="255"):
        TotalVariation()(noise(4, 3, 8, 8).float() * 255, keys=KEYS)
