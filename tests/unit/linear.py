"""A linear classifier, whose distances to the decision boundary are known."""

from __future__ import annotations

import torch

from robustmim.attacks.target import Target
from robustmim.geometry import Ball
from robustmim.rng import keys

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


class Linear:
    """Four classes, twelve images in the middle of the cube, and each one's distance to the nearest other class."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 48, generator=generator)
        self.x = torch.rand(12, 3, 4, 4, generator=generator) * 0.2 + 0.4
        self.y = self(self.x).argmax(1)

    def __call__(self, z, drawn=None, progress=0.0):
        return (z - 0.5).flatten(1) @ self.weight.T

    def distances(self, norm):
        gaps = self(self.x).gather(1, self.y[:, None]) - self(self.x)
        lengths = torch.linalg.vector_norm(self.weight[self.y][:, None] - self.weight[None], ord=DUAL[norm], dim=2)
        return (gaps / lengths).scatter(1, self.y[:, None], torch.inf).amin(1)

    def target(self, **options):
        return Target(scores=self, keys=keys(0, "attack", torch.arange(12)), **options)

    def ratios(self, attack, norm):
        """Return the distance that an attack finds without a budget, as a multiple of the true one."""
        ball = Ball(norm=norm, eps=float("inf"))
        found = attack(self.target(), self.x, self.y, ball)
        assert (self(found).argmax(1) != self.y).all()
        return ball.distance(found, self.x) / self.distances(norm)

    def falls_beyond_its_distance_and_never_before(self, attack, norm, factor):
        """Say so for a budget in the middle of the distances, but for those that are within a factor beyond it."""
        distances = self.distances(norm)
        eps = float(distances.median())
        ball = Ball(norm=norm, eps=eps)
        found = attack(self.target(), self.x, self.y, ball)
        assert (ball.distance(found, self.x) <= eps * (1 + 1e-5)).all()
        fell = self(found).argmax(1) != self.y
        assert not fell[distances > eps * 1.0001].any()
        return bool(fell[distances * factor < eps].all() and (distances * factor < eps).any())


def lucky(z, drawn, progress):
    """Score class 0 highest in seven draws of ten and class 1 in the others, whatever the image."""
    away = (drawn.fold("luck").uniform(1) < 0.3).to(z)
    return torch.cat([1 - away, away, torch.zeros_like(away)], 1) + 0 * z.sum((1, 2, 3))[:, None]
