"""Gradients through AMRM-Pure on MaskDiT against the whole graph, written out, and against finite differences."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from robustmim.config import AMRMConfig, DenoiserConfig, DiffusionConfig, GradientConfig
from robustmim.models.edm import noise_grid
from robustmim.models.maskdit import MaskDiT
from robustmim.models.masked import freeze
from robustmim.models.masked_denoiser import MaskedDenoiser
from robustmim.models.masking import random_mask
from robustmim.models.vit import explicit_attention
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.radius import Radius
from robustmim.rng import keys

STEPS, LENGTH = 3, 6 / 255
AMRM = AMRMConfig(steps=STEPS, step_size=Radius("6/255"), radius=Radius("12/255"), mask_ratio=0.5)
DRAWN = keys(0, "test", torch.arange(2))


def network():
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    model = MaskDiT(image_size=16, **sizes)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return freeze(model).double()


def images():
    # Some pixels at 0 and 1, so that the clips bind.
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (x * 1.4 - 0.2).clamp(0, 1)


def pulled(function, x, upstream):
    leaf = x.clone().requires_grad_(True)
    out = function(leaf)
    return out.detach(), torch.autograd.grad((out * upstream).sum(), leaf)[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


CHOICES = {
    "fixed": DenoiserConfig(),
    "own": DenoiserConfig(noise_level="log-normal", loss="own", hidden_target="noised"),
    "denoising": DenoiserConfig(noise_level="descending", sigma=0.5, loss="denoising"),
}


def full_graph(model, path, leaf):
    """The purification written out: every step, mask and draw, with second derivatives kept."""
    current = leaf
    for step in range(STEPS):
        mask = random_mask(DRAWN.fold("mask", step), (4, 4), 0.5)
        one = model.drawn(DRAWN, draw=step, progress=step / (STEPS - 1))
        seen, target = current.clone(), current.clone()
        loss = one.reconstruct(seen, mask, target=target).loss.sum()
        slopes = torch.autograd.grad(loss, (seen, target), create_graph=True)
        slope = {"both": slopes[0] + slopes[1], "input": slopes[0], "target": slopes[1]}[path]
        smooth = torch.tanh(slope / slope.detach().abs().mean((1, 2, 3), keepdim=True))
        moved = current - LENGTH * (slope.sign() + smooth - smooth.detach())
        inside = torch.minimum(torch.maximum(moved, leaf - 12 / 255), leaf + 12 / 255).clamp(0, 1)
        current = inside.detach() + moved - moved.detach()
    return current


@pytest.mark.parametrize("which", CHOICES)
@pytest.mark.parametrize("path", ["both", "input", "target"])
def test_amrm_on_maskdit_equals_the_full_graph(which, path):
    model = MaskedDenoiser(network(), CHOICES[which])
    purifier = AMRMPure(model, replace(AMRM, gradient=path))
    x = images()
    upstream = DRAWN.fold("upstream").normal(3, 16, 16).double()

    with explicit_attention(model):
        value, expected = pulled(lambda leaf: full_graph(model, path, leaf), x, upstream)
    assert relative(expected, upstream) > 1e-3  # it does see the model
    for product, tolerance in (("hessian", 1e-10), ("central-difference", 1e-6)):
        gradient = GradientConfig(mode="tanh", product=product)
        found, slope = pulled(lambda z, g=gradient: purifier.differentiable(z, keys=DRAWN, gradient=g), x, upstream)
        torch.testing.assert_close(found, value, rtol=0, atol=1e-12)
        assert relative(slope, expected) < tolerance


@pytest.mark.parametrize("which", CHOICES)
@pytest.mark.parametrize("path", ["both", "input", "target"])
def test_gradients_in_the_weights_of_maskdit_equal_the_full_graph(which, path):
    """RAMRM, Eq. 7: through every step, under its own noise level, noise and mask, into every weight of the network."""
    model = MaskedDenoiser(network(), CHOICES[which])
    purifier = AMRMPure(model, replace(AMRM, gradient=path))
    weights = {name: weight.requires_grad_(True) for name, weight in model.named_parameters()}
    x = images()
    upstream = DRAWN.fold("upstream").normal(3, 16, 16).double()

    def slopes(purified):
        found = torch.autograd.grad(
            (purified * upstream).sum(), tuple(weights.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(weights, found, strict=True))

    with explicit_attention(model):
        expected = slopes(full_graph(model, path, x.clone().requires_grad_(True)))
    whole = torch.cat([slope.flatten() for slope in expected.values()])
    assert whole.norm() > 0
    reached = {name for name, slope in expected.items() if slope.norm() > 1e-9 * whole.norm()}
    assert {"blocks.0.attn.qkv.weight", "decoder_pred.weight"} <= {name.removeprefix("network.") for name in reached}
    for product, tolerance in (("hessian", 1e-10), ("forward-difference", 1e-4), ("central-difference", 1e-6)):
        gradient = GradientConfig(mode="tanh", product=product)
        purified = purifier.differentiable(x, keys=DRAWN, gradient=gradient, parameters=tuple(weights.values()))
        found = slopes(purified)
        assert relative(torch.cat([slope.flatten() for slope in found.values()]), whole) < tolerance, product


def test_truncated_gradients_in_the_weights_see_the_last_steps_alone():
    """The iterate before them is taken as given; clips and identity pass it, and no weight."""
    model = MaskedDenoiser(network(), CHOICES["own"])
    purifier = AMRMPure(model, AMRM)
    weights = tuple(weight.requires_grad_(True) for weight in model.parameters())
    x, upstream = images(), DRAWN.fold("upstream").normal(3, 16, 16).double()
    iterates = []
    purifier(x, keys=DRAWN, callback=lambda state: iterates.append(state["x"]))

    def slope(gradient):
        purified = purifier.differentiable(x, keys=DRAWN, gradient=gradient, parameters=weights)
        found = torch.autograd.grad((purified * upstream).sum(), weights, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    last = iterates[-1].clone().requires_grad_(True)
    mask = random_mask(DRAWN.fold("mask", STEPS - 1), (4, 4), 0.5)
    with explicit_attention(model):
        loss = model.drawn(DRAWN, draw=STEPS - 1, progress=1.0).reconstruct(last, mask).loss.sum()
        (fall,) = torch.autograd.grad(loss, last, create_graph=True)
        stepped = -LENGTH * torch.tanh(fall / fall.detach().abs().mean((1, 2, 3), keepdim=True))
        found = torch.autograd.grad((stepped * upstream).sum(), weights, allow_unused=True, materialize_grads=True)
    expected = torch.cat([part.flatten() for part in found])
    assert relative(slope(GradientConfig(mode="tanh", product="hessian", last=1)), expected) < 1e-10
    assert relative(slope(GradientConfig(mode="tanh", product="hessian")), expected) > 1e-2


@pytest.mark.parametrize("solver", ["heun", "ancestral"])
def test_diffusion_on_maskdit_equals_the_full_graph(solver):
    """Each step is computed again on the way back; here nothing is."""
    model, x = network(), images()
    upstream = DRAWN.fold("upstream").normal(3, 16, 16).double()
    purifier = DiffusionPurifier(model, DiffusionConfig(steps=3, solver=solver))
    _, slope = pulled(
        lambda z: purifier.differentiable(z, keys=DRAWN, gradient=GradientConfig(mode="exact")), x, upstream
    )

    def full_graph(leaf):
        levels = noise_grid(3, 0.34, 0.002)
        y = 2 * leaf - 1 + 0.34 * DRAWN.fold("diffuse").normal(3, 16, 16).double()
        for step, (level, following) in enumerate(pairwise(levels)):
            clean = model.denoise(y, torch.full((2,), level, dtype=y.dtype))
            if following == 0:
                y = clean
            elif solver == "heun":
                away = (y - clean) / level
                guess = y + (following - level) * away
                away_then = (guess - model.denoise(guess, torch.full((2,), following, dtype=y.dtype))) / following
                y = y + (following - level) * (away + away_then) / 2
            else:
                kept = following**2 / level**2
                z = DRAWN.fold("reverse", step).normal(3, 16, 16).double()
                y = kept * y + (1 - kept) * clean + following * (1 - kept) ** 0.5 * z
        return ((y + 1) / 2).clamp(0, 1)

    _, expected = pulled(full_graph, x, upstream)
    assert relative(slope, expected) < 1e-12
