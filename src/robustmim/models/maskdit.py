"""MaskDiT on pixels (Zheng et al. 2024): a diffusion transformer that can be trained, and asked, with patches hidden.

The encoder sees the visible patches of a noised image; the decoder gets their encodings and a learned token for each hidden
patch. Every block is told the noise level, and a class where there are classes, by adaLN-zero (Peebles and Xie 2023).
AMRM-Pure's Appendix J has patches of 4, a width of 128, 6 + 3 blocks and learned positions, and leaves the rest open (A15).

A visible patch is predicted with EDM's preconditioning. A hidden one is a patch at infinite noise: c_skip = 0 and
c_out = σ_data, the limit of the same formulas, so that nothing of what is hidden passes the skip connection. (The released
code gives hidden patches the skip of the visible ones.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import InputError, RecipeError
from robustmim.models.condition import Condition
from robustmim.models.edm import SIGMA_DATA, precondition
from robustmim.models.mae import Target
from robustmim.models.masked import MaskedModel, Reconstruction
from robustmim.models.masked_denoiser import MaskedDenoiser
from robustmim.models.masking import check_mask, split_ids, take
from robustmim.models.vit import (
    Attention,
    Mlp,
    PatchEmbed,
    grid_of,
    initialise,
    patchify,
    sine_cosine_positions,
    unpatchify,
)
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels, Mask, PerSample, Signed, Tokens


class ConditionedBlock(nn.Module):
    """Transformer block whose norms are shifted and scaled, and whose branches are gated, by a condition (adaLN-zero).

    The gates begin at zero, and the block as the identity.
    """

    def __init__(self, width: int, heads: int, condition_width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.modulation = nn.Linear(condition_width, 6 * width)

    def forward(self, tokens: Tokens, condition: Float[Tensor, "batch rows condition"]) -> Tokens:
        """Attend, then map each token; both residual."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :1].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attn(self.norm1(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)


@register("masked-model", "maskdit")
class MaskDiT(nn.Module):
    """Masked diffusion transformer; AMRM-Pure's for CIFAR and SVHN unless told otherwise.

    As a `MaskedModel` it is descended with the default choices of `DenoiserConfig`; wrap it in a `MaskedDenoiser` for others.

    Args:
        image_size: height and width in pixels; fixed by the position embedding.
        patch_size: pixels on a side of a patch.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        classes: labels that it can be told; 0 for an unconditional model.
        target: what is predicted for hidden patches: "pixels", or pixels "normalised" by each patch's own mean and
            deviation.

    Raises:
        RecipeError: a negative number of classes.
    """

    randomised = True

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        decoder_width: int = 128,
        decoder_depth: int = 3,
        decoder_heads: int = 4,
        mlp_ratio: float = 4.0,
        classes: int = 0,
        target: Target = "pixels",
    ) -> None:
        super().__init__()
        if classes < 0:
            raise RecipeError(f"a model knows 0 classes or more, not {classes}")
        self.image_size, self.patch_size, self.classes, self.target = image_size, patch_size, classes, target
        grid = grid_of(image_size, image_size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, channels, width)
        self.pos_embed = nn.Parameter(sine_cosine_positions(width, grid, class_token=False))
        self.condition = Condition(width, classes)
        self.blocks = nn.ModuleList(ConditionedBlock(width, heads, width, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width).normal_(std=0.02))
        self.decoder_pos_embed = nn.Parameter(sine_cosine_positions(decoder_width, grid, class_token=False))
        self.decoder_blocks = nn.ModuleList(
            ConditionedBlock(decoder_width, decoder_heads, width, mlp_ratio) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6, elementwise_affine=False)
        self.decoder_modulation = nn.Linear(width, 2 * decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch_size**2 * channels)
        self.apply(initialise)
        for layer in [*self.modules()]:
            if isinstance(layer, ConditionedBlock):
                nn.init.zeros_(layer.modulation.weight)
        nn.init.zeros_(self.decoder_modulation.weight)
        nn.init.zeros_(self.decoder_pred.weight)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask.

        Raises:
            InputError: another image size than the one the position embedding was made for.
        """
        if (height, width) != (self.image_size, self.image_size):
            raise InputError(
                f"this MaskDiT takes {self.image_size} × {self.image_size} pixels, but got {height} × {width}; resize the "
                "images, or use the masked convolution, which takes any size"
            )
        return grid_of(height, width, self.patch_size)

    def denoise(
        self, noised: Signed, sigma: PerSample, *, mask: Mask | None = None, labels: Labels | None = None
    ) -> Signed:
        """Estimate the clean image from the visible patches of a noised one, in training and evaluation mode alike.

        Args:
            noised: images in [-1, 1] plus Gaussian noise.
            sigma: its deviation, above 0.
            mask: what is hidden; None for nothing.
            labels: classes, with the number `classes` for none; None for none at all.

        Returns:
            Estimates in [-1, 1]; in hidden patches those of the model's `target`.

        Raises:
            InputError: an image or a mask of the wrong size, or labels for a model without classes.
        """
        grid = self.grid(*noised.shape[-2:])
        if labels is not None and not self.classes:
            raise InputError("this MaskDiT was trained without classes and takes no labels")
        if mask is None:
            mask = torch.zeros(len(noised), *grid, dtype=torch.bool, device=noised.device)
        check_mask(mask, grid)
        visible, hidden = split_ids(mask)
        scale = precondition(sigma)
        seen = take(patchify(noised, self.patch_size), visible)
        predicted = self._network(_each(scale.input) * seen, scale.noise, visible, hidden, labels).to(seen.dtype)
        count = seen.shape[1]
        kept = _each(scale.skip) * seen + _each(scale.out) * predicted[:, :count]
        guessed = predicted[:, count:] * (SIGMA_DATA if self.target == "pixels" else 1.0)
        order = torch.cat([visible, hidden], dim=1).argsort(dim=1)
        return unpatchify(take(torch.cat([kept, guessed], dim=1), order), self.patch_size, grid)

    def _network(
        self,
        seen: Float[Tensor, "batch visible pixels"],
        noise: PerSample,
        visible: Tensor,
        hidden: Tensor,
        labels: Labels | None,
    ) -> Float[Tensor, "batch patches pixels"]:
        """Return F for the visible patches, then for the hidden ones."""
        condition = self.condition(noise, labels)
        tokens = self.patch_embed(seen) + take(self.pos_embed, visible)
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.decoder_embed(self.norm(tokens)) + take(self.decoder_pos_embed, visible)
        tokens = torch.cat([tokens, self.mask_token + take(self.decoder_pos_embed, hidden)], dim=1)
        for block in self.decoder_blocks:
            tokens = block(tokens, condition)
        shift, scale = self.decoder_modulation(condition)[:, :1].chunk(2, dim=-1)
        return self.decoder_pred(self.decoder_norm(tokens) * (1 + scale) + shift)

    def reconstruct(
        self,
        x: Images,
        mask: Mask,
        *,
        target: Images | None = None,
        need_pixels: bool = False,
        need_attention: bool = False,
    ) -> Reconstruction:
        """Predict the hidden patches of `x` from its noised visible ones; see `MaskedDenoiser`."""
        return MaskedDenoiser(self).reconstruct(
            x, mask, target=target, need_pixels=need_pixels, need_attention=need_attention
        )

    def drawn(self, keys: Keys, *, draw: int = 0, progress: float = 0.0) -> MaskedModel:
        """Return the model with the noise of one draw; see `MaskedDenoiser`."""
        return MaskedDenoiser(self).drawn(keys, draw=draw, progress=progress)


def _each(values: PerSample) -> Tensor:
    return values.view(-1, 1, 1)
