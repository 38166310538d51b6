"""Anti-adversary: a case known by heart, what it refuses, and gradients of the full graph."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustmim.adjoint import smooth_sign
from robustmim.config import GradientConfig
from robustmim.errors import RecipeError
from robustmim.purify.baselines.anti_adversary import AntiAdversary
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(3))
X = 0.3 + 0.4 * torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(24, 4))
    return layers.double()


def test_a_linear_classifier_is_followed_to_the_border_of_the_ball():
    line = nn.Sequential(nn.Flatten(), nn.Linear(108, 2, bias=False)).double()
    purifier = AntiAdversary(line, steps=3, step_size=0.02, radius=0.05)
    purified = purifier(X, keys=KEYS)
    answers = line(X).argmax(1)
    # Two classes: the doubt falls along the difference of the two rows, whatever the logits.
    toward = (line[1].weight[answers] - line[1].weight[1 - answers]).sign().view_as(X)
    torch.testing.assert_close(purified, (X + 0.05 * toward).clamp(0, 1))


def test_the_answer_stays_and_becomes_surer_and_a_sample_is_the_same_alone():
    classifier = network()
    purifier = AntiAdversary(classifier, steps=2, step_size=0.03, radius=0.05)
    purified = purifier(X, keys=KEYS)
    before, after = classifier(X).softmax(1), classifier(purified).softmax(1)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert (after.amax(1) > before.amax(1)).all()
    assert torch.equal(purifier(X[1:2], keys=KEYS[1:2]), purified[1:2])
    assert not purifier.traits.randomised
    states = []
    purifier(X, keys=KEYS, callback=states.append)  # three samples, padded to four
    assert [state["step"] for state in states] == [0, 1]
    assert all(len(state[name]) == 3 for state in states for name in ("x", "value", "gradient", "center"))


@pytest.mark.parametrize("mode", ["tanh", "rational", "straight-through"])
def test_its_gradient_is_that_of_the_full_graph(mode):
    classifier = network()
    purifier = AntiAdversary(classifier, steps=2, step_size=0.03, radius=0.5)
    gradient = GradientConfig(mode=mode, product="hessian", forward="smooth")
    weights = torch.randn(X.shape, generator=torch.Generator().manual_seed(1)).double()
    leaf = X.clone().requires_grad_(True)
    found = purifier.differentiable(leaf, keys=KEYS, gradient=gradient)
    (slope,) = torch.autograd.grad((weights * found).sum(), leaf)

    answers, current, smooth = classifier(X).argmax(1), leaf, smooth_sign(gradient)
    for _ in range(2):
        doubt = F.cross_entropy(classifier(current), answers, reduction="sum")
        (push,) = torch.autograd.grad(doubt, current, create_graph=True)
        current = current - 0.03 * smooth(push)
    (full,) = torch.autograd.grad((weights * current).sum(), leaf)
    torch.testing.assert_close(found, current)
    torch.testing.assert_close(slope, full, rtol=1e-8, atol=1e-10)
    assert (full - weights).abs().max() > 1e-6


@pytest.mark.parametrize(("options", "says"), [({"steps": 0}, "at least one step"), ({"radius": 0.0}, "above 0")])
def test_mistakes_are_named(options, says):
    with pytest.raises(RecipeError, match=says):
        AntiAdversary(network(), **options)
