"""A small U-Net that denoises (Ho et al. 2020; EDM, Karras et al. 2022): the generator that diffusion purifiers need.

Residual blocks of two convolutions with one group norm, which is shifted and scaled by noise level and class; what a level
has found on the way down is added on the way up. It works on a half-size grid of 2 × 2 pixels (FFDNet, Zhang et al. 2018),
which has the same pixels at a quarter of the positions. There is no attention: at 32 × 32 pixels three levels see the whole
image, and every layer can be differentiated twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.errors import InputError, RecipeError
from robustmim.models.condition import Condition
from robustmim.models.edm import per_pixel, precondition
from robustmim.registry import register
from robustmim.types import Labels, PerSample, Signed, Tokens

_GROUPS = 8


class _Residual(nn.Module):
    """Two convolutions added to their input, under a condition; begins as the identity."""

    def __init__(self, channels: int, condition_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels, affine=False)
        self.modulation = nn.Linear(condition_width, 2 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tokens) -> Tensor:
        shift, scale = self.modulation(condition)[:, 0, :, None, None].chunk(2, dim=1)
        inner = F.silu(self.norm(x) * (1 + scale) + shift)
        return x + self.conv2(F.silu(self.conv1(inner)))


@register("denoiser", "unet")
class UNet(nn.Module):
    """Denoise images in [-1, 1], with EDM's preconditioning.

    Args:
        image_size: height and width in pixels of the images it draws; it denoises those of other sizes, too.
        channels: of an image.
        widths: channels at half size, quarter size, …, multiples of 8.
        blocks: residual blocks per level, on the way down and again on the way up.
        condition_width: of the embedding of noise level and class.
        classes: labels that it can be told; 0 for an unconditional model.

    Raises:
        RecipeError: levels that do not go together, or a negative number of classes.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        widths: tuple[int, ...] = (48, 96, 128),
        blocks: tuple[int, ...] = (1, 1, 1),
        condition_width: int = 128,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise RecipeError(f"unet: widths {widths} and blocks {blocks} have one entry per level each")
        if any(width % _GROUPS for width in widths):
            raise RecipeError(f"unet: widths are multiples of {_GROUPS}, which {widths} are not")
        if classes < 0:
            raise RecipeError(f"unet: a model knows 0 classes or more, not {classes}")
        self.image_size, self.classes = image_size, classes
        self.multiple = 2 ** len(widths)
        levels = range(len(widths) - 1)
        self.condition = Condition(condition_width, classes)
        self.stem = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.ModuleList(_Residual(width, condition_width) for _ in range(count))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(widths[k], widths[k + 1], 2, stride=2) for k in levels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[k + 1], widths[k], 2, stride=2) for k in levels)
        self.decoder = nn.ModuleList(
            nn.ModuleList(_Residual(widths[k], condition_width) for _ in range(blocks[k])) for k in levels
        )
        self.norm = nn.GroupNorm(_GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], 4 * channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        # Convolutions run faster with the channels last, on CPU and GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def denoise(self, noised: Signed, sigma: PerSample, *, labels: Labels | None = None) -> Signed:
        """Estimate the clean image.

        Args:
            noised: images in [-1, 1] plus Gaussian noise.
            sigma: its deviation, above 0.
            labels: classes, with the number `classes` for none; None for none at all.

        Raises:
            InputError: a size that the levels do not divide, or labels for a model without classes.
        """
        if any(side % self.multiple for side in noised.shape[-2:]):
            raise InputError(
                f"this U-Net takes images whose sides are multiples of {self.multiple} pixels, but got "
                f"{noised.shape[-2]} × {noised.shape[-1]}; resize them"
            )
        if labels is not None and not self.classes:
            raise InputError("this U-Net was trained without classes and takes no labels")
        scale = precondition(sigma)
        predicted = self._network(per_pixel(scale.input) * noised, scale.noise, labels).to(noised.dtype)
        return per_pixel(scale.skip) * noised + per_pixel(scale.out) * predicted

    def _network(self, x: Tensor, noise: PerSample, labels: Labels | None) -> Tensor:
        condition = self.condition(noise, labels)
        features = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        skipped: list[Tensor] = []
        for level, encoder in enumerate(self.encoder):
            for block in encoder:  # type: ignore[attr-defined]
                features = block(features, condition)
            if level < len(self.down):
                skipped.append(features)
                features = self.down[level](features)
        for level in reversed(range(len(self.up))):
            features = self.up[level](features) + skipped[level]
            for block in self.decoder[level]:  # type: ignore[attr-defined]
                features = block(features, condition)
        return F.pixel_shuffle(self.head(F.silu(self.norm(features))), 2)
