"""A small convolutional classifier that learns CIFAR in minutes: six convolutions behind a whitening layer.

The recipe follows what made fast CIFAR training fast (Page 2018, "How to train your ResNet"; Jordan 2024, arXiv
2404.00498): a first layer fixed to the whitening transform of small patches, convolutions that begin as identities,
batch norm without scale, and few epochs at a high rate.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.models.normalise import CIFAR10, Normalise, Statistics
from robustmim.registry import register
from robustmim.types import Images


@runtime_checkable
class InitialisedFromData(Protocol):
    """A model whose first layer is computed from training images before the first step."""

    def initialise_from(self, images: Images) -> None:
        """Set the layer from some thousand training images in [0, 1]."""


def _norm(channels: int) -> nn.BatchNorm2d:
    # The scale would only compete with the next convolution's; the quick average suits a training of few steps.
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class Stage(nn.Module):
    """Convolution, halving pool, convolution; norm and GELU after each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = _norm(outputs)
        self.activation = nn.GELU()
        for conv in (self.conv1, self.conv2):
            # The first filters pass their inputs on unchanged, so that signals reach the end from the first step.
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, H // 2, W // 2]`."""
        x = self.activation(self.norm1(self.pool(self.conv1(x))))
        return self.activation(self.norm2(self.conv2(x)))


@register("classifier", "fast-cnn")
class FastCNN(nn.Module):
    """Whitening layer, three stages, linear head; for 32-pixel images in [0, 1].

    Args:
        widths: channels of the three stages.
        classes: number of logits.
        statistics: mean and deviation the pixels are normalised by.
        whitened: fix the first layer to the whitening transform; if not, it is learned. Whitening blows up the faintest
            directions, which is what an adversarial perturbation lives on: adversarial training is better without it.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int] = (64, 192, 256),
        classes: int = 10,
        statistics: Statistics = CIFAR10,
        whitened: bool = True,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(statistics)
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whitened = whitened
        self.whiten.weight.requires_grad_(not whitened)
        self.activation = nn.GELU()
        self.stages = nn.Sequential(Stage(24, widths[0]), Stage(widths[0], widths[1]), Stage(widths[1], widths[2]))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[2], classes, bias=False)
        # Convolutions run faster with the channels last, on CPU and GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def initialise_from(self, images: Images) -> None:
        """Fix the first layer to the whitening transform of the images' 2 × 2 patches: its 12 directions, both signs."""
        if not self.whitened:
            return
        patches = nn.functional.unfold(self.normalise(images), 2).transpose(1, 2).flatten(0, 1)
        covariance = (patches - patches.mean(0)).T @ (patches - patches.mean(0)) / len(patches)
        values, vectors = torch.linalg.eigh(covariance.double())
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).flip(0).float()
        with torch.no_grad():
            self.whiten.weight.copy_(torch.cat([filters, -filters]))
            nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1], H and W of 16 pixels or more."""
        x = self.activation(self.whiten(self.normalise(x)))
        # A fixed small gain keeps the softmax soft at the start, when the head's inputs are maxima of whitened pixels.
        return self.head(self.pool(self.stages(x)).flatten(1)) / 9
