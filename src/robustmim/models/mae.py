"""Masked autoencoder (He et al. 2022): the papers' masked model. Masks are injected; parameter names are the official ones.

The encoder sees the visible patches only; the decoder gets their encodings and a learned token for each hidden patch.
Tokens stay in the order (class token, visible, hidden), so nothing is shuffled back: attention does not care about
order, and positions travel with their tokens.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import InputError
from robustmim.models.masked import Counted, Reconstruction, Units
from robustmim.models.masking import check_mask, enlarge, split_ids, take
from robustmim.models.normalise import CIFAR10, Normalise, Statistics
from robustmim.models.record import AttentionRecorder
from robustmim.models.vit import (
    ENCODER,
    Block,
    PatchEmbed,
    grid_of,
    initialise,
    patchify,
    sine_cosine_positions,
    sizes_of,
    unpatchify,
)
from robustmim.registry import register
from robustmim.types import Images, Mask, Tokens

Target = Literal["pixels", "normalised"]


@register("masked-model", "mae")
class MaskedAutoencoder(nn.Module):
    """Masked autoencoder on [0, 1] images.

    Args:
        image_size: height and width in pixels; fixed by the position embedding.
        patch_size: pixels on a side of a patch.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        target: "pixels", or "normalised" by each patch's own mean and deviation (`norm_pix_loss`).
        statistics: mean and deviation of the pixels; the loss is measured in these units, as in the official code.
    """

    encoder_parts, encoder_norm = ENCODER, "norm"

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        mlp_ratio: float = 4.0,
        target: Target = "pixels",
        statistics: Statistics = CIFAR10,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.target, self.depth = image_size, patch_size, target, depth
        grid = grid_of(image_size, image_size, patch_size)
        self.normalise = Normalise(statistics)
        self.patch_embed = PatchEmbed(patch_size, channels, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.pos_embed = nn.Parameter(sine_cosine_positions(width, grid, class_token=True), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width).normal_(std=0.02))
        self.decoder_pos_embed = nn.Parameter(
            sine_cosine_positions(decoder_width, grid, class_token=True), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_width, patch_size**2 * channels)
        self.apply(initialise)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask.

        Raises:
            InputError: another image size than the one the position embedding was made for.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"this masked autoencoder takes {self.image_size} × {self.image_size} pixels, but got {height} × {width}; "
                "resize the images, or use the masked convolution, which takes any size"
            )
        return grid_of(height, width, self.patch_size)

    def encoder_sizes(self) -> dict[str, Any]:
        """Return what a classifier must share that is to take the encoder over; see `HasEncoder`."""
        return {"image_size": self.image_size, "patch_size": self.patch_size} | sizes_of(self.blocks, self.normalise)

    def config(self) -> dict[str, Any]:
        """Return what builds this model again: the config that `robustmim.save_model` keeps beside the weights."""
        decoder = sizes_of(self.decoder_blocks, self.normalise)
        options = self.encoder_sizes() | {
            "channels": self.patch_embed.proj.in_channels,
            "target": self.target,
            # Unrounded, so that the model read back is this one to the bit.
            "statistics": [part.flatten().tolist() for part in (self.normalise.mean, self.normalise.deviation)],
        }
        options |= {f"decoder_{key}": decoder[key] for key in ("width", "depth", "heads")}
        return {"kind": "masked-model", "name": "mae", "options": options, "classes": []}

    def encode(
        self, patches: Float[Tensor, "batch patches pixels"], visible: Tensor, *, layer: int = 0
    ) -> tuple[Tokens, Tokens]:
        """Encode the visible patches: the encoder's output, and the tokens of a layer (see `tokens`).

        Both are `[B, 1 + visible, width]`, class token first.
        """
        tokens = self.patch_embed(take(patches, visible)) + take(self.pos_embed[:, 1:], visible)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        kept = tokens
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            kept = tokens if number == layer else kept
        output = self.norm(tokens)
        return output, kept if layer else output

    def tokens(self, x: Images, mask: Mask, *, layer: int = 0) -> Tokens:
        """Return the tokens of the visible patches, class token first: `[B, 1 + visible, width]`.

        Args:
            x: images.
            mask: what is hidden.
            layer: 0 for the encoder's output, after the final norm; n for the output of block n, counted from 1, which no
                norm has seen.

        Raises:
            InputError: an image or a mask of the wrong size, or a block that is not there.
        """
        self._check(x, mask, layer)
        visible, _ = split_ids(mask)
        return self.encode(patchify(self.normalise(x), self.patch_size), visible, layer=layer)[1]

    def _check(self, x: Images, mask: Mask, layer: int | None) -> None:
        check_mask(mask, self.grid(*x.shape[-2:]))
        if layer is not None and not 0 <= layer <= self.depth:
            raise InputError(
                f"there is no layer {layer} in an encoder of {self.depth} blocks; 0 is its output after the norm"
            )

    def decode(
        self, encoded: Tokens, visible: Tensor, hidden: Tensor, *, every: bool = False
    ) -> Float[Tensor, "batch predicted pixels"]:
        """Predict the hidden patches from the encoding of the visible ones; `every` adds the visible ones, in front."""
        position = self.decoder_pos_embed
        seen = self.decoder_embed(encoded)
        seen = seen + torch.cat([position[:, :1].expand(len(seen), -1, -1), take(position[:, 1:], visible)], dim=1)
        tokens = torch.cat([seen, self.mask_token + take(position[:, 1:], hidden)], dim=1)
        # What the last block makes of tokens that nobody asks for is not computed.
        first = 1 if every else seen.shape[1]
        for block in self.decoder_blocks[:-1]:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks[-1](tokens, first)))

    def _scale(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a normalised target subtracts from each patch and divides it by; 0 and 1 for pixels."""
        if self.target == "pixels":
            return torch.zeros((), device=patches.device), torch.ones((), device=patches.device)
        mean = patches.mean(-1, keepdim=True)
        # Written out, as `var` is three times slower; divided by one less than the number of pixels, as released.
        variance = (patches - mean).square().sum(-1, keepdim=True) / (patches.shape[-1] - 1)
        return mean, (variance + 1e-6).sqrt()

    def render(self, x: Images, mask: Mask, *, reference: Images | None = None) -> Images:
        """Draw every patch as it is predicted, visible ones too; for a model that was trained on all of them.

        Args:
            x: images, or noised ones, which need not lie in [0, 1].
            mask: what is hidden; it may be nothing.
            reference: images whose patches have the mean and deviation that a normalised prediction lacks; default: `x`.

        Returns:
            Images in [0, 1].

        Raises:
            InputError: an image or a mask of the wrong size.
        """
        self._check(x, mask, None)
        visible, hidden = split_ids(mask)
        encoded, _ = self.encode(patchify(self.normalise(x), self.patch_size), visible)
        predicted = self.decode(encoded, visible, hidden, every=True)
        mean, deviation = self._scale(patchify(self.normalise(x if reference is None else reference), self.patch_size))
        patches = take(predicted, torch.cat([visible, hidden], dim=1).argsort(1)) * deviation + mean
        whole = unpatchify(patches, self.patch_size, self.grid(*x.shape[-2:]))
        return self.normalise.undo(whole).clamp(0, 1)

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
        """Predict the hidden patches of `x` and compare with `target` (default: `x`); see `EncoderModel`.

        Raises:
            InputError: an image or a mask of the wrong size, or a layer that is not there.
        """
        self._check(x, mask, need_tokens)
        visible, hidden = split_ids(mask)
        patches = patchify(self.normalise(x), self.patch_size)
        with AttentionRecorder(self) if need_attention else nullcontext() as recorder:
            encoded, tokens = self.encode(patches, visible, layer=need_tokens or 0)
            predicted = self.decode(encoded, visible, hidden, every=loss_over == "all")

        goal = patches if target is None else patchify(self.normalise(target), self.patch_size)
        goal = take(goal, hidden if loss_over == "hidden" else torch.cat([visible, hidden], dim=1))
        mean, deviation = self._scale(goal)
        error = predicted - (goal - mean) / deviation
        loss = (error if units == "model" else error * deviation).square().mean((1, 2))

        pixels = None
        if need_pixels:
            # A normalised target tells nothing of a patch's mean and deviation: they are taken from the goal.
            drawn = (predicted * deviation + mean)[:, predicted.shape[1] - hidden.shape[1] :]
            filled = patches.scatter(1, hidden[..., None].expand_as(drawn), drawn)
            rendered = self.normalise.undo(unpatchify(filled, self.patch_size, self.grid(*x.shape[-2:])))
            pixels = torch.where(enlarge(mask, self.patch_size), rendered, x).clamp(0, 1)
        return Reconstruction(
            loss=loss,
            pixels=pixels,
            attention=recorder.maps if recorder is not None else None,
            tokens=tokens if need_tokens is not None else None,
        )


def _sizes(name: str, **sizes: int) -> None:
    @register("masked-model", name)
    def build(
        *,
        image_size: int = 32,
        patch_size: int = 4,
        target: Target = "pixels",
        statistics: Statistics = CIFAR10,
        decoder_width: int = sizes["decoder_width"],
        decoder_depth: int = sizes["decoder_depth"],
        decoder_heads: int = sizes["decoder_heads"],
    ) -> MaskedAutoencoder:
        return MaskedAutoencoder(
            image_size=image_size,
            patch_size=patch_size,
            target=target,
            statistics=statistics,
            width=sizes["width"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            decoder_width=decoder_width,
            decoder_depth=decoder_depth,
            decoder_heads=decoder_heads,
        )

    build.__qualname__ = build.__name__ = name.replace("-", "_")


# Encoders of both papers. AMRM-Pure takes MAE-Base and MAE-Large as released, with their 512 × 8 decoder (Appendix J);
# MIMIR's ViT-T/S/B have a 128 × 2 decoder of 16 heads (its Table XIV).
_RELEASED = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
_MIMIR = {"decoder_width": 128, "decoder_depth": 2, "decoder_heads": 16}
_sizes("mae-base", width=768, depth=12, heads=12, **_RELEASED)
_sizes("mae-large", width=1024, depth=24, heads=16, **_RELEASED)
_sizes("mae-huge", width=1280, depth=32, heads=16, **_RELEASED)
_sizes("mae-mimir-tiny", width=192, depth=12, heads=3, **_MIMIR)
_sizes("mae-mimir-small", width=384, depth=12, heads=6, **_MIMIR)
_sizes("mae-mimir-base", width=768, depth=12, heads=12, **_MIMIR)
