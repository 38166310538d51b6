"""Does an attack find what is certainly there? The binarisation test of Zimmermann et al. 2022.

"Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022), Algorithm 1. For each image some points of the
ball's inside and one on its edge are drawn, and a linear readout of the defence's own features is fitted that tells the
one from the others. The edge point is thus an adversarial example of a defence that differs from the real one in its last
layer only. An attack that does not find one where it is known to exist proves nothing where it finds none.

A random defence is frozen: one draw for each image, which the attack knows. So the test is of the gradient and of the
search, not of averaging over draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustmim.attacks.features import with_features
from robustmim.attacks.objectives import Logits
from robustmim.attacks.parts import Features, Parts
from robustmim.attacks.target import Attack, Target
from robustmim.geometry import Ball
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

INSIDE = 0.9
"""Radius of the inner points' ball, as a share of the budget."""
THRESHOLD = 0.9
"""Where between the highest inner point and the planted one the answer changes: near the planted one, so that it is hard to find."""
_RIDGE = 1e-4


@dataclass(frozen=True)
class Planted:
    """What came of the planted examples.

    Attributes:
        n: images whose readout tells the planted point from all others.
        found: of those, how many the attack brought to the planted side.
        at_random: of those, how many fell to as many random points of the whole ball as there were inner points.
    """

    n: int
    found: int
    at_random: int


@dataclass(frozen=True)
class Readout:
    """One linear readout for each image, in the order of its keys; positive is the planted side.

    Attributes:
        keys: one per image, by which its readout is found among some of a batch.
        weight: `[B, features]`.
        bias: `[B]`.
        apart: whether the readout tells the planted point from all inner ones.
    """

    keys: Keys
    weight: Features
    bias: PerSample
    apart: Tensor

    def __call__(self, features: Features, drawn: Keys) -> Logits:
        """Return two logits for each image: inside, planted."""
        place = (drawn.values[:, None] == self.keys.values).int().argmax(1)
        value = (features * self.weight[place]).sum(1) + self.bias[place]
        return torch.stack([-value / 2, value / 2], dim=1)


def fit(keys: Keys, inner: Tensor, planted: Features) -> Readout:
    """Fit the readouts by ridge regression, the planted point as heavy as all inner ones.

    Args:
        keys: one per image.
        inner: features of the inner points, `[points, B, features]`.
        planted: features of the planted ones.
    """
    points = torch.cat([inner, planted[None]]).double().transpose(0, 1)
    count = len(inner)
    weights = points.new_ones(count + 1)
    weights[-1] = count
    mean = (points * weights[:, None]).sum(1, keepdim=True) / weights.sum()
    centred = points - mean
    aim = torch.cat([-points.new_ones(count), points.new_ones(1)])
    # In the space of points, of which there are fewer than features: w = Xᵀ (X Xᵀ + λ W⁻¹)⁻¹ t.
    gram = centred @ centred.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=1e-30)
    ridge = _RIDGE * size / weights
    dual = torch.linalg.solve(gram + torch.diag_embed(ridge), aim.expand(len(points), -1)[..., None])
    weight = (centred * dual).sum(1)
    values = (points * weight[:, None]).sum(2)
    highest, own = values[:, :-1].amax(1), values[:, -1]
    # Scaled so that the values of inner points and of the planted one differ by ten: logits of an ordinary size.
    scale = 10 / (own - highest).clamp(min=1e-30)
    weight, bias = weight * scale[:, None], -(highest + THRESHOLD * (own - highest)) * scale
    return Readout(keys, weight.to(planted), bias.to(planted), own - highest > 1e-6 * values.abs().amax(1))


def plant(
    target: Target, attack: Attack, parts: Parts, x: Images, ball: Ball, drawn: Keys, *, inner: int = 32
) -> Planted:
    """Plant an adversarial example for each image, and count how many an attack finds.

    Args:
        target: the defence as the attack sees it; it is asked on one known draw.
        attack: any that climbs the loss of the answers.
        parts: whose classifier's last linear layer gives the features.
        x: `[B, C, H, W]` in [0, 1].
        ball: the budget.
        drawn: keys `[B]` of the points and of the defence's frozen draws.
        inner: points of the inside, for each image; with more of them it is harder to find.

    Raises:
        RecipeError: the classifier has no linear layer, or does not use its last one; an attack that two classes are too few for.
    """
    frozen = drawn.fold("defence")
    both = with_features(target.scores, parts.layer(None))
    inside = Ball(norm=ball.norm, eps=INSIDE * ball.eps)

    @torch.no_grad()
    def features(points: Images) -> Features:
        return both(points, frozen, 1.0)[1]

    # In a random direction as far as the budget goes: in l∞ to a corner.
    away = ball.random(x, drawn.fold("planted")) - x
    length = ball.distance(x + away, x).clamp(min=1e-12).view(-1, 1, 1, 1)
    edge = ball.project(x + (away.sign() if ball.norm == "linf" else away / length) * ball.eps, x)
    points = [x, *(inside.random(x, drawn.fold("inner", number)) for number in range(inner - 1))]
    readout = fit(frozen, torch.stack([features(point) for point in points]), features(edge))

    def scores(images: Images, own: Keys, progress: float) -> Logits:
        return readout(both(images, own, progress)[1], own)

    planted = replace(target, scores=scores, known=frozen, draws=1, chunk=1, randomised=False, drop=True)
    some = readout.apart.nonzero()[:, 0]
    if not len(some):
        return Planted(0, 0, 0)
    y = torch.zeros(len(some), dtype=torch.long, device=x.device)

    @torch.no_grad()
    def crossed(images: Images) -> Tensor:
        return scores(images, frozen[some], 1.0).argmax(1) == 1

    found = crossed(attack(planted[some], x[some], y, ball))
    luck = torch.zeros_like(found)
    for number in range(inner):
        luck |= crossed(ball.random(x, drawn.fold("luck", number))[some])
    return Planted(len(some), int(found.sum()), int(luck.sum()))
