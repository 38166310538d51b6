"""SOAP: a plain loop over radii, a case known by heart, and gradients of the full graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.adjoint import smooth_sign
from robustmim.config import GradientConfig
from robustmim.errors import InputError, RecipeError
from robustmim.models.zoo import load_model
from robustmim.purify.baselines.soap import Consistency, Rotation, Soap
from robustmim.purify.load import load_purifier
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.rng import keys
from tests.unit.test_masked_models import tiny_conv

KEYS = keys(0, "test", torch.arange(4))


def classifier(classes=4, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, classes)
    )
    for parameter in layers.parameters():
        parameter.data *= 3
    return layers.eval()


def images(dtype=torch.float32):
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)


def soap(auxiliary, **options):
    model = tiny_conv() if auxiliary == "reconstruction" else classifier()
    return Soap(model, auxiliary=auxiliary, **{"radii": 3, "steps": 3, **options})


def by_hand(purifier, objective, x):
    """Do what the paper says in the plainest way."""
    found, losses = [x], [objective(x, 0)]
    for number in range(1, purifier.radii + 1):
        point = x.clone()
        for step in range(purifier.steps):
            leaf = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(leaf, step).sum(), leaf)
            shift = point - purifier.step_size * gradient.sign() - x
            point = (x + shift.clamp(-number * purifier.radius, number * purifier.radius)).clamp(0, 1)
        found.append(point)
        losses.append(objective(point, purifier.steps))
    best = torch.stack(losses).argmin(0)
    return torch.stack(found)[best, torch.arange(len(x))], best


@pytest.mark.parametrize("auxiliary", ["consistency", "rotation", "reconstruction"])
def test_does_what_the_paper_says(auxiliary):
    x, purifier = images(torch.float64), soap(auxiliary)
    purifier.network.double()
    objective = purifier._objective(KEYS, x)
    expected, best = by_hand(purifier, objective, x)
    found = purifier(x, keys=KEYS)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert (objective(found, 0) <= objective(x, 0)).all()
    assert best.max() > 0
    assert (found - x).abs().max() <= purifier.traits.ball.eps + 1e-9


class LeftMinusRight(nn.Module):
    """One logit: the mean of the left half minus that of the right half. A mirror turns its sign."""

    def forward(self, x):
        half = x.shape[-1] // 2
        return (x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3)))[:, None]


def test_the_radius_of_least_loss_is_kept():
    # The halves differ by 23/255; each step takes 8/255 from that, to 15, 7 and -1, and then goes to and fro. So three times
    # 4/255 is the first radius that leaves 1/255.
    x = torch.full((2, 3, 16, 16), 100 / 255, dtype=torch.float64)
    x[..., :8] += 23 / 255
    found = Soap(LeftMinusRight())(x, keys=KEYS[:2])
    torch.testing.assert_close(found[..., :8], x[..., :8] - 12 / 255)
    torch.testing.assert_close(found[..., 8:], x[..., 8:] + 12 / 255)


def test_an_image_that_nothing_improves_stays():
    x = torch.full((2, 3, 16, 16), 0.5, dtype=torch.float64)
    assert torch.equal(Soap(LeftMinusRight())(x, keys=KEYS[:2]), x)


def test_the_second_view_is_mirrored_and_enlarged():
    seen = []

    class Keep(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)

    x = images()
    loss = Consistency(Keep())(x, 0)
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1][..., 0, 0], x[..., 2, 13])
    assert torch.equal(seen[1][..., 15, 15], x[..., 13, 2])
    torch.testing.assert_close(loss, (seen[0] - seen[1]).square().mean((1, 2, 3)))


def test_rotation_is_the_cross_entropy_of_four_turns():
    x, model = images(), classifier()
    turned = torch.cat([x, x.transpose(2, 3).flip(3), x.flip(2, 3), x.transpose(2, 3).flip(2)])
    expected = nn.functional.cross_entropy(model(turned), torch.arange(4).repeat_interleave(4), reduction="none")
    torch.testing.assert_close(Rotation(model)(x, 0), expected.view(4, 4).mean(0))


@pytest.mark.parametrize("auxiliary", ["consistency", "rotation", "reconstruction"])
def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(auxiliary):
    x, purifier = images(), soap(auxiliary)
    assert isinstance(purifier, DifferentiablePurifier)
    assert not purifier.traits.randomised
    steps = []
    together = purifier(x, keys=KEYS, callback=lambda state: steps.append(state["step"]))
    assert steps == list(range(9))
    assert torch.equal(purifier(x, keys=keys(7, "other", torch.arange(4))), together)
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 16)


def test_the_attackers_images_are_the_defences_and_the_exact_gradient_that_of_the_clips():
    x, purifier = images(torch.float64), soap("consistency")
    purifier.network.double()
    point = x.clone().requires_grad_()
    config = GradientConfig(mode="exact", clip="exact")
    found = purifier.differentiable(point, keys=KEYS, gradient=config)
    assert torch.equal(found.detach(), purifier(x, keys=KEYS))
    (gradient,) = torch.autograd.grad(found.sum(), point)
    assert ((gradient - 1).abs() < 1e-9).logical_or(gradient.abs() < 1e-9).all()


@pytest.mark.parametrize("auxiliary", ["consistency", "rotation"])
def test_smooth_gradient_is_that_of_the_full_graph(auxiliary):
    x, purifier = images(torch.float64), soap(auxiliary)
    purifier.network.double()
    config = GradientConfig(mode="tanh", forward="smooth", product="hessian")
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = x.clone().requires_grad_()
    found = purifier.differentiable(point, keys=KEYS, gradient=config)
    (gradient,) = torch.autograd.grad((weights * found).sum(), point)

    objective, smooth = purifier._objective(KEYS, x), smooth_sign(config)
    _, chosen = by_hand(purifier, objective, x)
    assert chosen.max() > 0
    rows = []
    leaf = x.clone().requires_grad_()
    for sample, number in enumerate(chosen.tolist()):
        own = current = leaf[sample : sample + 1]
        for step in range(purifier.steps if number else 0):
            (slope,) = torch.autograd.grad(objective(current, step).sum(), current, create_graph=True)
            moved = current - purifier.step_size * smooth(slope)
            low, high = own - number * purifier.radius, own + number * purifier.radius
            clipped = torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
            current = clipped.detach() + moved - moved.detach()
        rows.append(current)
    expected = torch.cat(rows)
    torch.testing.assert_close(found, expected)
    (full,) = torch.autograd.grad((weights * expected).sum(), leaf)
    torch.testing.assert_close(gradient, full, rtol=1e-6, atol=1e-9)
    assert (full - weights).abs().max() > 1e-3


def test_the_shipped_recipe_builds_it_on_the_classifier_that_is_defended():
    classifier = load_model("fast-cnn-cifar10")
    assert load_purifier("soap-cifar10", classifier=classifier).traits.ball.eps == pytest.approx(40 / 255)
    with pytest.raises(RecipeError, match="the classifier that it defends"):
        load_purifier("soap-cifar10")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "at least one step"),
        ({"radius": 0.0}, "above 0"),
        ({"auxiliary": "reconstruction"}, "needs a masked model"),
        ({"mask_ratio": 1.5}, "mask ratio"),
    ],
)
def test_mistakes_are_named(options, says):
    with pytest.raises(RecipeError, match=says):
        Soap(classifier(), **options)


def test_a_rotation_needs_four_classes_and_images_their_range():
    with pytest.raises(RecipeError, match="four classes"):
        Soap(classifier(3), auxiliary="rotation")(images(), keys=KEYS)
    with pytest.raises(InputError, match="255"):
        Soap(classifier())(images() * 255, keys=KEYS)
