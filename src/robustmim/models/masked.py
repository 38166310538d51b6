"""The one protocol of masked models, and the loss they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.models.masking import check_mask, enlarge
from robustmim.rng import Keys
from robustmim.types import Images, Mask, PerSample, Tokens

Counted = Literal["hidden", "all"]
"""What the loss is the mean of."""

Units = Literal["model", "pixels"]
"""Units of the error: those of the model's target, or those of its normalised pixels where the target is scaled patch by
patch."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What a masked model says of an image under a mask.

    Attributes:
        loss: `[B]`, mean squared error over the hidden part (He et al. 2022; AMRM-Pure, Eq. 1).
        pixels: `[B, C, H, W]` in the units of the input: the visible pixels with the predictions put in; None unless
            asked for.
        attention: one `[B, heads, T, T]` per recorded layer, in order; None unless asked for (or none to record).
        tokens: `[B, 1 + visible, width]`, of the encoder's visible patches, class token first; None unless asked for.
    """

    loss: PerSample
    pixels: Images | None = None
    attention: list[Tensor] | None = None
    tokens: Tokens | None = None


@runtime_checkable
class MaskedModel(Protocol):
    """A network that predicts what a mask hides: MAE, the masked convolution, and whatever a plug-in brings."""

    patch_size: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask for an image of this size; InputError where it does not fit."""

    def reconstruct(
        self,
        x: Images,
        mask: Mask,
        *,
        target: Images | None = None,
        need_pixels: bool = False,
        need_attention: bool = False,
    ) -> Reconstruction:
        """Predict the hidden cells of `x` and compare with `target` (default: `x` itself).

        Gradients flow through both; detach one to close a path (ambiguity A7).
        """


@runtime_checkable
class EncoderModel(MaskedModel, Protocol):
    """A masked model whose encoder can be looked into: what latent attacks and information penalties need."""

    depth: int
    """Blocks of the encoder."""

    def tokens(self, x: Images, mask: Mask, *, layer: int = 0) -> Tokens:
        """Return the tokens of the visible patches after block `layer`; 0 for the encoder's output, after its norm."""

    def reconstruct(
        self,
        x: Images,
        mask: Mask,
        *,
        target: Images | None = None,
        need_pixels: bool = False,
        need_attention: bool = False,
        need_tokens: int | None = None,
        loss_over: Counted = "hidden",
        units: Units = "model",
    ) -> Reconstruction:
        """Do what `MaskedModel.reconstruct` does, with more to choose from.

        Args:
            x, mask, target, need_pixels, need_attention: as there.
            need_tokens: the layer whose tokens are returned.
            loss_over: count the hidden patches, or all of them.
            units: of the loss.
        """


@runtime_checkable
class RandomisedModel(Protocol):
    """A masked model with random draws of its own, besides the masks that it is given: a masked diffusion model.

    Attributes:
        randomised: whether its loss depends on the keys at all.
    """

    randomised: bool

    def drawn(self, keys: Keys, *, draw: int = 0, progress: float = 0.0) -> MaskedModel:
        """Return the model with its draws made, a deterministic one.

        Args:
            keys: one per sample.
            draw: number of the draw; another one gets other noise.
            progress: of a descent in [0, 1], for what changes from its first to its last step.
        """


def with_draws(model: MaskedModel, keys: Keys, *, draw: int = 0, progress: float = 0.0) -> MaskedModel:
    """Make the draws of a model that has any; another one is returned as it is."""
    return model.drawn(keys, draw=draw, progress=progress) if isinstance(model, RandomisedModel) else model


def hidden_mean(error: Float[Tensor, "batch channels height width"], hidden: Tensor) -> PerSample:
    """Average an error over the hidden pixels of each sample. `hidden` is `[B, 1, H, W]`, bool."""
    weight = hidden.to(error.dtype)
    return (error * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * error.shape[1])


class PixelModel(nn.Module):
    """A masked model that predicts all pixels from the visible ones at once; `MaskedModel` by two functions of its own.

    Attributes:
        patch_size: pixels on a side of a cell of the mask.
    """

    patch_size: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask for an image of this size; InputError where it does not fit."""
        raise NotImplementedError

    def predict(self, x: Images, hidden: Tensor) -> Images:
        """Predict every pixel of images `[B, 3, H, W]` in [0, 1]; `hidden` is `[B, 1, H, W]`, bool."""
        raise NotImplementedError

    def reconstruct(
        self,
        x: Images,
        mask: Mask,
        *,
        target: Images | None = None,
        need_pixels: bool = False,
        need_attention: bool = False,
    ) -> Reconstruction:
        """Predict the hidden pixels of `x` and compare with `target` (default: `x`); see `MaskedModel`.

        The loss is in squared pixel units. There is no attention to return.

        Raises:
            InputError: an image or a mask of the wrong size.
        """
        check_mask(mask, self.grid(*x.shape[-2:]))
        hidden = enlarge(mask, self.patch_size)
        predicted = self.predict(x, hidden)
        loss = hidden_mean((predicted - (x if target is None else target)).square(), hidden)
        pixels = torch.where(hidden, predicted, x).clamp(0, 1) if need_pixels else None
        return Reconstruction(loss=loss, pixels=pixels)


def parameter_count(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def freeze(module: nn.Module) -> nn.Module:
    """Put a module into evaluation mode with parameters that need no gradient: saves memory and time."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's tensors live (the CPU when it has none)."""
    for tensor in [*module.parameters(), *module.buffers()]:
        return tensor.device
    return torch.device("cpu")
