"""Vision transformers (Dosovitskiy et al. 2021): blocks shared by the classifier and the masked autoencoder.

Parameter names are those of timm and of the official MAE, so that their files load by name. Attention is fused unless
its weights or a second derivative are asked for: the fused kernels have neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.errors import InputError
from robustmim.models.normalise import CIFAR10, Normalise, Statistics
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Tokens


class Attention(nn.Module):
    """Multi-head self-attention.

    `explicit` chooses the path: fused when False; softmax written out when True, which has second derivatives and
    passes its weights `[B, heads, T, T]` through `weights`, an identity that recorders hook.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"a width of {width} cannot be split over {heads} heads")
        self.heads = heads
        self.explicit = False
        self.qkv = nn.Linear(width, 3 * width)
        self.weights = nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tokens, first: int = 0) -> Float[Tensor, "batch asked features"]:
        """Mix tokens `[B, T, width]`; return those from `first` on, `[B, T - first, width]`: the others are only looked at."""
        # Cut before the heads are: the gradients of the three then fall side by side, where they are needed.
        if first and not self.explicit:
            width = tokens.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            asked = F.linear(tokens[:, first:], weight[:width], bias[:width])
            parts = (asked, *F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1))
        else:
            parts = self.qkv(tokens).chunk(3, dim=-1)
        query, key, value = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in parts)
        if self.explicit:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            mixed = (self.weights(scores.softmax(dim=-1)) @ value)[:, :, first:]
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(mixed, "b h t d -> b t (h d)"))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Map each token `[B, T, width]` on its own."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class DropPath(nn.Module):
    """Leave a residual branch out, sample by sample (stochastic depth, Huang et al. 2016, Eq. 2).

    It does so inside `stochastic_depth` only, which brings the keys: attacks and evaluations see the whole network, and
    nothing is drawn from the global generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keys: Keys | None = None

    def forward(self, branch: Tokens) -> Tokens:
        """Zero the branches `[B, T, width]` of some samples and scale the others up, so that the mean stays."""
        if self.keys is None or self.rate == 0:
            return branch
        kept = self.keys.uniform(1) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch)[..., None]


@contextmanager
def stochastic_depth(model: nn.Module, keys: Keys) -> Iterator[None]:
    """Drop paths of a model inside the block, if it has any: a sample's own by its key, other ones in each layer."""
    layers = [module for module in model.modules() if isinstance(module, DropPath)]
    for number, layer in enumerate(layers):
        layer.keys = keys.fold("drop path", number)
    try:
        yield
    finally:
        for layer in layers:
            layer.keys = None


class Block(nn.Module):
    """Pre-norm transformer block; `drop_path` is the probability that training leaves out each of its two branches."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, tokens: Tokens, first: int = 0) -> Float[Tensor, "batch asked features"]:
        """Attend, then map each token; both residual. Return the tokens from `first` on, which look at all."""
        tokens = tokens[:, first:] + self.drop_path1(self.attn(self.norm1(tokens), first))
        return tokens + self.drop_path2(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each; named and shaped as the usual convolution."""

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Float[Tensor, "batch tokens pixels"]) -> Tokens:
        """Embed patches whose pixels are ordered (row, column, channel), as `patchify` gives them."""
        weight = rearrange(self.proj.weight, "d c p q -> d (p q c)")
        return F.linear(patches, weight, self.proj.bias)


def patchify(x: Images, patch_size: int) -> Float[Tensor, "batch tokens pixels"]:
    """Cut images into patches, row by row; pixels within a patch are ordered (row, column, channel)."""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Float[Tensor, "batch tokens pixels"], patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Undo `patchify`."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], w=grid[1], p=patch_size, q=patch_size)


def sine_cosine_positions(width: int, grid: tuple[int, int], *, class_token: bool) -> Float[Tensor, "1 tokens width"]:
    """Return MAE's fixed two-dimensional sine-cosine position embedding (He et al. 2022, as released).

    The first half of the width encodes the column, the second the row; the class token gets zeros.
    """
    if width % 4:
        raise InputError(f"sine-cosine positions need a width divisible by 4, not {width}")
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    parts = []
    for place in (column, row):
        angle = place.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=1)
    if class_token:
        table = torch.cat([torch.zeros(1, width, dtype=torch.float64), table])
    return table[None].to(torch.float32)


def grid_of(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Return rows and columns of patches.

    Raises:
        InputError: the patch does not divide the image.
    """
    if height % patch_size or width % patch_size:
        raise InputError(
            f"an image of {height} × {width} pixels cannot be cut into patches of {patch_size}; resize or crop it to "
            f"{height - height % patch_size} × {width - width % patch_size}, or use the masked convolution, which takes any size"
        )
    return height // patch_size, width // patch_size


def initialise(module: nn.Module) -> None:
    """Initialise as MAE does: Xavier-uniform linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    """Use the written-out attention inside the block: for second derivatives and for attention maps."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before = [layer.explicit for layer in layers]
    for layer in layers:
        layer.explicit = True
    try:
        yield
    finally:
        for layer, explicit in zip(layers, before, strict=True):
            layer.explicit = explicit


ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
"""What the names of an encoder's parameters begin with, in the classifier and in the masked autoencoder."""


def sizes_of(blocks: nn.ModuleList, normalise: Normalise) -> dict[str, Any]:
    """Return the options that an encoder with these blocks, on pixels normalised in this way, was built with."""
    first = blocks[0]
    assert isinstance(first, Block)
    width = first.attn.qkv.in_features
    statistics = [[round(float(v), 4) for v in part.flatten()] for part in (normalise.mean, normalise.deviation)]
    return {
        "width": width,
        "depth": len(blocks),
        "heads": first.attn.heads,
        "mlp_ratio": first.mlp.fc1.out_features / width,
        "statistics": statistics,
    }


@register("classifier", "vit")
class VisionTransformer(nn.Module):
    """A ViT classifier on [0, 1] images with MAE's fine-tuning head: mean of patch tokens, norm, linear.

    Args:
        image_size: height and width in pixels.
        patch_size: pixels on a side.
        width, depth, heads: of the encoder.
        classes: number of logits.
        drop_path: probability that training leaves out a branch of the last block; it grows linearly from zero at the
            first (Huang et al. 2016, section 3).
        statistics: mean and deviation the pixels are normalised by.
    """

    undecayed = ("cls_token", "pos_embed")
    encoder_parts, encoder_norm = ENCODER, "fc_norm"

    def __init__(
        self,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        classes: int = 10,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        statistics: Statistics = CIFAR10,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size = image_size, patch_size
        grid = grid_of(image_size, image_size, patch_size)
        self.normalise = Normalise(statistics)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.pos_embed = nn.Parameter(sine_cosine_positions(width, grid, class_token=True))
        self.patch_embed = PatchEmbed(patch_size, 3, width)
        rates = [drop_path * number / max(depth - 1, 1) for number in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, rate) for rate in rates)
        self.layers = depth + 1
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self.apply(initialise)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def encoder_sizes(self) -> dict[str, Any]:
        """Return what a masked autoencoder must share whose encoder is to be taken over; see `HasEncoder`."""
        return {"image_size": self.image_size, "patch_size": self.patch_size} | sizes_of(self.blocks, self.normalise)

    def layer_of(self, name: str) -> int:
        """Return how deep a parameter sits: 0 for the embeddings, n + 1 for block n, `layers` for the head and its norm."""
        if name.startswith(("cls_token", "pos_embed", "patch_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.layers

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return logits for images `[B, 3, image_size, image_size]` in [0, 1].

        Raises:
            InputError: another image size than the one it was built for.
        """
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise InputError(
                f"this ViT takes {self.image_size}-pixel images, but got {x.shape[-2]} × {x.shape[-1]}; resize them first"
            )
        tokens = self.patch_embed(patchify(self.normalise(x), self.patch_size)) + self.pos_embed[:, 1:]
        tokens = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.fc_norm(tokens[:, 1:].mean(dim=1)))


def _sizes(name: str, width: int, depth: int, heads: int) -> None:
    @register("classifier", name)
    def build(
        *,
        image_size: int = 32,
        patch_size: int = 4,
        classes: int = 10,
        drop_path: float = 0.0,
        statistics: Statistics = CIFAR10,
    ) -> VisionTransformer:
        return VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            classes=classes,
            drop_path=drop_path,
            statistics=statistics,
        )

    build.__qualname__ = build.__name__ = name.replace("-", "_")


# MIMIR, section V and Table XIV: ViT-T, ViT-S and ViT-B, at patch 2, 4 or 16.
_sizes("vit-tiny", 192, 12, 3)
_sizes("vit-small", 384, 12, 6)
_sizes("vit-base", 768, 12, 12)
