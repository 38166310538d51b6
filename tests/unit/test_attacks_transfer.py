"""An attack on a surrogate is that attack, and asks nothing of the defence."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.target import Target
from robustmim.config import AttackConfig, EvaluateRecipe, ModelConfig
from robustmim.data.loader import Batch
from robustmim.errors import CheckpointError, InputError, RecipeError
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.models.zoo import load_model, save_model, saved_config
from robustmim.radius import Radius
from robustmim.registry import build
from robustmim.rng import content_ids, keys

BALL = Ball(norm="linf", eps=0.1)


@pytest.fixture
def surrogate(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(name="fast-cnn", options={"widths": [4, 4, 4]})
    model = build("classifier", "fast-cnn", classes=3, widths=(4, 4, 4))
    save_model(tmp_path / "surrogate", model, saved_config("classifier", config, classes=("a", "b", "c")))
    return str(tmp_path / "surrogate")


def images(n=4):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def silent(x):
    """A target that must not be asked."""

    def scores(z, drawn, progress):
        raise AssertionError("the defence was asked")

    return Target(scores=scores, keys=keys(0, "attack", content_ids(x)), draws=3, randomised=True)


def test_it_is_the_attack_on_the_surrogate_and_the_defence_is_asked_nothing(surrogate):
    x = images()
    model = load_model(surrogate)
    y = model(x).argmax(1)
    target = silent(x)
    attack = build("attack", "transfer", surrogate=surrogate, options={"steps": 5, "loss": "margin"})
    found = attack(target, x, y, BALL)
    own = Target(scores=lambda z, drawn, progress: model(z), keys=target.keys.fold("surrogate"), drop=False)
    assert torch.equal(found, build("attack", "pgd", steps=5, loss="margin")(own, x, y, BALL))
    assert (cross_entropy(model(found), y) > cross_entropy(model(x), y)).all()
    assert target.cost.forward == target.cost.backward == 0
    assert attack.black_box


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_lie_in_the_ball_and_do_not_depend_on_the_batch(surrogate, norm):
    ball = Ball(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    x, y = images(), torch.tensor([0, 1, 2, 0])
    attack = build("attack", "transfer", surrogate=surrogate, options={"steps": 5})
    found = attack(silent(x), x, y, ball)
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1
    for some in (torch.tensor([2]), torch.tensor([3, 1])):
        torch.testing.assert_close(attack(silent(x[some]), x[some], y[some], ball), found[some], rtol=0, atol=1e-5)
    assert attack(silent(x[:0]), x[:0], y[:0], ball).shape == (0, 3, 16, 16)


def test_attacks_that_look_into_a_classifier_look_into_the_surrogate(surrogate):
    x, y = images(), torch.tensor([0, 1, 2, 0])
    model = load_model(surrogate)
    attack = build("attack", "transfer", surrogate=surrogate, attack="features", options={"steps": 5})
    found = attack(silent(x), x, y, BALL)

    def features(z):
        return model.pool(model.stages(model.activation(model.whiten(model.normalise(z))))).flatten(1)

    noise = BALL.random(x, keys(5, "noise", torch.arange(4)))
    moved, shaken = ((features(z) - features(x)).square().mean(1) for z in (found, noise))
    assert (moved > 2 * shaken).all()
    with pytest.raises(RecipeError, match="there is no purifier"):
        build("attack", "transfer", surrogate=surrogate, attack="joint")


def test_mistakes_are_answered(surrogate):
    with pytest.raises(CheckpointError, match="Did you mean 'fast-cnn-cifar10'"):
        build("attack", "transfer", surrogate="fast-cnn-cifar")
    with pytest.raises(RecipeError, match="Did you mean 'pgd'"):
        build("attack", "transfer", surrogate=surrogate, attack="pdg")
    with pytest.raises(RecipeError, match="has no option 'stesp'"):
        build("attack", "transfer", surrogate=surrogate, options={"stesp": 3})
    x = images()
    with pytest.raises(InputError, match="knows 3 classes, but there is a label 7"):
        build("attack", "transfer", surrogate=surrogate)(silent(x), x, torch.tensor([0, 7, 1, 2]), BALL)


def test_an_evaluation_hands_the_images_to_the_defence(surrogate):
    x = images()
    batch = Batch(x, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    attack = AttackConfig(name="t", attack="transfer", options={"surrogate": surrogate, "options": {"steps": 2}})
    evaluator = Evaluator(
        load_model("fast-cnn-cifar10"), None, EvaluateRecipe(radii=(Radius("8/255"),), attacks=(attack,))
    )
    found, about, cost = evaluator.attacked(attack, batch, Radius("8/255"))
    assert about["failed"] == [0.0] * 4
    assert "zero_gradient" not in about
    assert (found != x).any()
    assert cost.forward == 0
