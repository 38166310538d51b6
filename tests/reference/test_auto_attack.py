"""Our attacks against AutoAttack (pyautoattack) on a small robust network and real digits: the same verdict for less."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustmim.attacks.target import Cost, Target
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.registry import build
from robustmim.rng import keys

BUDGETS = {"linf": 0.1, "l2": 0.75}


class Counted(nn.Module):
    """Counts the images that pass forward."""

    def __init__(self, model):
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x):
        self.images += len(x)
        return self.model(x)


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[100:]], y[order[100:]], x[order[:100]], y[order[:100]]


@pytest.fixture(scope="module")
def robust(digits):
    """A small network after some seconds of adversarial training."""
    x, y, _, _ = digits
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    ball = Ball(norm="linf", eps=0.1)
    for step in range(400):
        pick = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
        attacked = projected_descent(
            lambda z, s, pick=pick: F.cross_entropy(model(z), y[pick], reduction="none"),
            x[pick],
            ball,
            steps=4,
            step_size=lambda s: 0.035,
            maximise=True,
        ).last
        optimizer.zero_grad()
        F.cross_entropy(model(attacked), y[pick]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def cascade(model, x, y, ball, attacks):
    """Return which samples stand after all attacks, each given only what the ones before left."""
    standing = model(x).argmax(1) == y
    cost = Cost()
    for attack in attacks:
        left = standing.nonzero()[:, 0]
        target = Target(scores=lambda z, drawn, progress: model(z), keys=keys(0, "attack", left), cost=cost)
        found = attack(target, x[left], y[left], ball)
        assert (ball.distance(found, x[left]) <= ball.eps * (1 + 1e-4)).all()
        assert found.min() >= 0
        assert found.max() <= 1
        standing[left] = model(found).argmax(1) == y[left]
    return standing


@pytest.mark.parametrize("norm", BUDGETS)
def test_the_same_verdict_as_auto_attack_for_half_the_queries(norm, robust, digits):
    pyautoattack = pytest.importorskip("pyautoattack")
    _, _, x, y = digits
    ball = Ball(norm=norm, eps=BUDGETS[norm])
    ours, theirs = Counted(robust), Counted(robust)
    attacks = [build("attack", "apgd-ce", steps=100), build("attack", "apgd-targeted", steps=100)]
    if norm == "linf":
        attacks.append(build("attack", "square", queries=1000))
    standing = cascade(ours, x, y, ball, attacks)

    state, tracer = torch.get_rng_state(), sys.gettrace()
    logging.getLogger("auto-attack").setLevel(logging.CRITICAL)
    try:
        runner = pyautoattack.AutoAttack(
            theirs, norm={"linf": "Linf", "l2": "L2"}[norm], eps=ball.eps, version="standard"
        )
        found = runner.run_standard_evaluation(x, y, batch_size=100)
    finally:
        torch.set_rng_state(state)
        sys.settrace(tracer)
    found = found[0] if isinstance(found, tuple) else found
    reference = robust(found).argmax(1) == y
    print(
        f"{norm}: ours {standing.float().mean():.1%}, {ours.images} images; theirs {reference.float().mean():.1%}, {theirs.images}"
    )
    assert 0 < reference.sum() < 100
    assert abs(int(standing.sum()) - int(reference.sum())) <= 1
    assert 2 * ours.images <= theirs.images


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-targeted", "square"])
def test_a_sample_does_not_depend_on_its_batch(name, robust, digits):
    _, _, x, y = digits
    attack = build("attack", name, **({"queries": 50} if name == "square" else {"steps": 10}))
    ball = Ball(norm="linf", eps=0.05)

    def run(places):
        target = Target(scores=lambda z, drawn, progress: robust(z), keys=keys(0, "attack", places))
        return attack(target, x[places], y[places], ball)

    torch.testing.assert_close(run(torch.arange(12))[[7]], run(torch.tensor([7])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-targeted"])
def test_a_linear_classifier_falls_just_beyond_its_margin(name, norm):
    """Two classes and a hyperplane: the distance to it is known in every norm."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, generator=generator)
    x = torch.rand(8, 3, 4, 4, generator=generator) * 0.2 + 0.4
    scores = x.flatten(1) @ weight
    offset = float(scores.sort().values[3:5].mean())
    y = (scores > offset).long()

    def model(z, drawn=None, progress=0.0):
        score = z.flatten(1) @ weight - offset
        return torch.stack([-score, score], 1)

    dual = {"linf": weight.abs().sum(), "l2": weight.norm(), "l1": weight.abs().max()}[norm]
    distance = (scores - offset).abs() / dual
    attack = build("attack", name, steps=60)
    for i in range(len(x)):
        target = Target(scores=model, keys=keys(0, "attack", torch.tensor([i])))
        one = slice(i, i + 1)
        beyond = attack(target, x[one], y[one], Ball(norm=norm, eps=float(distance[i]) * 1.3))
        assert model(beyond).argmax(1) != y[one]
        short = attack(target, x[one], y[one], Ball(norm=norm, eps=float(distance[i]) * 0.98))
        assert model(short).argmax(1) == y[one]
