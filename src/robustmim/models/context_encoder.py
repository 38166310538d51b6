"""The context encoder (Pathak et al. 2016): convolutions that predict a hidden region from what surrounds it, without attention.

AMRM-Pure purifies with one as its control, "CE-Pure" (appendix, Table 17), and tells nothing of its size, its masks or its
training: those here are ours. As in the original an encoder halves the image until little is left, a layer connects every place
of a channel with every other one (its section 3.1, "channel-wise fully-connected"), and a decoder doubles it again; there are no
shortcuts, so what is predicted has passed the narrow middle. Unlike the original, whose region is always the same or blanked
out, it is told which pixels are hidden; and it is trained by the squared error alone, without the adversarial loss, for that
error is what purification descends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustmim.errors import InputError
from robustmim.models.masked import PixelModel
from robustmim.models.vit import grid_of
from robustmim.registry import register
from robustmim.types import Images


@register("masked-model", "context-encoder")
class ContextEncoder(PixelModel):
    """Predict hidden regions of [0, 1] images of one size.

    Args:
        image_size: height and width in pixels.
        patch_size: side of a cell of the mask in pixels: 4 as for a masked autoencoder; half of the image for regions as large as
            the original's.
        widths: channels at half size, quarter size, ….

    Raises:
        InputError: a size that the cells, or the halvings, do not divide.
    """

    def __init__(self, *, image_size: int = 32, patch_size: int = 4, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        grid_of(image_size, image_size, patch_size)
        middle, rest = divmod(image_size, 2 ** len(widths))
        if rest or not widths:
            raise InputError(
                f"{image_size} pixels cannot be halved {len(widths)} times, once for each of the widths {widths}"
            )
        self.image_size, self.patch_size = image_size, patch_size
        self.activation = nn.SiLU()
        pairs = list(zip((4, *widths), widths, strict=False))
        self.encoder = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        # For each channel a matrix over its places, written as a convolution in groups; then one over the channels.
        last = widths[-1]
        self.places = nn.Conv2d(last, last * middle**2, middle, groups=last)
        self.channels = nn.Conv2d(last, last, 1)
        pairs[0] = (3, widths[0])
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, stride=2, padding=1) for a, b in reversed(pairs))
        # Convolutions run faster with the channels last, on CPU and GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask.

        Raises:
            InputError: a size that is not the model's.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"this context encoder takes {self.image_size} × {self.image_size} pixels, but got {height} × {width}; "
                "resize the images, or use the masked convolution, which takes any size"
            )
        return grid_of(height, width, self.patch_size)

    def predict(self, x: Images, hidden: Tensor) -> Images:
        """Predict every pixel from the visible ones.

        Args:
            x: `[B, 3, H, W]` in [0, 1].
            hidden: bool `[B, 1, H, W]`.
        """
        visible = (~hidden).to(x.dtype)
        features = torch.cat([(x - 0.5) * visible, 1 - visible], dim=1)
        for layer in self.encoder:
            features = self.activation(layer(features))
        features = self.activation(self.places(features).view_as(features))
        features = self.activation(self.channels(features))
        for layer in self.decoder[:-1]:
            features = self.activation(layer(features))
        return self.decoder[-1](features) + 0.5
