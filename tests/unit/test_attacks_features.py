"""PGD on features goes where algebra says, sees through a purifier, and finds the layer it is told to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.attacks.parts import Parts, captured, last_of
from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.errors import RecipeError
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.purify.traits import Traits
from robustmim.radius import Radius
from robustmim.registry import build
from tests.toys import images, network, purifier, target_of


class Noise:
    """Adds its draw, and nothing else."""

    traits = Traits(randomised=True, optimises_at_test_time=False, steps=1)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x, *, keys, callback=None):
        return x + self.scale * keys.normal(*x.shape[1:])


def linear_features():
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5, bias=False), nn.Linear(5, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def test_with_linear_features_it_finds_the_largest_singular_value():
    """In l2, mean (W δ)² is at most σ₁² ε² / d, reached along the first right singular vector."""
    model, x = linear_features(), torch.full((3, 3, 6, 6), 0.5)
    ball = Ball(norm="l2", eps=0.2)
    found = build("attack", "features", steps=80, drop=False)(
        target_of(x, classifier=model), x, torch.zeros(3).long(), ball
    )
    moved = ((found - x).flatten(1) @ model[1].weight.T).square().mean(1)
    best = torch.linalg.matrix_norm(model[1].weight, 2) ** 2 * 0.2**2 / 5
    torch.testing.assert_close(moved, best.expand(3), rtol=0.01, atol=0)


def test_its_gradient_is_that_of_finite_differences():
    x, told = images(3).double(), []
    model = network().double()
    features = nn.Sequential(*list(model)[:-1])
    build("attack", "features", steps=3, drop=False)(
        target_of(x, classifier=model), x, model(x).argmax(1), Ball(eps=0.1), callback=told.append
    )

    def distance(z):
        return (features(z) - features(x)).square().mean(1)

    for note in told:
        torch.testing.assert_close(note["value"], distance(note["x"]), rtol=1e-6, atol=1e-9)
        shift = torch.zeros_like(x)
        shift[:, 1, 2, 3] = 1e-6
        slope = (distance(note["x"] + shift) - distance(note["x"] - shift)) / 2e-6
        torch.testing.assert_close(note["gradient"][:, 1, 2, 3], slope, rtol=1e-5, atol=1e-9)


def test_the_clean_features_are_their_mean_over_the_draws():
    """Behind a purifier that adds noise, linear features move by W (δ + noise − mean noise of the first query)."""
    model, x, told = linear_features(), torch.full((2, 3, 6, 6), 0.5), []
    target = target_of(x, through=Noise(0.02), classifier=model, draws=3)
    build("attack", "features", steps=2, drop=False)(
        target, x, torch.zeros(2).long(), Ball(eps=0.1), callback=told.append
    )
    mean = torch.stack([target.keys.fold("eot", 0, d).normal(3, 6, 6) for d in range(3)]).mean(0) * 0.02
    for note in told:
        noise = [0.02 * target.keys.fold("eot", note["step"], d).normal(3, 6, 6) for d in range(3)]
        moved = [((note["x"] - x + n - mean).flatten(1) @ model[1].weight.T).square().mean(1) for n in noise]
        torch.testing.assert_close(note["value"], torch.stack(moved).mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_lie_in_the_ball_and_do_not_depend_on_the_batch(norm):
    ball = Ball(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    x = images()
    y = network()(x).argmax(1)
    attack = build("attack", "features", steps=6)
    found = attack(target_of(x, through=purifier(), draws=2), x, y, ball)
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1
    assert (found != x).flatten(1).any(1).all()
    for some in (torch.tensor([4]), torch.tensor([5, 1])):
        alone = attack(target_of(x[some], through=purifier(), draws=2), x[some], y[some], ball)
        torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-5)


def test_what_falls_is_confirmed_on_the_answers_and_then_left_alone():
    x = images(12)
    y = network()(x).argmax(1)
    ball = Ball(norm="l2", eps=4.0)
    dropping, staying = (target_of(x, through=Noise(0.01), draws=2) for _ in range(2))
    found = build("attack", "features", steps=20)(dropping, x, y, ball)
    build("attack", "features", steps=20, drop=False)(staying, x, y, ball)
    assert (network()(found).argmax(1) != y).any()
    assert dropping.cost.backward < staying.cost.backward


def test_the_layer_is_the_last_linear_one_or_the_one_named():
    parts = Parts(classifier=network())
    assert parts.layer(None) is parts.classifier[3]
    assert parts.layer("1") is parts.classifier[1]
    with pytest.raises(RecipeError, match="no layer '7'"):
        parts.layer("7")
    with pytest.raises(RecipeError, match="Flatten has no linear layer"):
        Parts(classifier=nn.Flatten()).layer(None)
    layer = parts.classifier[3]
    with captured(layer) as seen:
        parts.classifier(images(2))
    parts.classifier(images(3))
    assert [len(one) for one in seen] == [2]
    assert not layer._forward_pre_hooks
    with pytest.raises(RecipeError, match="takes no part"):
        last_of([])


def test_a_classifier_without_features_is_refused_when_the_evaluator_is_built():
    class Sums(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    plain = EvaluateRecipe(radii=(Radius("8/255"),), attacks=(AttackConfig(name="f", attack="features"),))
    with pytest.raises(RecipeError, match="Sums has no linear layer"):
        Evaluator(Sums(), None, plain)
    named = AttackConfig(name="f", attack="features", options={"layer": "bod"})
    with pytest.raises(RecipeError, match="no layer 'bod'"):
        Evaluator(network(), None, EvaluateRecipe(radii=(Radius("8/255"),), attacks=(named,)))
    Evaluator(network(), purifier(), plain)
