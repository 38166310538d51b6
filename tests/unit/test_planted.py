"""Planted adversarial examples: there for certain, found by an attack that works, missed by one whose gradient is cut off."""

from __future__ import annotations

import pytest
import torch

from robustmim.attacks.parts import Parts
from robustmim.attacks.target import Target
from robustmim.evaluate.planted import fit, plant
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_attacks_apgd import images, network

BALLS = (Ball(norm="linf", eps=0.08), Ball(norm="l2", eps=0.5), Ball(norm="l1", eps=4.0))


def target_of(scores, n):
    return Target(scores=scores, keys=keys(0, "attack", torch.arange(n)))


def test_a_readout_tells_the_planted_point_from_every_inner_one():
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(8, 5, 20, generator=generator)
    planted = torch.randn(5, 20, generator=generator)
    own = keys(0, "readout", torch.arange(5))
    readout = fit(own, inner, planted)
    assert readout.apart.all()
    assert (readout(planted, own).argmax(1) == 1).all()
    for points in inner:
        assert (readout(points, own).argmax(1) == 0).all()
    # Found by its key, wherever it stands in a batch.
    some = torch.tensor([3, 1])
    torch.testing.assert_close(readout(planted[some], own[some]), readout(planted, own)[some])


def test_what_no_linear_readout_tells_apart_is_left_out():
    inner = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    readout = fit(keys(0, "readout", torch.arange(2)), inner, inner.mean(0))  # in the middle of forty points
    assert not readout.apart.any()


# Not PGD in l1: it misses most of them, which is why there is APGD.
@pytest.mark.parametrize(
    ("name", "ball"), [*((name, ball) for name in ("apgd-ce", "apgd-targeted") for ball in BALLS), ("pgd", BALLS[0])]
)
def test_an_attack_that_works_finds_them(name, ball):
    model, x = network(), images()
    found = plant(
        target_of(lambda z, drawn, progress: model(z), len(x)),
        build("attack", name, steps=40),
        Parts(classifier=model),
        x,
        ball,
        keys(0, "planted", torch.arange(len(x))),
    )
    assert found.n >= 6
    assert found.found == found.n
    assert found.at_random < found.n / 2


def test_one_whose_gradient_is_cut_off_does_not():
    model, x = network(), images()

    def quantised(z, drawn, progress):
        return model((z * 255).round() / 255)

    found = plant(
        target_of(quantised, len(x)),
        build("attack", "pgd", steps=20, random_start=False),
        Parts(classifier=model),
        x,
        BALLS[0],
        keys(0, "planted", torch.arange(len(x))),
    )
    assert found.n >= 6
    assert found.found == 0
