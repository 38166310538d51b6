"""Learning rates and optimisers from a recipe."""

from __future__ import annotations

import math

import torch
from torch import nn

from robustmim.config import OptimizerConfig


def learning_rate_factor(config: OptimizerConfig, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] of the run, as a fraction of the peak."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    fallen = {"constant": 0.0, "linear": rest, "cosine": (1 - math.cos(math.pi * rest)) / 2}[config.schedule]
    return 1 - (1 - config.final) * fallen


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser: matrices and filters decay, biases and norms do not and may learn faster.

    Each group carries its `peak`, the learning rate that the schedule scales.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    peak = config.learning_rate
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "peak": peak},
        {"params": vectors, "weight_decay": 0.0, "peak": peak * config.bias_scale},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=peak, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=peak, betas=(config.momentum, config.second_momentum))
