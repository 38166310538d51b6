"""BPDA with a replacement: the values are the purifier's, the derivative is the other function's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustmim.attacks.target import Target
from robustmim.config import AttackConfig, EvaluateRecipe, GradientConfig, ReconstructionConfig
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.purify.defended import Defended
from robustmim.purify.imitation import Imitation, imitate
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.replacement import gaussian_blur, make_replacement
from robustmim.purify.traits import Traits
from robustmim.radius import Radius
from robustmim.registry import build
from robustmim.rng import Keys, keys
from tests.toys import images, network, purifier
from tests.unit.test_evaluate import Halves, Purify, concluded, levels, recipe

BALL = Ball(norm="linf", eps=0.1)
DRAWN = keys(3, "draw", torch.arange(4))


class Negative:
    """Gives the negative of an image, and no gradient; the identity is as wrong about it as can be."""

    traits = Traits(randomised=False, optimises_at_test_time=False, steps=1)

    def __init__(self):
        self.asked = 0

    def __call__(self, x, *, keys, callback=None):
        self.asked += len(x)
        return (1 - x).detach()


def smooth(n, seed=1):
    """Images of 16 × 16 pixels in which neighbours are alike."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=16, mode="bilinear")


def replaced(name, **options):
    return GradientConfig(mode="replacement", replacement=name, **options)


def gradient_of(function, x, weight):
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad((function(leaf) * weight).sum(), leaf)
    return slope


class Weighted(nn.Module):
    """Shows the gradient that arrives at the purified image: the sum of the pixels times a fixed weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(5))

    def forward(self, x):
        return (x * self.weight[: len(x)]).sum((1, 2, 3))[:, None]


def pulled(defence, x, drawn=DRAWN):
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(defence(leaf, drawn).sum(), leaf)
    return slope


def test_the_blur_is_a_gaussian_that_keeps_grey_images_grey():
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gaussian_blur(x, 1.3)
    expected = torch.zeros_like(x)
    for row in range(9):
        for column in range(7):
            rows = torch.arange(9).double()[:, None] - row
            columns = torch.arange(7).double()[None] - column
            near = (rows.abs() <= math.ceil(3.9)) & (columns.abs() <= math.ceil(3.9))
            weight = torch.exp(-(rows**2 + columns**2) / (2 * 1.3**2)) * near
            expected[:, :, row, column] = (x * weight).sum((2, 3)) / weight.sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gaussian_blur(torch.full_like(x, 0.3), 2.0), torch.full_like(x, 0.3))


@pytest.mark.parametrize("name", ["blur", "one-step", "reconstruction"])
def test_values_are_the_purifiers_and_the_gradient_is_the_replacements(name):
    x, defence = images(4), purifier(steps=3)
    gradient = replaced(name, blur=0.8)
    through = Defended(defence, Weighted(), gradient=gradient)
    assert torch.equal(through(x, DRAWN), Weighted()(defence(x, keys=DRAWN)))
    expected = {
        "blur": lambda z: gaussian_blur(z, 0.8),
        "one-step": lambda z: defence.differentiable(z, keys=DRAWN, gradient=GradientConfig(mode="tanh", steps=1)),
        "reconstruction": lambda z: MaskedReconstruction(
            defence.model, ReconstructionConfig(mask_ratio=0.25)
        ).differentiable(z, keys=DRAWN, gradient=GradientConfig(mode="exact")),
    }[name]
    slope = pulled(through, x)
    torch.testing.assert_close(slope, gradient_of(expected, x, Weighted().weight))
    assert not torch.allclose(slope, Weighted().weight, atol=1e-3)  # the identity's


@pytest.mark.parametrize("name", ["blur", "one-step", "reconstruction"])
def test_a_smooth_forward_pass_never_asks_the_purifier(name):
    x, defence = images(4), purifier()
    gradient = replaced(name, forward="smooth")
    stand_in = make_replacement(defence, gradient)(x, DRAWN, 0.0)
    torch.testing.assert_close(Defended(defence, Weighted(), gradient=gradient)(x, DRAWN), Weighted()(stand_in))


def test_any_function_may_stand_in():
    x = images(4)
    defence = Defended(
        Negative(),
        Weighted(),
        gradient=GradientConfig(mode="replacement"),
        replacement=lambda z, drawn, progress: -3 * z,
    )
    torch.testing.assert_close(pulled(defence, x), -3 * Weighted().weight)
    with pytest.raises(RecipeError, match="mode is identity, not replacement"):
        Defended(Negative(), Weighted(), replacement=lambda z, drawn, progress: z)


class TestImitation:
    def test_it_begins_as_the_identity_and_the_same_arguments_give_the_same_network(self):
        x = images(4)
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        assert torch.equal(Imitation(3, 8, Keys(DRAWN.values[:1]))(x), x)
        first, second = (imitate(purifier(), x, BALL, steps=5, width=8) for _ in range(2))
        assert torch.equal(first(x), second(x))
        assert not torch.equal(first(x), imitate(purifier(), x, BALL, steps=5, width=8, seed=1)(x))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_it_learns_what_the_purifier_does_and_its_derivative(self):
        x, fresh = smooth(32), smooth(8, seed=9)
        learnt = imitate(Negative(), x, BALL, steps=200, width=16)
        assert (learnt(fresh) - (1 - fresh)).abs().mean() < 0.05
        derivative = gradient_of(learnt, fresh, torch.ones_like(fresh))
        assert abs(derivative.mean() + 1) < 0.1

    def test_pgd_through_it_breaks_what_pgd_through_the_identity_cannot(self):
        """Behind a negative the identity's gradient points the wrong way for every image."""
        x = smooth(24, seed=3)
        y = Halves()(1 - x).argmax(1)
        learnt = imitate(Negative(), smooth(32), BALL, steps=200, width=16)
        gradient = GradientConfig(mode="replacement")
        defences = {
            "identity": Defended(Negative(), Halves()),
            "imitation": Defended(
                Negative(), Halves(), gradient=gradient, replacement=lambda z, drawn, progress: learnt(z)
            ),
            "exact": lambda z, drawn, progress: Halves()(1 - z),
        }
        standing = {}
        for name, scores in defences.items():
            target = Target(scores=scores, keys=keys(0, "attack", torch.arange(24)))
            found = build("attack", "pgd", steps=10, random_start=False)(target, x, y, BALL)
            standing[name] = float((Halves()(1 - found).argmax(1) == y).float().mean())
        assert standing["identity"] == 1.0
        assert standing["exact"] < 0.3
        assert standing["imitation"] <= standing["exact"] + 0.1

    def test_an_evaluator_learns_it_once_for_each_budget_and_no_sample_depends_on_its_batch(self):
        x = images(4)
        y = network()(1 - x).argmax(1)
        attack = AttackConfig(name="i", options={"steps": 4}, gradient=replaced("imitation", forward="smooth"))
        radii = (Radius("8/255"), Radius("16/255"))
        defence = Negative()
        evaluator = Evaluator(network(), defence, EvaluateRecipe(radii=radii, attacks=(attack,)), images(6, seed=4))
        found = {}
        for places in ([0, 1, 2, 3], [2], [3, 1]):
            some = torch.tensor(places)
            target = evaluator.target(attack, Batch(x[some], y[some], some), radii[1])
            assert not target.drop  # what falls before the imitation need not fall before the purifier
            ball = Ball(norm="linf", eps=radii[1])
            attacked = evaluator.attacks["i"](target, x[some], y[some], ball)
            assert (ball.distance(attacked, x[some]) <= ball.eps * (1 + 1e-5)).all()
            for place, image in zip(places, attacked, strict=True):
                torch.testing.assert_close(image, found.setdefault(place, image), rtol=0, atol=1e-5)
        assert defence.asked == 4 * 6  # to learn from, and never again
        evaluator.target(attack, Batch(x, y, torch.arange(4)), radii[0])
        assert defence.asked == 2 * 4 * 6


def test_what_a_defence_cannot_offer_is_refused_when_the_evaluator_is_built():
    for name, words in (
        ("one-step", "Negative offers no gradient"),
        ("reconstruction", "Negative has no masked model"),
        ("imitation", "images of the data besides"),
    ):
        attack = AttackConfig(name="a", gradient=replaced(name))
        with pytest.raises(RecipeError, match=words):
            Evaluator(network(), Negative(), EvaluateRecipe(radii=(Radius("8/255"),), attacks=(attack,)))
    with pytest.raises(RecipeError, match="positive number of pixels"):
        Defended(Negative(), network(), gradient=replaced("blur", blur=0.0))
    with pytest.raises(RecipeError, match="learnt from images"):
        Defended(Negative(), network(), gradient=replaced("imitation"))


def test_a_blur_counts_as_an_attack_that_does_not_see_the_purifier(tmp_path):
    quiet = Purify(lambda x, drawn: x, randomised=False)
    for name, told in (("blur", True), ("imitation", False)):
        attack = AttackConfig(name="a", gradient=replaced(name), options={"steps": 2})
        evaluator = Evaluator(Halves(), quiet, recipe(attack), torch.rand(4, 3, 8, 8))
        content = concluded(tmp_path / name, evaluator)
        assert ("identity-gradient" in levels(content)) == told
        assert name in content["attacks"]["a"]["gradient"]
