"""PGD-MI climbs MIMIR's Eq. 21 with any estimator, and no image depends on who else is in its batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.attacks.objectives import cross_entropy
from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.errors import RecipeError
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.information.estimators import ESTIMATORS, estimator
from robustmim.radius import Radius
from robustmim.registry import build
from tests.toys import images, network, purifier, target_of

BALL = Ball(norm="linf", eps=0.1)
REFERENCE = images(12, seed=7)


def estimate(name, image, others, features):
    """Eq. 21's second term, written out for one image."""
    return estimator(name)(torch.cat([image[None], others]), features(torch.cat([image[None], others])))


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_what_is_climbed_is_eq_21_and_its_gradient_that_of_finite_differences(name):
    model, x, others = network().double(), images(2).double(), REFERENCE[:7].double()
    features = nn.Sequential(*list(model)[:-1])
    y, told = model(x).argmax(1), []
    attack = build("attack", "mutual-information", weight=3.0, estimator=name, images=8, steps=2, drop=False)
    attack(target_of(x, classifier=model, reference=others), x, y, BALL, callback=told.append)

    def objective(z):
        terms = [estimate(name, image, others, features) for image in z]
        return cross_entropy(model(z), y) + 3 * torch.stack(terms)

    for note in told:
        torch.testing.assert_close(note["value"], objective(note["x"]), rtol=1e-6, atol=1e-8)
        if "kernel" in name or "hsic" in name or name == "renyi":
            continue  # their widths follow the data and are constants to the gradient
        shift = torch.zeros_like(x)
        shift[:, 1, 2, 3] = 1e-6
        slope = (objective(note["x"] + shift) - objective(note["x"] - shift)) / 2e-6
        torch.testing.assert_close(note["gradient"][:, 1, 2, 3], slope, rtol=1e-4, atol=1e-7)


def test_a_fixed_width_makes_the_whole_gradient_that_of_finite_differences():
    model, x, others = network().double(), images(2).double(), REFERENCE[:7].double()
    features = nn.Sequential(*list(model)[:-1])
    y, told = model(x).argmax(1), []
    width = {"width": {"rule": "fixed", "value": 3.0}}
    attack = build(
        "attack",
        "mutual-information",
        weight=30.0,
        estimator="hsic",
        estimator_options=width,
        images=8,
        steps=2,
        drop=False,
    )
    attack(target_of(x, classifier=model, reference=others), x, y, BALL, callback=told.append)

    def objective(z):
        every = [torch.cat([image[None], others]) for image in z]
        return cross_entropy(model(z), y) + 30 * torch.stack(
            [estimator("hsic", **width)(e, features(e)) for e in every]
        )

    for note in told:
        shift = torch.zeros_like(x)
        shift[:, 0, 3, 1] = 1e-6
        slope = (objective(note["x"] + shift) - objective(note["x"] - shift)) / 2e-6
        torch.testing.assert_close(note["gradient"][:, 0, 3, 1], slope, rtol=1e-4, atol=1e-8)


def test_the_weight_decides_and_none_is_pgd():
    x = images(8)
    model = network()
    y = model(x).argmax(1)
    features = nn.Sequential(*list(model)[:-1])

    def attacked(weight):
        attack = build("attack", "mutual-information", weight=weight, images=8, steps=12, drop=False)
        return attack(target_of(x, reference=REFERENCE), x, y, BALL)

    assert torch.equal(attacked(0.0), build("attack", "pgd", steps=12, drop=False)(target_of(x), x, y, BALL))
    told = [
        float(
            torch.stack([estimate("kernel-cka", image, REFERENCE[:7], features) for image in attacked(weight)]).mean()
        )
        for weight in (-100.0, 0.0, 100.0)
    ]
    assert told[0] < told[1] < told[2]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_lie_in_the_ball_and_do_not_depend_on_the_batch(norm):
    ball = Ball(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    x = images()
    y = network()(x).argmax(1)
    attack = build("attack", "mutual-information", images=6, steps=6, estimator="renyi")
    found = attack(target_of(x, through=purifier(), draws=2, reference=REFERENCE), x, y, ball)
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1
    for some in (torch.tensor([4]), torch.tensor([5, 1])):
        target = target_of(x[some], through=purifier(), draws=2, reference=REFERENCE)
        torch.testing.assert_close(attack(target, x[some], y[some], ball), found[some], rtol=0, atol=1e-5)


def test_it_is_refused_where_there_is_too_little_to_estimate_from():
    recipe = EvaluateRecipe(radii=(Radius("8/255"),), attacks=(AttackConfig(name="mi", attack="mutual-information"),))
    with pytest.raises(RecipeError, match="images of the data besides the attacked ones"):
        Evaluator(network(), None, recipe)
    with pytest.raises(RecipeError, match="set `images` to 13 or less"):
        Evaluator(network(), None, recipe, REFERENCE)
    Evaluator(network(), None, recipe, images(15))
    with pytest.raises(RecipeError, match="Did you mean 'renyi'"):
        build("attack", "mutual-information", estimator="reny")
    with pytest.raises(RecipeError, match="four images at least"):
        build("attack", "mutual-information", images=3)
