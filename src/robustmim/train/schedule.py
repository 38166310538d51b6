"""Learning rates and optimisers from a recipe."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from robustmim.config import OptimizerConfig
from robustmim.errors import RecipeError


@runtime_checkable
class Layered(Protocol):
    """A model that knows its layers, so that the lower ones can learn more slowly; it may sit inside another one.

    Attributes:
        layers: number of the highest layer, the head's.
        undecayed: names of parameters that have no weight decay though they are no vectors.
    """

    layers: int
    undecayed: tuple[str, ...]

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter of this model, from 0."""


def learning_rate_factor(config: OptimizerConfig, progress: float) -> float:
    """Return the learning rate at `progress` in [0, 1] of the run, as a fraction of the peak."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    fallen = {"constant": 0.0, "linear": rest, "cosine": (1 - math.cos(math.pi * rest)) / 2}[config.schedule]
    return 1 - (1 - config.final) * fallen


def _depths(model: nn.Module) -> tuple[dict[int, int], set[int]]:
    """Return, by id, how many layers each parameter sits below its model's head, and the ones without weight decay."""
    below: dict[int, int] = {}
    undecayed: set[int] = set()
    for part in model.modules():
        if isinstance(part, Layered):
            for name, parameter in part.named_parameters():
                below[id(parameter)] = part.layers - part.layer_of(name)
                if name in part.undecayed:
                    undecayed.add(id(parameter))
    return below, undecayed


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimiser: matrices and filters decay, biases and norms do not and may learn faster.

    With `layer_decay` d, what sits n layers below the head learns at dⁿ times the rate (BEiT, Bao et al. 2022). Each group
    carries its `peak`, the learning rate that the schedule scales.

    Raises:
        RecipeError: layer-wise rates for a model that does not know its layers.
    """
    below, undecayed = _depths(model)
    if config.layer_decay != 1 and not below:
        raise RecipeError(
            f"optimizer.layer_decay is {config.layer_decay:g}, but {type(model).__name__} does not know its layers; set it to 1"
        )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            depth = below.get(id(parameter), 0) if config.layer_decay != 1 else 0
            is_vector = parameter.ndim < 2 or id(parameter) in undecayed
            groups.setdefault((depth, is_vector), []).append(parameter)
    peak = config.learning_rate
    listed: list[dict[str, Any]] = [
        {
            "params": groups[depth, is_vector],
            "weight_decay": 0.0 if is_vector else config.weight_decay,
            "peak": peak * config.layer_decay**depth * (config.bias_scale if is_vector else 1.0),
        }
        for depth, is_vector in sorted(groups)
    ]
    if config.name == "sgd":
        return torch.optim.SGD(listed, lr=peak, momentum=config.momentum, nesterov=config.momentum > 0)
    # All of an update in one pass over the weights, where there is a kernel for it: on a CPU a third of the time.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.AdamW(listed, lr=peak, betas=(config.momentum, config.second_momentum), fused=fused)
