"""Recipes of classifiers. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from robustmim.config.common import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from robustmim.radius import Radius


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Guard against catastrophic overfitting (Wong et al. 2020): one-step training that suddenly holds against one step only.

    PGD is run now and then on a few training images as they are. Where its accuracy has fallen far below the best so far, the
    weights go back to the check before.
    """

    action: Literal["none", "stop", "enlarge"] | None = None
    """What follows: no guard at all; the end of the run; or attacks of one step more from then on. Default: enlarge for the
    method fast, which collapses without one, and none for others."""
    every: int = 200
    """Optimiser steps between checks."""
    images: int = 128
    """Training images that PGD is run on."""
    steps: int = 10
    """Its steps."""
    drop: float = 0.2
    """Fall of the accuracy that counts as overfitting."""


@dataclass(frozen=True, kw_only=True)
class AdversarialTrainingConfig:
    """Adversarial training (Madry et al. 2018): the loss is taken on images that a few steps have made worse.

    What is left out is the method's own, as in its paper (docs/concepts).
    """

    method: str = "n-fgsm"
    """natural, pgd-at, apgd-at, n-fgsm, fast, free, trades, mart, generalist, dbat or score; `robustmim list methods`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the method: beta of trades, mart and score, replays of free, …"""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    radius: Radius = Radius("8/255")
    """Budget."""
    steps: int | None = None
    """Gradient steps."""
    step_size: float | None = None
    """Step as a fraction of the budget."""
    start: Literal["uniform", "normal"] | None = None
    """Distribution of the start noise."""
    start_noise: float | None = None
    """Half-width of the uniform, deviation of the normal start noise, as a multiple of the budget."""
    project: bool | None = None
    """Project onto the ball; otherwise images only stay in [0, 1]."""
    statistics: Literal["batch", "running"] | None = None
    """Batch norm in the attack: by the batch, as the model trains, or by running averages, as it is used."""
    validation_images: int = 512
    """Images that PGD is run on at each evaluation."""
    validation_steps: int = 10
    """Its steps."""
    guard: GuardConfig = GuardConfig()
    """Against catastrophic overfitting."""


@dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """Images from a generative model beside the training set's, such as the published EDM sets (Wang et al. 2023)."""

    file: str
    """An npz with `image` [n, H, W, 3], bytes, and `label` [n]; looked for as it is, then in the folder of data sets."""
    fraction: float = 0.7
    """Share of each batch that comes from it."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Train a classifier."""

    model: ModelConfig
    start_from: str | None = None
    """Begin with the weights of a saved model (zoo name or folder) instead of random ones; of a masked autoencoder, its
    encoder."""
    start_norm: Literal["new", "kept"] = "new"
    """Norm before the head where the start is an encoder: a new one (MIMIR's code), or the encoder's own final norm."""
    data: DataConfig = DataConfig()
    generated: GeneratedConfig | None = None
    """Generated images in each batch; an epoch has as many steps as without."""
    validation: DataConfig = DataConfig(split="test")
    """Images the accuracy is measured on."""
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    label_smoothing: float = 0.0
    """Weight of the uniform distribution in the targets."""
    adversarial: AdversarialTrainingConfig | None = None
    """Train against attacks, by one of many methods; none for plain training, whose robustness is not measured either."""
