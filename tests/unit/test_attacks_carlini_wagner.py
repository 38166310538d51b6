"""Carlini and Wagner's attacks come within a few percent of the nearest adversarial image, and keep their promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.attacks.target import Target
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.unit.linear import Linear, lucky
from tests.unit.test_attacks_apgd import images, network, target_of

NAMES = {"l2": "carlini-wagner", "linf": "carlini-wagner-linf"}
SHORT = {"l2": {"searches": 2, "steps": 30, "constant": 1.0}, "linf": {"rounds": 4, "steps": 20}}
BALLS = (Ball(norm="linf", eps=0.08), Ball(norm="l2", eps=0.5))


def test_the_l2_distance_to_a_hyperplane_is_found():
    ratios = Linear().ratios(build("attack", "carlini-wagner", steps=150, constant=0.1, searches=7), "l2")
    assert ratios.min() > 0.999
    assert ratios.median() < 1.02
    excess = (ratios - 1) * Linear().distances("l2")
    assert excess.max() < 0.01  # the smallest distances are not much larger than Adam's steps, of 0.01 a pixel


def test_the_linf_distance_to_a_hyperplane_is_found_to_about_a_factor_of_tau():
    linear = Linear()
    ratios = linear.ratios(build("attack", "carlini-wagner-linf"), "linf")
    assert ratios.min() > 0.999
    far = linear.distances("linf") > 0.005
    assert ratios[far].max() < 1 / 0.9 + 0.01
    excess = (ratios - 1) * linear.distances("linf")
    assert excess.max() < 1 / 255  # whatever the distance, less than a grey level too much


@pytest.mark.parametrize(("norm", "factor"), [("l2", 1.1), ("linf", 1.25)])
def test_a_linear_classifier_falls_beyond_its_distance_and_never_before(norm, factor):
    options = {"l2": {"steps": 100, "constant": 0.1, "searches": 4}, "linf": {"steps": 50}}[norm]
    assert Linear().falls_beyond_its_distance_and_never_before(build("attack", NAMES[norm], **options), norm, factor)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_results_lie_in_ball_and_cube_and_do_not_depend_on_the_batch(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    attack = build("attack", NAMES[ball.norm], **SHORT[ball.norm])
    found = attack(target_of(model, x), x, y, ball)
    assert (model(found).argmax(1) != y).any()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, x) <= ball.eps * (1 + 1e-5)).all()
    some = torch.tensor([5, 2])
    alone = attack(target_of(model, x[some]), x[some], y[some], ball)
    torch.testing.assert_close(alone, found[some], rtol=0, atol=1e-3)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_what_must_not_be_left_alone_ends_nearer_at_a_higher_cost(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    dropping, staying = target_of(model, x), target_of(model, x, drop=False)
    attack = build("attack", NAMES[ball.norm], **SHORT[ball.norm])
    first, second = attack(dropping, x, y, ball), attack(staying, x, y, ball)
    assert torch.equal(model(first).argmax(1) != y, model(second).argmax(1) != y)
    assert (ball.distance(second, x) <= ball.distance(first, x) + 1e-6).all()
    assert dropping.cost.forward < staying.cost.forward


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_wrong_class_leads_by_the_confidence(norm):
    linear = Linear()
    found = build("attack", NAMES[norm], **SHORT[norm] | {"steps": 60}, confidence=0.5)(
        linear.target(), linear.x, linear.y, Ball(norm=norm, eps=float("inf"))
    )
    logits = linear(found)
    right = logits.gather(1, linear.y[:, None])[:, 0]
    assert (logits.amax(1) - right >= 0.5 - 1e-4).all()


def test_a_larger_fixed_constant_breaks_more_and_goes_further():
    """With c fixed, f's weight against the squared distance decides which samples are worth breaking."""
    linear = Linear()
    broken = []
    for constant in (1e-4, 1e-2, 1.0):
        attack = build("attack", "carlini-wagner", searches=1, steps=100, constant=constant)
        found = attack(linear.target(), linear.x, linear.y, Ball(norm="l2", eps=float("inf")))
        broken.append(int((linear(found).argmax(1) != linear.y).sum()))
    assert broken[0] < broken[1] <= broken[2] == 12


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_step_costs_one_gradient_for_every_draw(norm):
    linear = Linear()
    options = {"l2": {"searches": 2}, "linf": {"rounds": 2}}[norm]
    for draws in (1, 3):
        target = linear.target(draws=draws, drop=False)
        build("attack", NAMES[norm], steps=5, **options)(target, linear.x, linear.y, Ball(norm=norm, eps=1.0))
        assert target.cost.backward == draws * 12 * 5 * 2
        assert target.cost.forward == draws * 12 * (1 + 5 * 2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_lucky_draw_is_no_break(norm):
    x, told = images(), []
    target = Target(scores=lucky, keys=keys(0, "attack", content_ids(x)), randomised=True)
    attack = build("attack", NAMES[norm], **SHORT[norm])
    attack(target, x, torch.zeros(8, dtype=torch.int64), Ball(norm=norm, eps=1.0), callback=told.append)
    assert [len(note["samples"]) for note in told] == [8] * {"l2": 60, "linf": 80}[norm]


@pytest.mark.parametrize("ball", [Ball(norm="linf", eps=0.15), Ball(norm="l2", eps=1.0)], ids=str)
def test_a_random_defence_misses_what_is_found(ball):
    model, x = network(), images()
    y = model(x).argmax(1)
    options = {"l2": {"searches": 2, "steps": 60, "constant": 10.0}, "linf": {"rounds": 4, "steps": 50}}[ball.norm]

    def noisy(z, drawn, progress):
        return model(z + 0.05 * drawn.normal(*z.shape[1:]))

    target = Target(scores=noisy, keys=keys(0, "attack", content_ids(x)), draws=2, randomised=True)
    found = build("attack", NAMES[ball.norm], **options)(target, x, y, ball)
    fresh = keys(7, "verdict", content_ids(x))
    missed = torch.stack([noisy(found, fresh.fold(k), 0.0).argmax(1) != y for k in range(20)]).float().mean(0)
    assert (missed > 0.5).sum() >= 6


def test_foolbox_finds_the_same_distances():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 5)).eval().requires_grad_(False)
    x = torch.rand(8, 3, 4, 4) * 0.4 + 0.3
    y = model(x).argmax(1)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=7, steps=150, initial_const=0.1, abort_early=False
    )
    raw, _, _ = attack(wrapped, x, y, epsilons=None)
    ball = Ball(norm="l2", eps=float("inf"))
    ours = build("attack", "carlini-wagner", searches=7, steps=150, constant=0.1)(target_of(model, x), x, y, ball)
    assert (model(ours).argmax(1) != y).all()
    torch.testing.assert_close(ball.distance(ours, x), ball.distance(raw, x), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("carlini-wagner", {"steps": 0}),
        ("carlini-wagner", {"searches": 0}),
        ("carlini-wagner", {"constant": 0.0}),
        ("carlini-wagner", {"confidence": -1.0}),
        ("carlini-wagner-linf", {"step_size": 0.0}),
        ("carlini-wagner-linf", {"rounds": 0}),
        ("carlini-wagner-linf", {"shrink": 1.0}),
    ],
)
def test_impossible_options_are_refused(name, options):
    with pytest.raises(RecipeError):
        build("attack", name, **options)
