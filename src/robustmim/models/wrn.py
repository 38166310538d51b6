"""Wide residual networks WRN-depth-widen (Zagoruyko & Komodakis 2016), pre-activation.

Parameter names are those of the usual CIFAR checkpoints: `block1.layer.0.bn1`, `block1.layer.0.convShortcut`, `fc`.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import RecipeError
from robustmim.models.normalise import CIFAR10, Normalise, Statistics
from robustmim.models.resnet import initialise_convolutions
from robustmim.registry import register
from robustmim.types import Images

Activation = Literal["relu", "swish"]


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.SiLU()


class WideBlock(nn.Module):
    """Norm, activation, 3 × 3 convolution, twice, beside a shortcut that is a 1 × 1 convolution where widths differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, activation: Activation) -> None:
        super().__init__()
        self.same_width = inputs == outputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.activation = _activation(activation)
        if not self.same_width:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        active = self.activation(self.bn1(x))
        # Where the width changes, the shortcut starts behind the first activation.
        shortcut = x if self.same_width else self.convShortcut(active)
        hidden = self.activation(self.bn2(self.conv1(active)))
        return shortcut + self.conv2(self.dropout(hidden))


class WideStage(nn.Module):
    """Blocks of one width; the first one halves the resolution."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, stride: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride, dropout, activation)
        self.layer = nn.Sequential(
            first, *(WideBlock(outputs, outputs, 1, dropout, activation) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks in order."""
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen on [0, 1] images.

    Args:
        depth: 6 · n + 4 layers, n blocks in each of the three stages.
        widen: factor on the widths 16, 32, 64 of the stages.
        classes: number of logits.
        dropout: probability of zeroing a value between the two convolutions of a block.
        activation: "relu", or "swish" (SiLU), which robust training favours (Gowal et al. 2020).
        statistics: mean and deviation the pixels are normalised by.

    Raises:
        RecipeError: a depth that is not 6 · n + 4.
    """

    def __init__(
        self,
        *,
        depth: int,
        widen: int,
        classes: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
        statistics: Statistics = CIFAR10,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise RecipeError(f"a wide ResNet has 6 · n + 4 layers (10, 16, 22, 28, 34, …), which {depth} is not")
        self.normalise = Normalise(statistics)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, 16 * widen, blocks, 1, dropout, activation)
        self.block2 = WideStage(16 * widen, 32 * widen, blocks, 2, dropout, activation)
        self.block3 = WideStage(32 * widen, 64 * widen, blocks, 2, dropout, activation)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.activation = _activation(activation)
        self.fc = nn.Linear(64 * widen, classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1]; made for 32 pixels, takes any size."""
        x = self.block3(self.block2(self.block1(self.conv1(self.normalise(x)))))
        x = F.adaptive_avg_pool2d(self.activation(self.bn1(x)), 1)
        return self.fc(x.flatten(1))


@register("classifier", "wide-resnet")
def wide_resnet(
    *,
    depth: int,
    widen: int,
    classes: int = 10,
    dropout: float = 0.0,
    activation: Activation = "relu",
    statistics: Statistics = CIFAR10,
) -> WideResNet:
    """Build any WRN-depth-widen; see `WideResNet`."""
    return WideResNet(
        depth=depth, widen=widen, classes=classes, dropout=dropout, activation=activation, statistics=statistics
    )


def _sizes(depth: int, widen: int) -> None:
    name = f"wrn-{depth}-{widen}"

    @register("classifier", name)
    def build(
        *,
        classes: int = 10,
        dropout: float = 0.0,
        activation: Activation = "relu",
        statistics: Statistics = CIFAR10,
    ) -> WideResNet:
        return wide_resnet(
            depth=depth, widen=widen, classes=classes, dropout=dropout, activation=activation, statistics=statistics
        )

    build.__qualname__ = build.__name__ = name.replace("-", "_")


for _depth, _widen in ((16, 4), (28, 10), (34, 10), (70, 16)):
    _sizes(_depth, _widen)
