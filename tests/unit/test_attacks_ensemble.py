"""The ensemble attack climbs both losses, falls with the defence alone, and refuses what cannot be."""

from types import SimpleNamespace

import pytest
import torch

from robustmim.attacks.objectives import cross_entropy, margin
from robustmim.attacks.parts import KnowingAttack, Parts
from robustmim.attacks.target import Target
from robustmim.config import AttackConfig
from robustmim.errors import RecipeError
from robustmim.evaluate.claims import describe_attack
from robustmim.geometry import Ball
from robustmim.purify.traits import Traits
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.toys import images, network

BALL = Ball(norm="linf", eps=0.1)


@pytest.fixture
def surrogate(monkeypatch):
    other = network(5)
    monkeypatch.setattr("robustmim.attacks.parts.open_classifier", lambda name, arch: other)
    return other


def bare(classifier, x, **options):
    return Target(scores=lambda z, drawn, progress: classifier(z), keys=keys(0, "a", content_ids(x)), **options)


def test_what_is_climbed_is_the_sum_of_both_losses(surrogate):
    classifier, x = network(), images(3)
    y = classifier(x).argmax(1)
    told = []
    build("attack", "ensemble", surrogate="other", weight=0.5, steps=3)(
        bare(classifier, x, drop=False), x, y, BALL, callback=told.append
    )
    for note in told:
        wanted = cross_entropy(classifier(note["x"]), y) + 0.5 * cross_entropy(surrogate(note["x"]), y)
        torch.testing.assert_close(note["value"], wanted, rtol=1e-4, atol=1e-5)
        leaf = note["x"].clone().requires_grad_(True)
        both = cross_entropy(classifier(leaf), y) + 0.5 * cross_entropy(surrogate(leaf), y)
        (slope,) = torch.autograd.grad(both.sum(), leaf)
        torch.testing.assert_close(note["gradient"], slope, rtol=1e-3, atol=1e-6)


def test_it_moves_the_surrogate_where_an_attack_on_the_defence_alone_does_not(surrogate):
    classifier, x = network(), images(24, seed=4)
    y = classifier(x).argmax(1)
    options = {"steps": 20, "drop": False}
    both = build("attack", "ensemble", surrogate="other", weight=3.0, **options)(bare(classifier, x), x, y, BALL)
    one = build("attack", "pgd", **options)(bare(classifier, x), x, y, BALL)
    assert (both - x).abs().max() <= BALL.eps + 1e-6
    assert cross_entropy(surrogate(both), y).mean() > cross_entropy(surrogate(one), y).mean() + 0.1
    assert cross_entropy(classifier(both), y).mean() > cross_entropy(classifier(x), y).mean()


def test_each_class_is_aimed_at_in_turn_by_both(surrogate):
    classifier, x = network(), images(6, seed=2)
    y = classifier(x).argmax(1)
    believed = surrogate(x).scatter(1, y[:, None], -torch.inf).topk(2, dim=1).indices
    told = []
    attack = build("attack", "ensemble", surrogate="other", weight=0.5, targets=2, steps=4, drop=False)
    end = attack(bare(classifier, x, drop=False), x, y, BALL, callback=told.append)
    assert len(told) == 8
    rows = torch.arange(len(x))
    for number, note in enumerate(told):
        wanted = believed[:, number // 4]
        own, others = classifier(note["x"]), surrogate(note["x"])
        ahead = own[rows, wanted] - own[rows, y] + 0.5 * (others[rows, wanted] - others[rows, y])
        torch.testing.assert_close(note["value"], ahead, rtol=1e-4, atol=1e-5)
    towards_one = build("attack", "ensemble", surrogate="other", weight=0.5, targets=1, steps=4, drop=False)
    one = towards_one(bare(classifier, x, drop=False), x, y, BALL)
    margins = [margin(classifier(z), y) for z in (end, one)]
    assert (margins[0] >= margins[1] - 1e-5).all()  # the better of the two ends
    assert (margins[0] > margins[1] + 1e-5).any()
    assert (end - x).abs().max() <= BALL.eps + 1e-6


def test_what_falls_to_one_class_is_not_aimed_at_the_next(surrogate):
    classifier, x = network(), images(12, seed=3)
    y, asked = classifier(x).argmax(1), []

    def scores(z, drawn, progress):
        asked.append(len(z))
        return classifier(z)

    wide = Ball(norm="linf", eps=0.5)
    target = Target(scores=scores, keys=keys(0, "a", content_ids(x)))
    end = build("attack", "ensemble", surrogate="other", targets=9, steps=10)(target, x, y, wide)
    assert (classifier(end).argmax(1) != y).all()
    assert sum(asked) < 9 * 10 * len(x) / 2


def test_a_weight_of_nothing_is_refused(surrogate):
    with pytest.raises(RecipeError, match="above 0"):
        build("attack", "ensemble", surrogate="other", weight=0.0)
    with pytest.raises(RecipeError, match="0 for none"):
        build("attack", "ensemble", surrogate="other", targets=-1)


def test_it_is_not_held_to_the_loss_of_the_defence_s_answers_alone(surrogate):
    """Nor to planted examples, since the surrogate does not know their classes."""
    assert isinstance(build("attack", "ensemble", surrogate="other"), KnowingAttack)


class Guided:
    """A purifier that does nothing and names its guide."""

    traits = Traits(randomised=False, optimises_at_test_time=False, steps=1)

    def __init__(self, guide=None, model=None):
        self.guide, self.model = guide, model

    def __call__(self, x, *, keys, callback=None):
        return x


@pytest.mark.parametrize("attack", ["ensemble", "transfer"])
def test_without_a_surrogate_the_guide_of_the_purifier_is_taken(surrogate, attack):
    classifier, x = network(), images(6)
    y = classifier(x).argmax(1)
    parts = Parts(classifier=classifier, purifier=Guided(surrogate))
    named, guided = (build("attack", attack, **options) for options in ({"surrogate": "other"}, {}))
    guided.check(parts)
    assert torch.equal(
        guided(bare(classifier, x, parts=parts), x, y, BALL), named(bare(classifier, x, parts=parts), x, y, BALL)
    )


@pytest.mark.parametrize(
    ("options", "says"), [({}, "(surrogate the purifier's guide)"), ({"surrogate": "other"}, "(surrogate other)")]
)
def test_a_claim_tells_whose_answers_are_attacked(options, says):
    attack = AttackConfig(name="a", attack="transfer", options=options)
    assert says in describe_attack(attack, purified=True, randomised=False, black_box=True)


@pytest.mark.parametrize("attack", ["ensemble", "transfer"])
def test_a_defence_without_a_guide_is_refused_before_anything_is_computed(surrogate, attack):
    classifier = network()
    for purifier, what in ((None, "there is no purifier"), (Guided(None), "Guided has none")):
        with pytest.raises(RecipeError, match=what):
            build("attack", attack).check(Parts(classifier=classifier, purifier=purifier))
    build("attack", attack, surrogate="other").check(Parts(classifier=classifier))
    with pytest.raises(RecipeError, match="`surrogate` names"):
        build("attack", attack, arch="resnet56")


def test_the_guide_of_a_masked_model_is_the_purifier_s(surrogate):
    purifier = Guided(model=SimpleNamespace(guide=surrogate))
    assert Parts(classifier=network(), purifier=purifier).guide() is surrogate
