"""A gradient against differences: alike where it is the defence's own, not where something else passes for it."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.target import Target
from robustmim.config import AttackConfig, ChecksConfig, GradientConfig
from robustmim.evaluate.run import Evaluator
from robustmim.evaluate.slope import slope_agreement
from robustmim.purify.defended import Defended
from robustmim.rng import content_ids, keys
from tests.toys import images, network
from tests.unit.test_evaluate import Images, Purify, concluded, levels, recipe


class Turned(Purify):
    """Turns images upside down and tells its gradient. Its noise is drawn anew in each call."""

    def __init__(self, *, deviation=0.0):
        def change(x, drawn):
            return x.flip(2) + deviation * drawn.normal(*x.shape[1:])

        super().__init__(change, randomised=deviation > 0)

    def differentiable(self, x, *, keys, gradient, progress=0.0):
        return self.change(x, keys)


def agreement(scores, answer, x):
    y = torch.zeros(len(x), dtype=torch.long)
    target = Target(scores=scores, keys=keys(0, "attack", content_ids(x)), draws=4, randomised=True)
    return slope_agreement(target, answer, x, y, keys(0, "slope", content_ids(x)))


@pytest.mark.parametrize("deviation", [0.0, 0.05])
def test_the_defence_s_own_gradient_is_its_slope_and_the_identity_is_not(deviation):
    classifier, purifier, x = network(), Turned(deviation=deviation), images(8)

    def answer(z, drawn):
        return classifier(purifier.change(z, drawn))

    exact = Defended(purifier, classifier, gradient=GradientConfig(mode="exact"))
    assert agreement(exact, answer, x) > 0.99
    assert abs(agreement(Defended(purifier, classifier), answer, x)) < 0.25


def test_what_has_no_gradient_has_nothing_in_common_with_what_it_does():
    classifier, x = network(), images(8)

    def answer(z, drawn, progress=0.0):
        return classifier(z.detach())

    assert agreement(answer, answer, x) == 0
    assert agreement(lambda z, drawn, progress: 0 * classifier(z), lambda z, drawn: 0 * classifier(z), x) is None


def test_an_image_without_an_answer_is_left_out():
    classifier, x = network(), images(8)

    def answer(z, drawn, progress=0.0):
        logits = classifier(z)
        return torch.where((torch.arange(len(z)) == 3)[:, None], torch.nan, logits)

    assert agreement(answer, answer, x) > 0.99


def test_an_evaluation_says_so(tmp_path):
    """Upside down, what made the upper rows lighter makes the lower ones so: the identity points the wrong way."""

    class Rows(torch.nn.Module):
        def forward(self, x):
            weight = torch.linspace(-1, 1, x.shape[2]).view(-1, 1)
            score = 10 * (weight * x).mean((1, 2, 3))
            return torch.stack([-score, score], 1)

    checks = ChecksConfig(images=12)
    for mode, level in (("identity", "amber"), ("exact", None)):
        attack = AttackConfig(name="pgd", options={"steps": 2}, gradient=GradientConfig(mode=mode))
        content = concluded(tmp_path / mode, Evaluator(Rows(), Turned(), recipe(attack, checks=checks)), Images())
        assert levels(content).get("slope-differs") == level
