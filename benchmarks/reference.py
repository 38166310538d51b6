"""A plain masked autoencoder step in the style of research code: the yardstick, not the product.

Per-sample argsort, gather, un-shuffle with mask tokens, softmax attention written out, predictions for every patch, and a
`loss.backward()` that also computes the gradients of all parameters. It takes its weights from our model, so that both
must give the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustmim.models.mae import MaskedAutoencoder


def attention(layer, tokens: Tensor) -> Tensor:
    batch, length, width = tokens.shape
    query, key, value = (
        layer.qkv(tokens).reshape(batch, length, 3, layer.heads, width // layer.heads).permute(2, 0, 3, 1, 4)
    )
    weights = (query @ key.transpose(-2, -1) * (width // layer.heads) ** -0.5).softmax(dim=-1)
    return layer.proj((weights @ value).transpose(1, 2).reshape(batch, length, width))


def block(layer, tokens: Tensor) -> Tensor:
    tokens = tokens + attention(layer.attn, layer.norm1(tokens))
    return tokens + layer.mlp(layer.norm2(tokens))


def patches_of(x: Tensor, p: int) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // p, p, width // p, p)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(batch, (height // p) * (width // p), p * p * channels)


def loss(model: MaskedAutoencoder, x: Tensor, mask: Tensor) -> Tensor:
    """Return the masked loss `[B]`: every step as one would first write it."""
    x = (x - model.normalise.mean) / model.normalise.deviation
    flat = mask.flatten(1).float()
    keep = int((1 - flat[0]).sum())
    shuffle = torch.argsort(flat, dim=1, stable=True)
    restore = torch.argsort(shuffle, dim=1)
    width = model.patch_embed.proj.out_channels

    tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    tokens = torch.gather(tokens, 1, shuffle[:, :keep, None].repeat(1, 1, width))
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    tokens = torch.cat([first, tokens], dim=1)
    for layer in model.blocks:
        tokens = block(layer, tokens)
    tokens = model.decoder_embed(model.norm(tokens))

    masked = model.mask_token.repeat(len(x), flat.shape[1] - keep, 1)
    whole = torch.cat([tokens[:, 1:], masked], dim=1)
    whole = torch.gather(whole, 1, restore[:, :, None].repeat(1, 1, whole.shape[2]))
    tokens = torch.cat([tokens[:, :1], whole], dim=1) + model.decoder_pos_embed
    for layer in model.decoder_blocks:
        tokens = block(layer, tokens)
    predicted = model.decoder_pred(model.decoder_norm(tokens))[:, 1:]

    error = (predicted - patches_of(x, model.patch_size)).square().mean(-1)
    return (error * flat).sum(1) / flat.sum(1)


def purification_step(model: MaskedAutoencoder, x: Tensor, mask: Tensor, step: float) -> Tensor:
    """One step of Algorithm 1 with `backward()` through all parameters."""
    x = x.clone().detach().requires_grad_(True)
    loss(model, x, mask).sum().backward()
    with torch.no_grad():
        assert x.grad is not None
        return torch.clamp(x - step * x.grad.sign(), 0, 1)
