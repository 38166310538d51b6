"""Mistakes that attacks and evaluations of others have made: each is a test here, or named with the test that has it.

A library that reseeds the global generator: test_attacks_auto_attack. Purifiers under no_grad: test_amrm. Steps by the sign in
l2: also test_geometry (property). Plain l1 steps: test_geometry. Batches that change results: test_amrm, test_attacks_apgd.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.target import Target
from robustmim.config import AttackConfig
from robustmim.data.loader import Batch
from robustmim.evaluate.run import Cell, Evaluator
from robustmim.evaluate.verdict import broken, share
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_evaluate import Halves, Images, R, evaluated, noisy, recipe


def judged_bare(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
def test_pixels_at_the_edge_of_the_cube_are_not_dead(name):
    """Never differentiate through the attack's own clamp: where 58 % of the pixels are exactly 0 or 1, as in digits, a clamp in
    the graph gives most of them the gradient zero, and they stay where they are."""

    class Contrast(nn.Module):
        """Is the checkerboard's own colour on top? Every pixel counts alike, and every pixel is black or white."""

        def forward(self, x):
            score = 20 * (x * pattern).mean((1, 2, 3))
            return torch.stack([-score, score], 1)

    generator = torch.Generator().manual_seed(0)
    pattern = torch.randint(2, (3, 8, 8), generator=generator) * 2.0 - 1
    x = (torch.rand(8, 3, 8, 8, generator=generator) < 0.5).float()
    x = torch.where(torch.rand(8, 3, 8, 8, generator=generator) < 0.1, (pattern > 0).float(), x)
    y = Contrast()(x).argmax(1)
    eps = 0.1
    target = Target(scores=lambda z, drawn, progress: Contrast()(z), keys=keys(0, "a", torch.arange(8)), drop=False)
    found = build("attack", name, steps=10)(target, x, y, Ball(eps=eps))
    # The best there is: every pixel that may move towards the other class does, by ε.
    best = (x - eps * pattern * (2 * y - 1).view(-1, 1, 1, 1)).clamp(0, 1)
    loss = [cross_entropy(Contrast()(z), y) for z in (found, best)]
    torch.testing.assert_close(loss[0], loss[1], atol=1e-4, rtol=1e-4)


def test_steps_by_the_sign_in_l2_are_taken_only_if_asked_for():
    """ADBM's code takes them, and its numbers in l2 cannot be had otherwise."""
    weight = torch.linspace(-1, 2, 48).view(3, 4, 4)
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)

    def scores(z, drawn, progress):
        score = ((z - 0.5) * weight).sum((1, 2, 3))
        return torch.stack([2 - score, score], 1)

    def first_step(**options):
        target = Target(scores=scores, keys=keys(0, "a", torch.arange(2)))
        attack = build("attack", "pgd", steps=1, step_size=0.1, random_start=False, **options)
        return attack(target, x, y, Ball(norm="l2", eps=1.0)) - x

    along = (0.1 * weight / weight.norm()).expand(2, 3, 4, 4)
    torch.testing.assert_close(first_step(), along, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(first_step(l2_step="sign"), 0.1 * weight.sign().expand(2, 3, 4, 4), atol=1e-6, rtol=1e-4)


def test_a_lucky_draw_is_no_break():
    """An attack that hands over untouched images of a defence right nine times in ten: one draw says that some are broken."""
    source = Images(n=200, largest=9)
    evaluator = Evaluator(Halves(), noisy(0.12), recipe(draws=16))
    batch = Batch(source.images.float() / 255, source.labels, source.ids)
    cell = Cell("pgd", R, "purified")
    judged = evaluator.judge(batch, batch.images, cell, None)
    one_draw = dataclasses.replace(evaluator.recipe, draws=1)
    lucky = Evaluator(Halves(), noisy(0.12), one_draw).judge(batch, batch.images, cell, None)
    records = evaluator._records(batch, cell, judged)
    right = sum(share(row) for row in records) / 200
    assert 0.7 < right < 0.95
    broken_by_luck = lucky.right == 0
    assert broken_by_luck.sum() > 10
    flagged = [row for row, luck in zip(records, broken_by_luck.tolist(), strict=True) if luck]
    # On fresh draws those are right as often as others of their margin, and few are broken.
    assert sum(share(row) for row in flagged) / len(flagged) > 0.4
    assert sum(broken(row) for row in flagged) < len(flagged) / 2


def test_an_attack_does_not_leave_a_random_defence_at_the_first_lucky_miss():
    """Where half of the draws miss, a query of two that both miss is luck one time in four: it must be confirmed."""
    n = 400
    half = Target(
        scores=lambda z, drawn, progress: torch.eye(2)[(drawn.uniform(1)[:, 0] < 0.5).long()],
        keys=keys(0, "attack", torch.arange(n)),
        draws=2,
        randomised=True,
    )
    x, y = torch.rand(n, 3, 2, 2), torch.zeros(n, dtype=torch.long)
    slope = half.value(x, y, cross_entropy, 0)
    missed = slope.missed > 0.99
    assert 70 < missed.sum() < 130
    assert half.fallen(x, y, slope, 0).sum() <= 3


def test_who_reseeds_the_global_generator_changes_nothing(tmp_path, monkeypatch):
    """AutoAttack reseeds it in every call, and defences that draw from it then repeat their masks in every batch."""
    evaluator = Evaluator(Halves(), noisy(0.1), recipe(AttackConfig(name="pgd", eot=2, options={"steps": 2})))
    _, _, plain = evaluated(tmp_path / "plain", evaluator)

    whole = Evaluator.classify

    def reseeding(self, x):
        torch.manual_seed(0)
        return whole(self, x)

    monkeypatch.setattr(Evaluator, "classify", reseeding)
    state = torch.random.get_rng_state()
    _, _, reseeded = evaluated(tmp_path / "reseeded", evaluator)
    torch.random.set_rng_state(state)
    assert reseeded == plain


def test_an_evaluation_leaves_the_global_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    evaluated(tmp_path, Evaluator(Halves(), noisy(0.1), recipe(AttackConfig(name="pgd", eot=2, options={"steps": 2}))))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_budget_is_the_clean_accuracy_and_no_purification_is_the_bare_classifier(tmp_path):
    """Sanity tests 2 and 8: the same numbers, sample by sample, from paths that differ."""
    from robustmim.radius import Radius
    from tests.unit.test_evaluate import Purify

    identity = Purify(lambda x, drawn: x, randomised=False)
    attacks = (
        AttackConfig(name="pgd", options={"steps": 5}),
        AttackConfig(name="apgd", attack="apgd-ce", options={"steps": 5}),
        AttackConfig(name="square", attack="square", options={"queries": 20}),
    )
    radii = (Radius("0/255"), R)
    _, _, bare = evaluated(tmp_path / "bare", Evaluator(Halves(), None, recipe(*attacks, radii=radii)))
    _, _, behind = evaluated(tmp_path / "behind", Evaluator(Halves(), identity, recipe(*attacks, radii=radii)))
    clean = {number: row["right"] for number, row in bare["none", "0", "bare"].items()}
    for attack in attacks:
        assert {n: row["right"] for n, row in bare[attack.name, "0", "bare"].items()} == clean
        for radius in ("0", "8/255"):
            own, other = bare[attack.name, radius, "bare"], behind[attack.name, radius, "purified"]
            assert {n: row["right"] for n, row in own.items()} == {n: row["right"] for n, row in other.items()}
