"""A small network that learns to do what a purifier does: a differentiable stand-in for one that is not.

The attacker needs nothing but the purifier's answers on images of the kind that it will attack. Its derivative then takes the
place of the purifier's (`robustmim.purify.replacement`), as models of a black box do (Papernot et al. 2017). What it cannot
learn is what the purifier's draws decide: it imitates their mean.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from robustmim.geometry import Ball
from robustmim.models.masked import freeze
from robustmim.purify.traits import Purifier
from robustmim.rng import Keys, keys
from robustmim.types import Images


class Imitation(nn.Module):
    """Image → image of the same size: four convolutions that see 9 × 9 pixels, added to their input; begins as the identity.

    Args:
        channels: of the images.
        width: channels between.
        drawn: key of its first weights.
    """

    def __init__(self, channels: int, width: int, drawn: Keys) -> None:
        super().__init__()
        # Bare parameters: torch's layers draw their first weights from the global generator.
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise((channels, width, width, width, channels)):
            weight = drawn.fold("weights", len(self.weights)).normal(outputs, inputs, 3, 3)[0]
            self.weights.append(nn.Parameter(weight * math.sqrt(2 / (9 * inputs))))
            self.biases.append(nn.Parameter(torch.zeros(outputs)))
        nn.init.zeros_(self.weights[-1])

    def forward(self, x: Images) -> Images:
        """Return what the purifier would, about."""
        y = x - 0.5
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = F.conv2d(F.pad(F.gelu(y) if number else y, (1, 1, 1, 1), mode="replicate"), weight, bias)
        return x + y


def imitate(
    purifier: Purifier,
    images: Images,
    ball: Ball,
    *,
    draws: int = 4,
    steps: int = 300,
    batch_size: int = 16,
    width: int = 32,
    seed: int = 0,
) -> Imitation:
    """Train an imitation on what the purifier makes of perturbed images; the same arguments give the same network.

    Args:
        purifier: asked `draws` times for each image.
        images: `[N, C, H, W]` in [0, 1].
        ball: the budget; every other perturbation lies at its edge, where those of attacks lie, the others anywhere.
        draws: perturbations of each image, and draws of the purifier.
        steps: of Adam on the mean squared error, at a rate that falls to zero.
        batch_size: pairs a step.
        width: channels of the network.
        seed: of all draws.
    """
    own = keys(seed, "imitation", torch.arange(len(images), device=images.device))
    before, after = [], []
    for draw in range(draws):
        drawn = own.fold(draw)
        perturbed = ball.random(images, drawn.fold("perturbation"))
        if draw % 2:
            direction = ball.steepest(drawn.fold("direction").normal(*images.shape[1:]).to(images))
            perturbed = ball.project(images + ball.eps * direction, images)
        before.append(perturbed)
        after.append(purifier(perturbed, keys=drawn.fold("purify")))
    seen, wanted = torch.cat(before), torch.cat(after)

    first = Keys(own.values[:1].cpu())
    with torch.inference_mode(False), torch.enable_grad():
        network = Imitation(images.shape[1], width, first).to(images.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            some = first.fold("batch", step).uniform(len(seen))[0].argsort()[:batch_size].to(seen.device)
            loss = F.mse_loss(network(seen[some]), wanted[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    freeze(network)
    return network
