"""Each honesty check: what sets it off, what does not, and where the docs explain it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import robustmim
from robustmim.config import AttackConfig, ChecksConfig, GradientConfig
from robustmim.errors import RecipeError
from robustmim.evaluate import honesty
from robustmim.evaluate.honesty import findings
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.radius import Radius
from robustmim.runs import read_json
from tests.unit.test_evaluate import Halves, Images, Purify, concluded, levels, noisy, recipe

HONESTY = Path(robustmim.__file__).parents[2] / "docs" / "honesty.md"
SMALL, LARGE = Radius("4/255"), Radius("8/255")
WHITE = AttackConfig(name="white", eot=2)
GRAY = AttackConfig(name="gray", against="classifier")
BLACK = AttackConfig(name="black", attack="square", options={"queries": 2})


def rows(attack, rights, *, radius="8/255", defence="purified", **more):
    """Return records of an attack, one for each sample, of four draws twice."""
    key = (attack, radius, defence)
    blank = dict(zip(("attack", "radius", "defence"), key, strict=True)) | {"label": 0, "predicted": 0, "draws": 4}
    return {key: {i: blank | {"id": i, "right": r, "again": r} | more for i, r in enumerate(rights)}}


def said(*attacks, records=(), checks=(), purifier=None, content=None, **changes):
    """Return check → level for some records of attacks on a random defence."""
    evaluator = Evaluator(Halves(), purifier or noisy(0.1), recipe(*attacks, **changes))
    plain = {"worst_cases": [], "cells": [], "images": 1000} | (content or {})
    together = {key: value for one in records for key, value in one.items()}
    return {one["check"]: one["level"] for one in findings(plain, together, evaluator, list(checks))}


def active(check, **more):
    return {"check": check, "n": 20, "attack": "white", "radius": "8/255"} | more


def test_each_check_has_its_place_in_the_docs_and_the_docs_have_no_other():
    told = set(re.findall(r"^## (\S+)$", HONESTY.read_text(), re.MULTILINE))
    source = Path(honesty.__file__).read_text()
    yielded = set(re.findall(r'Finding\(\s*"([a-z-]+)"', source)) | set(re.findall(r'check == "([a-z-]+)"', source))
    yielded |= {"more-steps", "more-draws", "more-restarts", "black-box-wins", "transfer-wins"}
    assert yielded == told
    evaluator = Evaluator(Halves(), noisy(0.1), recipe(GRAY))
    (found, *_) = findings({"worst_cases": [], "cells": [], "images": 1000}, {}, evaluator, [])
    assert found["link"] == f"docs/honesty.md#{found['check']}"
    assert found["sentence"].endswith(".")


def test_knowing_less_must_not_find_more():
    strong, same = rows("white", [4] * 20), rows("gray", [4] * 20)
    assert "transfer-wins" not in said(GRAY, WHITE, records=[strong, same])
    assert said(GRAY, WHITE, records=[strong, rows("gray", [0] * 4 + [4] * 16)])["transfer-wins"] == "red"
    assert said(WHITE, BLACK, records=[strong, rows("black", [0] * 4 + [4] * 16)])["black-box-wins"] == "red"
    # One image of twenty may be luck.
    assert "transfer-wins" not in said(GRAY, WHITE, records=[strong, rows("gray", [0] + [4] * 19)])


def test_what_the_guide_alone_gives_away_is_told_as_that():
    guided = noisy(0.1)
    guided.guide = Halves()
    guide = AttackConfig(name="guide", attack="transfer", options={"options": {"steps": 2}})
    weak, strong = rows("guide", [0] * 4 + [4] * 16), rows("white", [4] * 20)
    told = said(guide, WHITE, records=[weak, strong], purifier=guided)
    assert told["transfer-wins"] == "red"
    assert "black-box-wins" not in told


def test_under_a_cascade_too():
    """A white-box attack spares what it broke; what an attack that knows less broke before it is not spared."""
    weak = rows("gray", [0] * 4 + [4] * 16)
    assert said(GRAY, WHITE, records=[rows("white", [4] * 20), weak], cascade=True)["transfer-wins"] == "red"
    assert "transfer-wins" not in said(GRAY, WHITE, records=[rows("white", [0] * 4 + [4] * 16), weak], cascade=True)
    spared = rows("black", [0] * 4 + [4] * 16)
    for number in range(4, 8):
        spared["black", "8/255", "purified"][number] = {"id": number, "attack": "black", "skipped": "white"}
    strong = rows("white", [4] * 4 + [0] * 4 + [4] * 12)
    assert said(WHITE, BLACK, records=[strong, spared], cascade=True)["black-box-wins"] == "red"


def test_a_stand_in_for_the_purifier_is_not_the_defence():
    blur = GradientConfig(mode="replacement", forward="smooth")
    alone = AttackConfig(name="alone", gradient=blur, eot=2)
    assert said(alone)["no-white-box"] == "red"
    weak, strong = rows("alone", [0] * 4 + [4] * 16), rows("white", [4] * 20)
    assert said(alone, WHITE, records=[weak, strong])["transfer-wins"] == "red"
    assert "no-white-box" not in said(alone, WHITE)


def test_a_verdict_on_one_draw_of_a_random_defence():
    assert said(WHITE, draws=1)["one-draw"] == "amber"
    assert "one-draw" not in said(WHITE)
    assert "one-draw" not in said(WHITE, draws=1, purifier=Purify(lambda x, drawn: x, randomised=False))
    with pytest.raises(RecipeError, match="one draw of a random defence"):
        said(WHITE, draws=1, cascade=True)


def test_a_larger_budget_must_not_leave_more():
    def worst(small, large):
        cases = [{"radius": r, "accuracy": a, "n": 100} for r, a in (("4/255", small), ("8/255", large))]
        return said(WHITE, content={"worst_cases": cases}, radii=(SMALL, LARGE))

    assert worst(0.5, 0.6)["budget-not-monotone"] == "red"
    assert "budget-not-monotone" not in worst(0.5, 0.51)
    assert "budget-not-monotone" not in worst(0.6, 0.5)


def test_gradients_that_are_zero():
    assert said(WHITE, records=[rows("white", [4] * 20, zero_gradient=1.0)])["zero-gradient"] == "red"
    assert said(WHITE, records=[rows("white", [4] * 20, zero_gradient=0.3)])["zero-gradient"] == "amber"
    assert "zero-gradient" not in said(WHITE, records=[rows("white", [4] * 20, zero_gradient=0.01)])


def test_a_loss_that_falls_under_attack():
    def loss(after):
        return said(WHITE, records=[rows("white", [4] * 20, loss_before=1.0, loss_after=after)])

    assert loss(0.9)["loss-not-rising"] == "red"
    assert "loss-not-rising" not in loss(1.1)


def test_an_attack_that_climbs_the_margin_may_lower_the_loss():
    def found(margin):
        numbers = {"loss_before": 1.0, "loss_after": 0.9, "margin_before": -2.0, "margin_after": margin}
        return said(WHITE, records=[rows("white", [4] * 20, **numbers)])

    assert found(-2.5)["loss-not-rising"] == "red"
    assert "loss-not-rising" not in found(-1.5)


def test_a_purifier_that_makes_it_worse_and_an_attack_that_leaves_the_ball():
    cells = [
        {"attack": "gray", "radius": "8/255", "defence": defence, "low": low, "high": low + 0.1}
        for defence, low in (("bare", 0.5), ("purified", 0.3))
    ]
    assert said(GRAY, WHITE, content={"cells": cells})["purifier-harms"] == "red"
    assert said(WHITE, records=[rows("white", [4] * 20, failed=1.0)])["attack-failed"] == "red"


def test_who_does_not_look_through_the_purifier_is_told():
    assert said(GRAY)["no-white-box"] == "red"
    assert said(AttackConfig(name="one"))["no-eot"] == "red"
    assert said(WHITE)["identity-gradient"] == "amber"
    assert said(WHITE, content={"images": 499})["few-images"] == "amber"
    assert "few-images" not in said(WHITE)


@pytest.mark.parametrize(
    ("row", "level"),
    [
        (active("not-repeatable", different=1), "red"),
        (active("not-repeatable", different=0), None),
        (active("probabilities", probabilities=True), "amber"),
        (active("probabilities", probabilities=False), None),
        (active("saturation", share=0.4), "amber"),
        (active("saturation", share=0.2), None),
        (active("large-budget", accuracy=0.1), "red"),
        (active("large-budget", accuracy=0.0), None),
        (active("planted-missed", found=20, at_random=0), None),
        (active("planted-missed", found=18, at_random=3), "amber"),
        (active("planted-missed", found=3, at_random=3), "red"),
        (active("noise-suffices", clean=0.9, noise=0.5, attacked=0.5), "red"),
        (active("noise-suffices", clean=0.9, noise=0.8, attacked=0.2), None),
        (
            active("noise-suffices", clean=0.9, noise=0.9, attacked=0.9),
            None,
        ),  # neither finds anything: other checks' affair
        (active("more-steps", factor=4, fallen=2), "amber"),
        (active("more-draws", factor=4, fallen=3), "amber"),
        (active("more-restarts", factor=4, fallen=1), None),
        (active("draws-disagree", draws=2, cosine=0.05), "amber"),
        (active("draws-disagree", draws=2, cosine=0.4), None),
        (active("slope-differs", cosine=0.1), "amber"),
        (active("slope-differs", cosine=0.4), None),
        (active("rounding", restored=3), "amber"),
        (active("rounding", restored=1), None),
    ],
)
def test_active_checks(row, level):
    assert said(WHITE, checks=[row]).get(row["check"]) == level


class TestActively:
    """The active checks find what they look for."""

    def test_too_few_steps_and_restarts(self, tmp_path):
        short = AttackConfig(name="pgd", options={"steps": 1, "step_size": 0.25})
        content = concluded(
            tmp_path, Evaluator(Halves(), None, recipe(short, checks=ChecksConfig(images=12))), Images(largest=20)
        )
        assert levels(content)["more-steps"] == "amber"

    def test_draws_whose_gradients_have_nothing_in_common(self, tmp_path):
        """A random sign for every pixel: the gradient of each draw is that of a classifier of its own."""

        class Signs(Purify):
            def differentiable(self, x, *, keys, gradient, progress=0.0):
                return self.change(x, keys)

        signs = Signs(lambda x, drawn: 0.5 + (x - 0.5) * drawn.normal(*x.shape[1:]).sign(), randomised=True)
        exact = AttackConfig(name="pgd", options={"steps": 2}, gradient=GradientConfig(mode="exact"))
        content = concluded(tmp_path, Evaluator(Halves(), signs, recipe(exact, checks=ChecksConfig(images=12))))
        assert levels(content)["draws-disagree"] == "amber"

    def test_what_whole_grey_levels_undo(self, tmp_path):
        """The halves are two levels apart and fall to a move by 1.2; by one level each they are equal, which is class 0."""
        source = Images(n=12)
        source.images[:] = 128
        source.images[..., :4] = (128 + 2 * (2 * source.labels - 1)).view(-1, 1, 1, 1).to(torch.uint8)
        evaluator = Evaluator(Halves(), None, recipe(radii=(Radius("1.2/255"),), checks=ChecksConfig(images=12)))
        content = concluded(tmp_path, evaluator, source)
        assert content["worst_case"]["accuracy"] == 0
        assert levels(content)["rounding"] == "amber"

    def test_a_ball_at_whose_edge_all_pixels_end(self, tmp_path):
        edge = 2 / 255
        pushing = Purify(lambda x, drawn: x + edge, randomised=False, ball=Ball(eps=edge))
        content = concluded(
            tmp_path, Evaluator(Halves(), pushing, recipe(AttackConfig(name="pgd"), checks=ChecksConfig(images=4)))
        )
        assert levels(content)["saturation"] == "amber"

    def test_where_nothing_can_be_planted_the_other_checks_are_made(self, tmp_path):
        """The last linear layer, whose input a planted example is read from, takes no part in the answer."""

        class Idle(Halves):
            def __init__(self):
                super().__init__()
                self.unused = torch.nn.Linear(2, 2)

        evaluator = Evaluator(Idle(), None, recipe(AttackConfig(name="pgd"), checks=ChecksConfig(images=4)))
        concluded(tmp_path, evaluator)
        made = {row["check"] for row in read_json(tmp_path / "checks.json")}
        assert "more-steps" in made
        assert "planted-missed" not in made
