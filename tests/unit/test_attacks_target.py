"""Queries of a target: how many draws at once, and who may end them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from robustmim import clock
from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.target import Interrupted, Target, tuned_chunk
from robustmim.config import AttackConfig
from robustmim.data.loader import Batch
from robustmim.evaluate.run import Evaluator
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys
from tests.unit.test_evaluate import Halves, Images, R, noisy, recipe


def test_draws_at_once_are_tuned_once_for_batches_that_are_alike():
    asked = []

    def scores(x, drawn, progress):
        asked.append(len(x))
        return Halves()(x)

    first = Target(scores=scores, keys=keys(0, "a", torch.arange(24)), draws=4, chunk=None)
    x = torch.rand(24, 3, 4, 4)
    chunk = tuned_chunk(first, x)
    assert 1 <= chunk <= 4
    assert asked
    asked.clear()
    # The next batch: another target of the same defence; then what is left of it.
    second = Target(scores=scores, keys=keys(0, "b", torch.arange(24)), draws=4, chunk=None, chunks=first.chunks)
    some = torch.arange(20)
    assert tuned_chunk(second, x) == tuned_chunk(second[some], x[some]) == chunk
    assert not asked
    tuned_chunk(second[torch.arange(5)], x[:5])
    assert asked


def test_what_was_tuned_belongs_to_an_evaluator_and_keeps_nothing_alive():
    evaluator = Evaluator(Halves(), noisy(0.1), recipe(AttackConfig(name="pgd", eot=2)))
    (attack,), source = evaluator.recipe.attacks, Images()
    batch = Batch(source.images.float() / 255, source.labels, source.ids)
    one, two = (evaluator.target(attack, batch, R) for _ in range(2))
    assert one.chunks is two.chunks
    tuned_chunk(one, batch.images)
    alive = weakref.ref(one.scores)
    del one
    gc.collect()
    assert alive() is None
    assert two.chunks


def test_a_clock_waits_for_the_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert clock.seconds(torch.device("cpu")) <= clock.seconds(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pgd", {}),
        ("apgd-ce", {}),
        ("square", {"queries": 50}),
        ("transfer", {"surrogate": "fast-cnn-cifar10"}),
    ],
)
def test_an_attack_ends_when_it_is_told_to(name, options):
    asked = []

    def interrupt():
        asked.append(None)
        if len(asked) == 3:
            raise Interrupted

    x, y = torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    target = Target(
        scores=lambda z, drawn, progress: torch.zeros(len(z), 10) + z.sum((1, 2, 3))[:, None] * torch.arange(10, 0, -1),
        keys=keys(0, "a", torch.arange(2)),
        interrupt=interrupt,
    )
    target.value(x, y, cross_entropy, 0)
    with pytest.raises(Interrupted):
        build("attack", name, **options)(target, x, y, Ball(eps=0.01))
    assert len(asked) == 3
