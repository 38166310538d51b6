"""The joint attack climbs what AMRM-Pure's Eq. 5 says, and asks for what it needs before anything is run."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.parts import Parts, masked_loss
from robustmim.attacks.target import Target
from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.models.masked import hidden_mean
from robustmim.models.masking import enlarge, random_mask
from robustmim.purify.traits import Traits
from robustmim.radius import Radius
from robustmim.registry import build
from robustmim.rng import keys
from tests.toys import Neighbours, images, network, purifier, target_of

BALL = Ball(norm="linf", eps=0.1)


def test_the_loss_is_that_of_the_masked_model_averaged_over_masks():
    x, drawn = images(4), keys(3, "draw", torch.arange(4))
    own = drawn.fold("attacked loss")
    expected = torch.zeros(4)
    for k in range(3):
        mask = random_mask(own.fold("mask", k), (6, 6), 0.25)
        predicted = Neighbours().reconstruct(x, mask, need_pixels=True).pixels
        expected += hidden_mean((predicted - x).square(), enlarge(mask, 1)) / 3
    torch.testing.assert_close(masked_loss(purifier(), x, drawn, 3), expected)


def test_what_is_climbed_is_eq_5_and_its_gradient_that_of_finite_differences():
    """In double precision, on the bare classifier: α · cross-entropy − (1 − α) · reconstruction loss."""
    classifier, x = network().double(), images(2).double()
    y = classifier(x).argmax(1)
    told = []
    target = target_of(x, through=purifier(), classifier=classifier)
    bare = Target(
        scores=lambda z, drawn, progress: classifier(z), keys=target.keys, parts=target.parts, drop=False, draws=2
    )
    build("attack", "joint", weight=0.3, masks=2, steps=3)(bare, x, y, BALL, callback=told.append)

    def objective(z, query):
        total = torch.zeros(len(z), dtype=z.dtype)
        for draw in range(2):
            losses = masked_loss(purifier(), z, target.keys.fold("eot", query, draw), 2)
            total = total + (0.3 * cross_entropy(classifier(z), y) - 0.7 * losses) / 2
        return total

    for note in told:
        torch.testing.assert_close(note["value"].double(), objective(note["x"], note["step"]), rtol=1e-5, atol=1e-6)
        for place in ((0, 1, 2), (2, 5, 0)):
            shift = torch.zeros_like(x)
            shift[:, place[0], place[1], place[2]] = 1e-6
            rise = objective(note["x"] + shift, note["step"]) - objective(note["x"] - shift, note["step"])
            torch.testing.assert_close(
                note["gradient"][:, place[0], place[1], place[2]], rise / 2e-6, rtol=1e-4, atol=1e-7
            )


def test_in_reverse_it_looks_for_what_the_masked_model_finds_odd():
    x, through = images(), purifier()
    y, drawn = network()(x).argmax(1), keys(3, "draw", torch.arange(len(x)))
    losses = []
    for reverse in (False, True):
        attack = build("attack", "joint", weight=0.0, reverse=reverse, steps=10, drop=False)
        found = attack(target_of(x, through=through), x, y, BALL)
        assert (found - x).abs().max() <= BALL.eps + 1e-6
        losses.append(masked_loss(through, found, drawn, 20))
    before = masked_loss(through, x, drawn, 20)
    assert (losses[0] < before).all()
    assert (losses[1] > before).all()


@pytest.mark.parametrize("drop", [False, True])
def test_with_all_weight_on_the_answer_it_is_pgd(drop):
    x = images()
    y = network()(x).argmax(1)
    options = {"steps": 8, "restarts": 2, "drop": drop}
    target = target_of(x, through=purifier(), draws=2)
    joint = build("attack", "joint", weight=1.0, **options)(target, x, y, BALL)
    assert torch.equal(joint, build("attack", "pgd", **options)(target, x, y, BALL))


def test_less_weight_on_the_answer_leaves_the_masked_model_less_to_see():
    x = images(12)
    y = network()(x).argmax(1)
    fresh = keys(9, "fresh", torch.arange(12))
    seen, lost = [], []
    for weight in (1.0, 0.05, 0.0):
        found = build("attack", "joint", weight=weight, masks=4, steps=30, drop=False)(
            target_of(x, through=purifier()), x, y, BALL
        )
        seen.append(float(masked_loss(purifier(), found, fresh, 16).mean()))
        lost.append(float(cross_entropy(network()(found), y).mean()))
    assert seen[0] > seen[1] > seen[2]
    assert lost[0] > lost[1] > lost[2]
    assert seen[2] < 0.7 * float(masked_loss(purifier(), x, fresh, 16).mean())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_lie_in_the_ball_and_do_not_depend_on_the_batch(norm):
    ball = Ball(norm=norm, eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm])
    x = images()
    y = network()(x).argmax(1)
    attack = build("attack", "joint", weight=0.5, steps=6, masks=2)
    found = attack(target_of(x, through=purifier(), draws=2), x, y, ball)
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1
    for some in (torch.tensor([4]), torch.tensor([5, 1])):
        alone = attack(target_of(x[some], through=purifier(), draws=2), x[some], y[some], ball)
        torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-5)


def test_the_recipe_decides_whether_the_loss_is_taken_behind_the_purifier():
    class Counted:
        """AMRM-Pure that says how often it was asked."""

        def __init__(self):
            self.inner, self.asked = purifier(), 0
            self.model, self.mask_ratio, self.traits = self.inner.model, self.inner.mask_ratio, self.inner.traits

        def __call__(self, x, *, keys, callback=None):
            self.asked += 1
            return self.inner(x, keys=keys, callback=callback)

    x = images()
    batch = Batch(x, network()(x).argmax(1), torch.arange(len(x)))
    asked = {}
    for against in ("classifier", "defence"):
        attack = AttackConfig(name="joint", attack="joint", against=against, options={"steps": 3})
        counted = Counted()
        evaluator = Evaluator(network(), counted, EvaluateRecipe(radii=(Radius("8/255"),), attacks=(attack,)))
        evaluator.attacks["joint"](evaluator.target(attack, batch, 0.1), x, batch.labels, BALL)
        asked[against] = counted.asked
    assert asked["classifier"] == 0
    assert asked["defence"] >= 3


def test_a_defence_without_a_masked_model_is_refused_when_the_evaluator_is_built():
    class Blind:
        traits = Traits(randomised=False, optimises_at_test_time=False, steps=1)

        def __call__(self, x, *, keys, callback=None):
            return x

    recipe = EvaluateRecipe(radii=(Radius("8/255"),), attacks=(AttackConfig(name="joint", attack="joint"),))
    with pytest.raises(RecipeError, match="there is no purifier"):
        Evaluator(network(), None, recipe)
    with pytest.raises(RecipeError, match="Blind has none"):
        Evaluator(network(), Blind(), recipe)
    Evaluator(network(), purifier(), recipe)
    x = images(2)
    with pytest.raises(RecipeError, match="give the Target its parts"):
        build("attack", "joint")(
            Target(scores=network(), keys=keys(0, "a", torch.arange(2))), x, torch.zeros(2).long(), BALL
        )
    for options, words in (
        ({"weight": 1.5}, "weight is in"),
        ({"masks": 0}, "one mask at least"),
        ({"steps": 0}, "one step"),
    ):
        with pytest.raises(RecipeError, match=words):
            build("attack", "joint", **options)
    assert Parts(classifier=network(), purifier=purifier()).masked_purifier().mask_ratio == 0.25
