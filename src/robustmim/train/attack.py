"""The inner maximisation of adversarial training: a few steps that make images worse for the model being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from robustmim.config import AdversarialTrainingConfig
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.rng import Keys
from robustmim.types import Images, PerSample

Statistics = Literal["batch", "running"]


@contextmanager
def attackable(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Let a model that trains be attacked without a trace in it.

    Args:
        model: the network itself, not a wrapper of it: an attack makes no reductions.
        statistics: what batch norm goes by. "batch": as the model trains, without remembering the batch; running averages
            lag behind, and an attack on them can miss the network that is trained. "running": evaluation mode, in which the
            model will be used and in which most papers attack it.
    """
    training = [module for module in model.modules() if module.training]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    if statistics == "running":
        model.eval()
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


@dataclass(frozen=True, kw_only=True)
class TrainingAttack:
    """Projected steps of steepest ascent from a noisy start (Madry et al. 2018).

    Attributes:
        ball: the budget.
        steps: gradient steps; 0 leaves the images as they are.
        step_size: step as a fraction of the budget.
        start: distribution of the start noise: uniform in the ball of `start_noise` times the budget, or normal with that
            deviation (TRADES, whose divergence has no slope at the image itself).
        start_noise: its size as a multiple of the budget.
        project: onto the ball, after each step; otherwise images only stay in [0, 1] (de Jorge et al. 2022).
        statistics: what batch norm goes by meanwhile; see `attackable`.
    """

    ball: Ball = Ball()
    steps: int = 10
    step_size: float = 0.25
    start: Literal["uniform", "normal"] = "uniform"
    start_noise: float = 1.0
    project: bool = True
    statistics: Statistics = "running"

    def configured(self, config: AdversarialTrainingConfig) -> TrainingAttack:
        """Return this attack with all that a recipe says otherwise."""
        said = {
            "steps": config.steps,
            "step_size": config.step_size,
            "start": config.start,
            "start_noise": config.start_noise,
            "project": config.project,
            "statistics": config.statistics,
        }
        own = {name: value for name, value in said.items() if value is not None}
        return replace(self, ball=Ball(norm=config.norm, eps=config.radius), **own)  # type: ignore[arg-type]

    def begin(self, x: Images, keys: Keys) -> Images:
        """Return the noisy start of each image."""
        size = self.start_noise * self.ball.eps
        if self.start == "uniform":
            return Ball(norm=self.ball.norm, eps=size).random(x, keys)
        return self._reach().project(x + size * keys.normal(*x.shape[1:]).to(x), x)

    def _reach(self) -> Ball:
        return self.ball if self.project else Ball(norm=self.ball.norm, eps=float("inf"))

    def __call__(self, model: nn.Module, x: Images, objective: Callable[[Images], PerSample], keys: Keys) -> Images:
        """Return images around `x` at which the objective is larger.

        Args:
            model: what the objective asks.
            x: `[B, C, H, W]` in [0, 1].
            objective: images → values `[B]`.
            keys: a sample's start depends on its key alone.
        """
        with attackable(model, self.statistics):
            return projected_descent(
                lambda images, step: objective(images),
                x,
                self._reach(),
                steps=self.steps,
                step_size=lambda step: self.step_size * self.ball.eps,
                maximise=True,
                start=self.begin(x, keys.fold("start")) if self.steps else x,
            ).last
