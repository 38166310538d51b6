"""Residual networks (He et al. 2016): the small ones for CIFAR (section 4.2) and ResNet-50/101 for ImageNet.

Parameter names are those of the files people have: the widespread CIFAR checkpoints and torchvision's.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.models.normalise import IMAGENET, Normalise, Statistics
from robustmim.registry import register
from robustmim.types import Images


def initialise_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from He's normal distribution (fan out, ReLU)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, outputs, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            # Every second pixel; the new channels are zeros, half of them before the old ones and half behind.
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """The ResNet of He et al. 2016, section 4.2: three stages of 16, 32 and 64 channels on [0, 1] images.

    Args:
        blocks: residual blocks in each stage; the depth is 6 · blocks + 2.
        classes: number of logits.
        statistics: mean and deviation the pixels are normalised by.
    """

    def __init__(self, *, blocks: int, classes: int = 10, statistics: Statistics = IMAGENET) -> None:
        super().__init__()
        self.normalise = Normalise(statistics)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        initialise_convolutions(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1]; made for 32 pixels, takes any size."""
        x = F.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions beside a shortcut; the stride sits on the 3 × 3 one, as torchvision has it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, H, W]` to `[B, 4 · width, ⌈H / stride⌉, ⌈W / stride⌉]`."""
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ImageNetResNet(nn.Module):
    """The bottleneck ResNet of He et al. 2016, table 1, on [0, 1] images; parameter names of torchvision.

    Args:
        blocks: bottlenecks in each of the four stages: (3, 4, 6, 3) for ResNet-50.
        classes: number of logits.
        statistics: mean and deviation the pixels are normalised by.
    """

    def __init__(
        self, *, blocks: tuple[int, int, int, int], classes: int = 1000, statistics: Statistics = IMAGENET
    ) -> None:
        super().__init__()
        self.normalise = Normalise(statistics)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(64, 64, blocks[0], stride=1)
        self.layer2 = self._stage(256, 128, blocks[1], stride=2)
        self.layer3 = self._stage(512, 256, blocks[2], stride=2)
        self.layer4 = self._stage(1024, 512, blocks[3], stride=2)
        self.fc = nn.Linear(2048, classes)
        initialise_convolutions(self)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = Bottleneck(inputs, width, stride)
        return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, H, W]` in [0, 1]; made for 224 pixels, takes any size from 32."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(self.normalise(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _cifar(depth: int) -> None:
    @register("classifier", f"resnet{depth}")
    def build(*, classes: int = 10, statistics: Statistics = IMAGENET) -> CifarResNet:
        # The public CIFAR checkpoints were trained with ImageNet's statistics, hence the default.
        return CifarResNet(blocks=(depth - 2) // 6, classes=classes, statistics=statistics)

    build.__qualname__ = build.__name__ = f"resnet{depth}"


def _imagenet(depth: int, blocks: tuple[int, int, int, int]) -> None:
    @register("classifier", f"resnet{depth}")
    def build(*, classes: int = 1000, statistics: Statistics = IMAGENET) -> ImageNetResNet:
        return ImageNetResNet(blocks=blocks, classes=classes, statistics=statistics)

    build.__qualname__ = build.__name__ = f"resnet{depth}"


for _depth in (20, 32, 44, 56, 110):
    _cifar(_depth)
_imagenet(50, (3, 4, 6, 3))
_imagenet(101, (3, 4, 23, 3))
