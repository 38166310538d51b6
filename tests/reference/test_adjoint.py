"""Gradients through purification against the full unrolled graph and against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from robustmim.adjoint import Unrolled, smooth_sign
from robustmim.config import AMRMConfig, GradientConfig
from robustmim.descent import advance
from robustmim.geometry import Ball
from robustmim.models.masked import freeze
from robustmim.purify.amrm import AMRMPure, ReconstructionObjective, step_sizes
from robustmim.purify.load import load_purifier
from robustmim.radius import Radius
from robustmim.registry import build
from robustmim.rng import keys

SMOOTH = ("straight-through", "tanh", "rational", "normalised")


def small_conv(dtype=torch.float64):
    torch.manual_seed(0)
    return freeze(build("masked-model", "masked-conv", widths=(8, 16), blocks=(1, 1))).to(dtype)


def small_mae(dtype=torch.float64):
    torch.manual_seed(0)
    options = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    options |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    return freeze(build("masked-model", "mae", **options)).to(dtype)


def images(n=2, side=16, dtype=torch.float64):
    # Some pixels at 0 and 1, so that the clips bind.
    x = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype) * 1.4 - 0.2
    return x.clamp(0, 1)


def unrolled_by_autograd(purifier, x, drawn, gradient):
    """The plain way: the whole graph, second derivatives and all."""
    config = purifier.config
    ball = Ball(norm=config.norm, eps=config.radius)
    objective = ReconstructionObjective(purifier.model, config, drawn, purifier.model.grid(*x.shape[-2:]), twice=True)
    smooth = smooth_sign(gradient) if gradient.mode != "exact" and config.norm == "linf" else ball.steepest

    def direction(v):
        if gradient.mode == "exact" or config.norm != "linf" or gradient.forward == "smooth":
            return smooth(v)
        return v.sign().detach() + (smooth(v) - smooth(v).detach())

    def project(point, center):
        inside = ball.project(point, center)
        return inside if gradient.clip == "exact" else inside.detach() + (point - point.detach())

    current, velocity = x, torch.zeros_like(x) if config.momentum else None
    if config.start_noise:
        current = project(x + config.start_noise * drawn.fold("start").normal(*x.shape[1:]).to(x), x)
    iterates, values = [current], []
    for step, length in enumerate(step_sizes(config)):
        seen, target = current, current
        if config.gradient == "both":
            # One leaf for both paths, as the descent takes it.
            value = objective.between(seen, target, step)
            (slope,) = torch.autograd.grad(value.sum(), current, create_graph=True)
        else:
            seen = current.clone() if config.gradient == "input" else current
            target = current.clone() if config.gradient == "target" else current
            value = objective.between(seen, target, step)
            followed = seen if config.gradient == "input" else target
            (slope,) = torch.autograd.grad(value.sum(), followed, create_graph=True)
        values.append(value)
        current, velocity = advance(
            current, velocity, slope, x, length=-length, momentum=config.momentum, direction=direction, project=project
        )
        iterates.append(current)
    if config.output == "mean":
        return torch.stack(iterates).mean(0)
    if config.output == "best":
        best = torch.stack(values).argmin(0)
        return torch.stack(iterates)[best, torch.arange(len(x))]
    return current


def pulled(function, x, upstream):
    leaf = x.clone().requires_grad_(True)
    out = function(leaf)
    return out.detach(), torch.autograd.grad((out * upstream).sum(), leaf)[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


CONFIGS = {
    "plain": AMRMConfig(steps=3, step_size=Radius("6/255"), radius=Radius("12/255")),
    "momentum": AMRMConfig(
        steps=4, step_size=Radius("6/255"), schedule="cosine", momentum=0.7, radius=Radius("16/255")
    ),
    "mean": AMRMConfig(steps=3, step_size=Radius("6/255"), output="mean", mask_average=2, masks="complementary"),
    "best": AMRMConfig(steps=3, step_size=Radius("6/255"), output="best", momentum=0.5, start_noise=Radius("4/255")),
    "input": AMRMConfig(steps=3, step_size=Radius("6/255"), gradient="input"),
    "target": AMRMConfig(steps=3, step_size=Radius("6/255"), gradient="target"),
    "scales": AMRMConfig(steps=3, step_size=Radius("6/255"), mask_scales=(2, 1), mask_average=2),
    "l2": AMRMConfig(steps=3, step_size=Radius("0.5"), norm="l2", radius=Radius("0.8")),
}


@pytest.mark.parametrize("model", [small_conv, small_mae])
@pytest.mark.parametrize("which", CONFIGS)
@pytest.mark.parametrize("clip", ["exact", "straight-through"])
def test_equals_the_full_graph_in_float64(model, which, clip):
    purifier = AMRMPure(model(), CONFIGS[which])
    x, drawn = images(), keys(0, "test", torch.arange(2))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    for mode in ("exact", *SMOOTH):
        for product, tolerance in (("hessian", 1e-12), ("forward-difference", 1e-7), ("central-difference", 1e-7)):
            gradient = GradientConfig(mode=mode, clip=clip, product=product, temperature=0.8)
            expected_value, expected = pulled(
                lambda z, g=gradient: unrolled_by_autograd(purifier, z, drawn, g), x, upstream
            )
            value, found = pulled(lambda z, g=gradient: purifier.differentiable(z, keys=drawn, gradient=g), x, upstream)
            assert relative(value, expected_value) < 1e-12
            assert relative(found, expected) < tolerance, (mode, product)


@pytest.mark.parametrize("model", [small_conv, small_mae])
@pytest.mark.parametrize("mode", SMOOTH)
def test_equals_the_full_graph_in_float32(model, mode):
    purifier = AMRMPure(model(torch.float32), CONFIGS["momentum"])
    x, drawn = images(dtype=torch.float32), keys(0, "test", torch.arange(2))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for product in ("hessian", "forward-difference", "central-difference"):
        gradient = GradientConfig(mode=mode, product=product)
        _, expected = pulled(lambda z, g=gradient: unrolled_by_autograd(purifier, z, drawn, g), x, upstream)
        _, found = pulled(lambda z, g=gradient: purifier.differentiable(z, keys=drawn, gradient=g), x, upstream)
        assert relative(found, expected) < 1e-3


@pytest.mark.parametrize(("steps", "forward", "central"), [(6, 1e-3, 2e-4), (24, 3e-3, 1e-3)])
def test_what_single_precision_leaves_of_a_trained_model_s_gradient(steps, forward, central):
    """Against exact products in double precision at the same iterates; the signs of another precision would lead elsewhere.

    In one more gradient the rounding of two gradients (10⁻⁶ of their size) meets the curvature's change along the step: at the
    best length of the step some 10⁻³ of a product is left, and many steps add up. Two more gradients leave a tenth.
    """
    shipped = load_purifier("amrm-mae-patch4-cifar10")
    config = replace(shipped.config, steps=steps)
    single, double = shipped.model, copy.deepcopy(shipped.model).double()
    drawn = keys(0, "test", torch.arange(2))
    x, upstream = drawn.fold("image").uniform(3, 32, 32), drawn.fold("upstream").normal(3, 32, 32)

    def unrolled(model, product):
        objective = ReconstructionObjective(model, config, drawn, model.grid(32, 32), twice=product == "hessian")
        return Unrolled(
            objective=objective,
            ball=Ball(eps=config.radius),
            lengths=step_sizes(config),
            momentum=config.momentum,
            gradient=GradientConfig(mode="tanh", product=product),
        )

    with torch.no_grad():
        _, *path = unrolled(single, "forward-difference").descend(x)
        wide = [[step.double() for step in part] for part in path]
        exact, _ = unrolled(double, "hessian").pull_back(x.double(), *wide, upstream.double())
        for product, tolerance in (("forward-difference", forward), ("central-difference", central)):
            found, _ = unrolled(single, product).pull_back(x, *path, upstream)
            assert relative(found.double(), exact) < tolerance, product


@pytest.mark.parametrize("model", [small_conv, small_mae])
@pytest.mark.parametrize("which", ["momentum", "mean", "input", "target", "scales"])
def test_gradients_in_the_weights_equal_the_full_graph(model, which):
    """RAMRM, Eq. 7: through every step of the purification into the masked model."""
    purifier = AMRMPure(model(), CONFIGS[which])
    weights = tuple(weight.requires_grad_(True) for weight in purifier.model.parameters())
    x, drawn = images(3), keys(0, "test", torch.arange(3))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    for product, tolerance in (("hessian", 1e-10), ("forward-difference", 1e-4), ("central-difference", 1e-6)):
        gradient = GradientConfig(mode="tanh", product=product)
        plain = unrolled_by_autograd(purifier, x.clone().requires_grad_(True), drawn, gradient)
        ours = purifier.differentiable(x, keys=drawn, gradient=gradient, parameters=weights)
        expected, found = (
            torch.cat(
                [
                    slope.flatten()
                    for slope in torch.autograd.grad(
                        (purified * upstream).sum(), weights, allow_unused=True, materialize_grads=True
                    )
                ]
            )
            for purified in (plain, ours)
        )
        assert expected.norm() > 0
        assert relative(found, expected) < tolerance, product


def test_the_algorithm_as_printed_teaches_the_weights_nothing():
    """The derivative of the sign is zero, so Eq. 7 of AMRM-Pure has no gradient in the weights."""
    purifier = AMRMPure(small_conv(), CONFIGS["plain"])
    weights = tuple(weight.requires_grad_(True) for weight in purifier.model.parameters())
    x, drawn = images(), keys(0, "test", torch.arange(2))
    purified = purifier.differentiable(x, keys=drawn, gradient=GradientConfig(mode="exact"), parameters=weights)
    assert all((slope == 0).all() for slope in torch.autograd.grad(purified.square().sum(), weights))


@pytest.mark.parametrize("mode", ["tanh", "rational", "normalised"])
def test_is_the_slope_of_the_smooth_purifier(mode):
    """Finite differences know nothing of graphs: the purifier itself, moved a little either way."""
    config = AMRMConfig(steps=3, step_size=Radius("3/255"), momentum=0.6, schedule="cosine", radius=Radius("inf"))
    purifier = AMRMPure(small_conv(), config)
    # Away from 0 and 1, so that no clip binds; τ is taken as constant, so the direction leaves the gradient's scale alone.
    x, drawn = images() * 0.2 + 0.4, keys(0, "test", torch.arange(2))
    generator = torch.Generator().manual_seed(3)
    gradient = GradientConfig(mode=mode, clip="exact", product="hessian", forward="smooth")
    upstream, way = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))

    def purified(z):
        return purifier.differentiable(z, keys=drawn, gradient=gradient)

    _, slope = pulled(purified, x, upstream)
    step = 1e-6
    difference = ((purified(x + step * way) - purified(x - step * way)) * upstream).sum() / (2 * step)
    tolerance = 1e-6 if mode == "normalised" else 0.02  # the scale that τ follows does move
    torch.testing.assert_close((slope * way).sum(), difference, rtol=tolerance, atol=0)


def test_the_last_steps_alone_and_a_wider_ball():
    purifier = AMRMPure(small_conv(), CONFIGS["momentum"])
    x, drawn = images(), keys(0, "test", torch.arange(2))
    upstream = torch.ones_like(x)

    def slope(**options):
        gradient = GradientConfig(mode="tanh", product="hessian", **options)
        return pulled(lambda z: purifier.differentiable(z, keys=drawn, gradient=gradient), x, upstream)

    torch.testing.assert_close(slope(last=4)[1], slope()[1])
    assert relative(slope(last=1)[1], slope()[1]) > 1e-3
    torch.testing.assert_close(slope(last=0, clip="straight-through")[1], upstream)  # nothing seen: the identity
    # The forward pass is the published purifier's unless the attacker takes another one.
    torch.testing.assert_close(slope()[0], purifier(x, keys=drawn))
    assert (slope(ball_scale=2.0, steps=6)[0] - purifier(x, keys=drawn)).abs().max() > 1 / 255


def test_a_sample_alone_has_the_same_gradient():
    purifier = AMRMPure(small_conv(), CONFIGS["momentum"])
    x, drawn = images(4), keys(0, "test", torch.arange(4))
    gradient = GradientConfig(mode="tanh")
    _, together = pulled(lambda z: purifier.differentiable(z, keys=drawn, gradient=gradient), x, torch.ones_like(x))
    one = torch.tensor([2])
    _, alone = pulled(
        lambda z: purifier.differentiable(z, keys=drawn[one], gradient=gradient), x[one], torch.ones_like(x[one])
    )
    torch.testing.assert_close(alone[0], together[2], rtol=1e-6, atol=1e-9)


class Held:
    """A tensor that autograd keeps for the backward pass; counts while it lives."""

    live = peak = 0

    def __init__(self, tensor):
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.live += self.size
        Held.peak = max(Held.peak, Held.live)

    def __del__(self):
        Held.live -= self.size


def peak_of(steps, product):
    """Return the most bytes that autograd holds at any moment of a forward and a backward pass."""
    x, drawn = images(2, 32, torch.float32), keys(0, "test", torch.arange(2))
    purifier = AMRMPure(small_conv(torch.float32), AMRMConfig(steps=steps, momentum=0.5))
    gradient = GradientConfig(mode="tanh", product="hessian" if product == "full graph" else product)

    def purified(leaf):
        if product == "full graph":
            return unrolled_by_autograd(purifier, leaf, drawn, gradient)
        return purifier.differentiable(leaf, keys=drawn, gradient=gradient)

    Held.peak = Held.live
    before = Held.live
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        pulled(purified, x, torch.ones_like(x))
    return Held.peak - before


def test_memory_does_not_grow_with_the_steps():
    for product in ("hessian", "forward-difference"):
        assert peak_of(12, product) < 1.1 * peak_of(3, product)
    assert peak_of(12, "full graph") > 3 * peak_of(3, "full graph")
