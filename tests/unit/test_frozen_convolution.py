"""Convolutions that are differentiated twice: the same numbers as torch's, and no gradient in the weights."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from robustmim.models.frozen_convolution import LeanSecondDerivative


def hessian_product(layer, x, vector):
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
    return torch.autograd.grad((slope * vector).sum(), leaf)[0]


@pytest.mark.parametrize(
    ("side", "stride", "padding", "groups"), [(3, 1, 1, 1), (2, 2, 0, 1), (3, 2, 1, 2), (5, 3, (2, 0), 4)]
)
def test_second_derivatives_are_those_of_torch(side, stride, padding, groups):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4 // groups, side, side, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    x, vector = (torch.randn(2, 4, 11, 12, generator=generator, dtype=torch.float64) for _ in range(2))

    def layer(z):
        return F.conv2d(z, weight, bias, stride, padding, 1, groups)

    expected = hessian_product(layer, x, vector)
    with LeanSecondDerivative():
        found = hessian_product(layer, x, vector)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)


def convolutions(context):
    """Count the convolutions that a Hessian-vector product computes."""
    layer = torch.nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    with profile(activities=[ProfilerActivity.CPU]) as seen, context:
        hessian_product(layer, x, x)
    return sum(e.count for e in seen.key_averages() if e.key in ("aten::convolution_backward", "aten::_convolution"))


def test_the_gradient_in_the_weights_is_not_computed():
    assert convolutions(LeanSecondDerivative()) < convolutions(nullcontext())


def test_trainable_weights_keep_their_gradient():
    layer = torch.nn.Conv2d(3, 2, 3)
    with LeanSecondDerivative():
        layer(torch.rand(1, 3, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
