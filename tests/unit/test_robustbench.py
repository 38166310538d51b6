"""RobustBench's field names: strings in per cent, and no number by another's name."""

from __future__ import annotations

import dataclasses

from robustmim.config import AttackConfig, DataConfig, EvaluateRecipe
from robustmim.evaluate.robustbench import robustbench_entry
from robustmim.purify.traits import Traits
from robustmim.radius import Radius

STANDARD = AttackConfig(name="AutoAttack", attack="auto-attack", options={"version": "standard"})
RECIPE = EvaluateRecipe(
    data=DataConfig(name="cifar10"),
    radii=(Radius("4/255"), Radius("8/255")),
    attacks=(AttackConfig(name="pgd"), STANDARD),
)


def row(attack, radius, accuracy, defence="bare", n=200):
    return {"attack": attack, "radius": radius, "defence": defence, "accuracy": accuracy, "n": n}


def content(*cells, worst=0.25, defence="bare", **changes):
    plain = {
        "classifier": "wrn",
        "purifier": None if defence == "bare" else "AMRM-Pure",
        "data": "cifar10 test",
        "norm": "linf",
        "seed": 0,
        "images": 200,
        "draws": 1,
        "cells": [row("none", "0", 0.915, defence), *cells],
        "worst_case": {"radius": "8/255", "accuracy": worst, "low": 0.2, "high": 0.31, "n": 200},
        "protocol": {"pgd": "", "AutoAttack": ""},
        "findings": [],
    }
    return plain | changes


def entry(found, recipe=RECIPE, traits=None):
    return robustbench_entry(found, recipe, architecture="WideResNet-28-10", traits=traits)


def test_fields_are_robustbenchs():
    found = entry(content(row("AutoAttack", "8/255", 0.265), row("AutoAttack", "4/255", 0.5)))
    assert found.pop("footnote").startswith("linf, 200 images of cifar10 test")
    assert found == {
        "name": "wrn",
        "dataset": "cifar10",
        "architecture": "WideResNet-28-10",
        "number_forward_passes": 1,
        "clean_acc": "91.50",
        "unreliable": False,
        "eps": "8/255",
        "reported": "25.00",
        "autoattack_acc": "26.50",
        "external": "25.00",  # a better attack than AutoAttack
    }


def test_only_autoattack_itself_is_called_so():
    other = dataclasses.replace(RECIPE, attacks=(AttackConfig(name="AutoAttack", attack="apgd-ce"),))
    random = dataclasses.replace(RECIPE, attacks=(dataclasses.replace(STANDARD, options={"version": "rand"}),))
    own = row("AutoAttack", "8/255", 0.265)
    for found, recipe in (
        (content(own), other),
        (content(own), random),
        (content(row("AutoAttack", "8/255", 0.265, n=100)), RECIPE),  # of some of the images
        (content(own, draws=8), RECIPE),  # on a random defence
        (content(row("AutoAttack", "4/255", 0.265)), RECIPE),  # at another budget
    ):
        assert not {"autoattack_acc", "external"} & set(entry(found, recipe))
        assert entry(found, recipe)["reported"] == "25.00"


def test_a_purifier_is_counted_and_claims_no_rank():
    traits = Traits(randomised=True, optimises_at_test_time=True, steps=10)
    found = entry(content(row("pgd", "8/255", 0.25, "purified"), defence="purified"), traits=traits)
    assert found["number_forward_passes"] == 11
    assert "no rank is claimed" in found["footnote"]


def test_a_red_finding_makes_it_unreliable_and_no_attack_leaves_the_accuracy_out():
    assert entry(content(findings=[{"level": "red"}]))["unreliable"]
    assert not entry(content(findings=[{"level": "amber"}]))["unreliable"]
    assert not {"reported", "eps"} & set(entry(content(worst_case=None)))
