"""A tour of broken defences: each was once published in some form.

The suite must bring each to within two points of what the undefended classifier, or the best attack there is, leaves; and the
right check must turn red or amber. The classifier is linear, so the best attack is known: every pixel by ε towards the other
class.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn

from robustmim.config import AMRMConfig, AttackConfig, GradientConfig
from robustmim.evaluate.honesty import status
from robustmim.evaluate.run import Evaluator
from robustmim.purify.amrm import AMRMPure
from robustmim.radius import Radius
from tests.toys import Neighbours
from tests.unit.test_evaluate import Halves, Images, Purify, R, concluded, levels, noisy, recipe

N = 120
POINTS = 0.02
SQUARE = AttackConfig(name="square", attack="square", options={"queries": 2000})


def source():
    return Images(n=N, largest=41)


def measured(path, model, purifier, *attacks, **changes):
    plain = {"batch_size": N, "draws": 8} | changes
    return concluded(path, Evaluator(model, purifier, recipe(*attacks, **plain)), source())


def best(model, front=lambda x: x):
    """Return the accuracy that the best attack leaves of Halves behind a front that is monotone in every pixel."""
    images = source()
    towards = (1 - 2 * images.labels).view(-1, 1, 1, 1) * R
    x = images.images.float() / 255
    side = x.shape[-1] // 2
    x = torch.cat([x[..., :side] + towards, x[..., side:] - towards], 3).clamp(0, 1)
    return float((model(front(x)).argmax(1) == images.labels).float().mean())


def quantised(x):
    """Like the heart of JPEG: coarse steps, whose derivative is zero."""
    return (x * 64).round() / 64


class Behind(nn.Module):
    """Halves behind a front end that is a part of the model."""

    def __init__(self, front):
        super().__init__()
        self.front, self.halves = front, Halves()

    def forward(self, x):
        return self.halves(self.front(x))


def test_the_base_is_what_geometry_says(tmp_path):
    found = measured(tmp_path, Halves(), None, AttackConfig(name="pgd"))
    assert found["worst_case"]["accuracy"] == pytest.approx(best(Halves()), abs=POINTS)
    assert 0.3 < best(Halves()) < 0.9


def test_random_input_noise(tmp_path):
    """Noise blurs the answers; what the best attack leaves of them has a closed form."""
    deviation = 0.1 * math.sqrt(2 / 96)  # of the difference of two means over 96 values
    margins = (source().gap - 2 * R).tolist()
    expected = sum(NormalDist(0, deviation).cdf(margin) for margin in margins) / N
    pgd = AttackConfig(name="pgd", eot=4, options={"drop": False})
    careful = measured(tmp_path / "careful", Halves(), noisy(0.1), pgd)
    assert careful["worst_case"]["accuracy"] == pytest.approx(expected, abs=POINTS)
    assert careful["worst_case"]["rules"]["worst"] < careful["worst_case"]["accuracy"] - 0.1  # luck is no break
    assert "no-eot" not in levels(careful)
    careless = measured(tmp_path / "careless", Halves(), noisy(0.1), AttackConfig(name="pgd"))
    assert levels(careless)["no-eot"] == "red"


def test_quantisation(tmp_path):
    """As a part of the model it has no gradient, and an attack without one finds it out; as a purifier it is skipped."""
    model = Behind(quantised)
    inside = measured(tmp_path / "inside", model, None, AttackConfig(name="pgd"), SQUARE)
    assert levels(inside)["zero-gradient"] == "red"
    assert levels(inside)["black-box-wins"] == "red"
    assert inside["worst_case"]["accuracy"] <= best(Halves(), quantised) + POINTS
    purifier = Purify(lambda x, drawn: quantised(x), randomised=False)
    through = measured(tmp_path / "through", Halves(), purifier, AttackConfig(name="pgd", options={"drop": False}))
    assert through["worst_case"]["accuracy"] <= best(Halves(), quantised) + POINTS
    assert levels(through)["identity-gradient"] == "amber"


def test_a_purifier_that_steps_by_the_sign_of_a_gradient(tmp_path):
    settings = AMRMConfig(steps=2, step_size=Radius("2/255"), mask_ratio=0.25)
    purifier = AMRMPure(Neighbours(), settings)
    identity = AttackConfig(name="identity", eot=2, options={"drop": False})
    tanh = AttackConfig(name="tanh", eot=2, options={"drop": False}, gradient=GradientConfig(mode="tanh"))
    weak = measured(tmp_path / "weak", Halves(), purifier, identity)
    assert levels(weak)["identity-gradient"] == "amber"
    full = measured(tmp_path / "full", Halves(), purifier, identity, tanh)
    assert "identity-gradient" not in levels(full)
    assert full["worst_case"]["accuracy"] <= best(Halves()) + POINTS


def test_a_detached_purifier(tmp_path):
    """Cut off from the graph inside the model it shows no gradient; named as a purifier it is attacked as the identity."""
    inside = measured(tmp_path / "inside", Behind(lambda x: x.detach()), None, AttackConfig(name="pgd"), SQUARE)
    assert levels(inside)["zero-gradient"] == "red"
    assert status(inside["findings"]) == "red"
    assert inside["worst_case"]["accuracy"] <= best(Halves()) + POINTS
    purifier = Purify(lambda x, drawn: x.detach(), randomised=False)
    through = measured(tmp_path / "through", Halves(), purifier, AttackConfig(name="pgd"))
    assert through["worst_case"]["accuracy"] <= best(Halves()) + POINTS


def test_a_softmax_saturated_by_its_temperature(tmp_path):
    loud = Halves(gain=1e5)
    blind = measured(tmp_path / "blind", loud, None, AttackConfig(name="pgd"))
    assert levels(blind)["zero-gradient"] == "red"
    margin = AttackConfig(name="margin", options={"loss": "margin"})
    seen = measured(tmp_path / "seen", loud, None, AttackConfig(name="pgd"), margin)
    assert seen["worst_case"]["accuracy"] == pytest.approx(best(Halves()), abs=POINTS)
