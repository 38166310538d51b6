"""Masked convolution: a small U-Net that predicts hidden pixels, for images of any size. Not in the papers.

Masks at the scale of one or two pixels see attacks that patches of four do not: what a mask hides is predicted with an
error σ, and a perturbation ε well below σ drowns in it; a pixel is predicted far better than a patch. The idea of
predicting single pixels from their surroundings is that of blind-spot denoising (Krull et al. 2019, Noise2Void; Batson
and Royer 2019, Noise2Self), here inside AMRM-Pure's Algorithm 1.

A hidden pixel is first filled with a weighted mean of the visible ones around it (normalised convolution, Knutsson and
Westin 1993); the U-Net, which also sees the mask, adds what that misses. It works on a half-size grid of 2 × 2 pixels
(FFDNet, Zhang et al. 2018), which has the same pixels at a quarter of the positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.errors import InputError
from robustmim.models.masked import PixelModel
from robustmim.models.vit import grid_of
from robustmim.registry import register
from robustmim.types import Images

_REACH = 2  # the filling looks two pixels far: a 5 × 5 window
Conditions = Sequence[Tensor | None]
"""What is added to the features of each level, `[B, channels, 1, 1]`; None for nothing."""


def _told(features: Tensor, condition: Tensor | None) -> Tensor:
    return features if condition is None else features + condition


class _Residual(nn.Module):
    """Two convolutions added to their input; begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.SiLU()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.activation(self.conv1(x)))


class _Filling(nn.Module):
    """Fill hidden pixels with a mean of the visible ones around them, weighted by learned, positive weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
        distance = line.square()[:, None] + line.square()[None]
        self.log_weight = nn.Parameter(-distance.repeat(channels, 1, 1, 1))
        self.channels = channels

    def forward(self, visible_pixels: Tensor, visible: Tensor) -> Tensor:
        weight = self.log_weight.exp()
        total = F.conv2d(visible_pixels, weight, padding=_REACH, groups=self.channels)
        count = F.conv2d(visible.expand_as(visible_pixels).contiguous(), weight, padding=_REACH, groups=self.channels)
        # Where the whole window is hidden this is zero, the mid grey that images are centred on.
        return total / (count + 1e-3)


@register("masked-model", "masked-conv")
class MaskedConvolution(PixelModel):
    """Predict hidden pixels of [0, 1] images of any size.

    Args:
        patch_size: side of a cell of the mask in pixels, 1 or 2 (larger ones work too).
        widths: channels at half size, quarter size, ….
        blocks: residual blocks per level, on the way down and again on the way up.
    """

    def __init__(
        self,
        *,
        patch_size: int = 1,
        widths: tuple[int, ...] = (48, 96),
        blocks: tuple[int, ...] = (2, 2),
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise InputError(f"widths {widths} and blocks {blocks} must have one entry per level each")
        self.patch_size = patch_size
        self.multiple = 2 ** len(widths)
        self.filling = _Filling(3)
        self.stem = nn.Conv2d(4 * 4, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(widths[k], widths[k + 1], 2, stride=2) for k in range(len(widths) - 1))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[k + 1], widths[k], 2, stride=2) for k in range(len(widths) - 1)
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(*(_Residual(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(_Residual(widths[k]) for _ in range(blocks[k]))) for k in range(len(widths) - 1)
        )
        self.head = nn.Conv2d(widths[0], 4 * 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        # Convolutions run faster with the channels last, on CPU and GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask.

        Raises:
            InputError: a size that `patch_size` does not divide.
        """
        return grid_of(height, width, self.patch_size)

    def predict(self, x: Images, hidden: Tensor) -> Images:
        """Predict every pixel from the visible ones.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            hidden: bool `[B, 1, H, W]`.
        """
        height, width = x.shape[-2:]
        border = (0, -width % self.multiple, 0, -height % self.multiple)
        visible = (~hidden).to(x.dtype)
        pixels = (x - 0.5) * visible
        if any(border):
            # Beyond the border there is nothing to see.
            pixels, visible = F.pad(pixels, border), F.pad(visible, border)
        filled = self.filling(pixels, visible)
        seen = pixels + filled * (1 - visible)
        features = F.pixel_unshuffle(torch.cat([seen, 1 - visible], dim=1), 2)
        features = self.stem(features.contiguous(memory_format=torch.channels_last))
        down, up = self.conditions(seen[..., :height, :width])
        skipped: list[Tensor] = []
        for level, encoder in enumerate(self.encoder):
            features = encoder(_told(features, down[level]))
            if level < len(self.down):
                skipped.append(features)
                features = self.down[level](features)
        for level in reversed(range(len(self.up))):
            features = self.decoder[level](_told(self.up[level](features) + skipped[level], up[level]))
        predicted = filled + F.pixel_shuffle(self.head(features), 2)
        return predicted[..., :height, :width] + 0.5

    def conditions(self, seen: Tensor) -> tuple[Conditions, Conditions]:
        """Return what is added to the features of each level, on the way down and on the way up: nothing here.

        Args:
            seen: `[B, 3, H, W]`, pixels minus a half; those that are hidden as they were filled.
        """
        return [None] * len(self.encoder), [None] * len(self.decoder)
