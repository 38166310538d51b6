"""The literal AutoAttack leaves the process as it was, and a random defence random."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from robustmim.attacks.target import Target
from robustmim.errors import EnvironmentUnusable, RecipeError
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from tests.unit.test_attacks_apgd import images, network, target_of

BALL = Ball(norm="linf", eps=0.3)


def test_what_it_changes_in_the_process_is_put_back():
    pytest.importorskip("pyautoattack")
    model, x = network(), images(4)
    y = model(x).argmax(1)
    logger = logging.getLogger("auto-attack")
    state, level, handlers = torch.get_rng_state(), logger.level, list(logger.handlers)

    def tracer(frame, event, argument):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        target = target_of(model, x)
        found = build("attack", "auto-attack")(target, x, y, BALL)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (logger.level, logger.handlers) == (level, handlers)
    assert (model(found).argmax(1) != y).all()
    assert (BALL.distance(found, x) <= BALL.eps + 1e-6).all()
    assert target.cost.forward > target.cost.backward > 0


def test_a_random_defence_gets_fresh_draws_in_every_call():
    pytest.importorskip("pyautoattack")
    model, x = network(), images(4)
    y = model(x).argmax(1)
    seen = []

    def noisy(z, drawn, progress):
        seen.extend(drawn.values.tolist())
        return model(z + 0.05 * drawn.normal(*z.shape[1:]))

    target = Target(scores=noisy, keys=keys(0, "attack", content_ids(x)), randomised=True)
    build("attack", "auto-attack", version="rand")(target, x, y, BALL)
    assert len(set(seen)) == len(seen) > 0


def test_known_draws_stay_with_their_images():
    pytest.importorskip("pyautoattack")
    model, x = network(), images(2)
    y = model(x).argmax(1)
    known = keys(3, "defence", content_ids(x))
    pairs = set()

    def scores(z, drawn, progress):
        pairs.add((len(z), *drawn.values.tolist()))
        return model(z)

    build("attack", "auto-attack")(Target(scores=scores, keys=known, known=known), x, y, BALL)
    assert pairs == {(1, key) for key in known.values.tolist()}


def test_what_it_cannot_do_is_said(monkeypatch):
    model, x = network(3), images(2)
    y = model(x).argmax(1)
    with pytest.raises(RecipeError):
        build("attack", "auto-attack", version="plus")
    with pytest.raises(RecipeError):
        build("attack", "auto-attack")(target_of(model, x), x, y, Ball(norm="linf", eps=float("inf")))
    with pytest.raises(RecipeError):
        build("attack", "auto-attack")(target_of(model, x), x, y, BALL)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(EnvironmentUnusable, match=r"robustmim\[aa\]"):
        build("attack", "auto-attack")(target_of(model, x), x, y, BALL)
