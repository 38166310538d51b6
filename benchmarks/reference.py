"""Purifiers in the style of research code: the yardstick, not the product.

Masked autoencoders with per-sample argsort, gather, un-shuffle with mask tokens, softmax attention written out and predictions
for every patch; descents by a `backward()` that also computes the gradients of all parameters; diffusion in DDPM's own
variables; Adam as torch has it. Weights are those of our models and draws are given, so that both must find the same images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.models.mae import MaskedAutoencoder

Loss = Callable[[Tensor, int], Tensor]
"""(images, step) → one value for each sample."""
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(image + σ noise, σ of each sample) → estimate of the clean image; all in [-1, 1]."""


def attention(layer: Any, tokens: Tensor) -> Tensor:
    batch, length, width = tokens.shape
    query, key, value = (
        layer.qkv(tokens).reshape(batch, length, 3, layer.heads, width // layer.heads).permute(2, 0, 3, 1, 4)
    )
    weights = (query @ key.transpose(-2, -1) * (width // layer.heads) ** -0.5).softmax(dim=-1)
    return layer.proj((weights @ value).transpose(1, 2).reshape(batch, length, width))


def block(layer: Any, tokens: Tensor) -> Tensor:
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

    goal = patches_of(x, model.patch_size)
    if model.target == "normalised":  # He et al. 2022: patch by patch, by its own mean and deviation
        goal = (goal - goal.mean(dim=-1, keepdim=True)) / (goal.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    error = (predicted - goal).square().mean(-1)
    return (error * flat).sum(1) / flat.sum(1)


def purification_step(model: MaskedAutoencoder, x: Tensor, mask: Tensor, step: float) -> Tensor:
    """One step of Algorithm 1 with `backward()` through all parameters."""
    x = x.clone().detach().requires_grad_(True)
    loss(model, x, mask).sum().backward()
    with torch.no_grad():
        assert x.grad is not None
        return torch.clamp(x - step * x.grad.sign(), 0, 1)


def descent(loss: Loss, x: Tensor, steps: list[float], radius: float, momentum: float = 0.0) -> Tensor:
    """Algorithm 1 with `backward()` through all that asks for a gradient; `steps` are the lengths."""
    center, velocity = x, torch.zeros_like(x)
    for number, step in enumerate(steps):
        x = x.clone().detach().requires_grad_(True)
        loss(x, number).sum().backward()
        with torch.no_grad():
            assert x.grad is not None
            size = x.grad.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            velocity = momentum * velocity + x.grad / size
            x = x - step * velocity.sign()
            x = torch.clamp(torch.min(torch.max(x, center - radius), center + radius), 0, 1)
    return x


def soap(loss: Loss, x: Tensor, radii: list[float], steps: list[float]) -> Tensor:
    """SOAP's Algorithm 1: a descent at each radius; the image of least loss is kept."""
    with torch.no_grad():
        best, least = x, loss(x, 0)
    for radius in radii:
        found = descent(loss, x, steps, radius)
        with torch.no_grad():
            now = loss(found, 0)
            best = torch.where((now < least).reshape(-1, 1, 1, 1), found, best)
            least = torch.minimum(now, least)
    return best


def _clean(denoise: Denoise, x: Tensor, kept: float) -> Tensor:
    """Estimate the clean image from √ᾱ image + √(1 - ᾱ) noise, `kept` being ᾱ."""
    sigma = math.sqrt((1 - kept) / kept)
    return denoise(x / math.sqrt(kept), torch.full((len(x),), sigma))


def _diffused(x: Tensor, kept: float, noise: Tensor) -> Tensor:
    return math.sqrt(kept) * (2 * x - 1) + math.sqrt(1 - kept) * noise


def _image(x: Tensor) -> Tensor:
    return torch.clamp((x + 1) / 2, 0, 1)


@torch.no_grad()
def ancestral(denoise: Denoise, x: Tensor, kept: list[float], noise: list[Tensor]) -> Tensor:
    """Diffuse and walk back by DDPM's posterior (Ho et al. 2020, Eq. 6 and 7); `kept` is ᾱ, rising to 1."""
    x = _diffused(x, kept[0], noise[0])
    for (now, after), z in zip(pairwise(kept), noise[1:], strict=True):
        beta = 1 - now / after
        mean = math.sqrt(after) * beta / (1 - now) * _clean(denoise, x, now)
        mean = mean + math.sqrt(1 - beta) * (1 - after) / (1 - now) * x
        x = mean + math.sqrt((1 - after) / (1 - now) * beta) * z
    return _image(x)


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, kept: list[float], noise: list[Tensor]) -> Tensor:
    """Diffuse and walk back by DDIM (Song et al. 2021, Eq. 12 without noise)."""
    x = _diffused(x, kept[0], noise[0])
    for now, after in pairwise(kept):
        clean = _clean(denoise, x, now)
        seen = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * seen
    return _image(x)


@torch.no_grad()
def reverse_sde(denoise: Denoise, x: Tensor, kept: list[float], noise: list[Tensor]) -> Tensor:
    """Diffuse and walk back by Euler and Maruyama on the reverse SDE (DiffPure, Eq. 5); the last level is denoised."""
    # ln(1 / ᾱ) = 0.1 t + 9.95 t² of each level.
    times = [(math.sqrt(0.01 - 39.8 * math.log(value)) - 0.1) / 19.9 for value in kept]
    x = _diffused(x, kept[0], noise[0])
    for step in range(len(kept) - 2):
        now, beta, span = kept[step], 0.1 + 19.9 * times[step], times[step] - times[step + 1]
        score = (math.sqrt(now) * _clean(denoise, x, now) - x) / (1 - now)
        x = x + beta * span * (x / 2 + score) + math.sqrt(beta * span) * noise[step + 1]
    return _image(_clean(denoise, x, kept[-2]))


def guided(denoise: Denoise, classifier: nn.Module, strength: float) -> Denoise:
    """COUP: move the estimate towards more confidence, by `backward()` through the classifier and its parameters."""

    def estimate(noised: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma.reshape(-1, 1, 1, 1) ** 2
        with torch.enable_grad():
            point = noised.clone().detach().requires_grad_(True)
            seen = (point / torch.sqrt(1 + variance) + 1) / 2
            classifier(seen).log_softmax(dim=1).max(dim=1).values.sum().backward()
        assert point.grad is not None
        return denoise(noised, sigma) + strength * variance * point.grad

    return estimate


def _adam(loss: Loss, point: Tensor, steps: int, rate: float) -> Tensor:
    point = point.clone().detach().requires_grad_(True)
    optimizer = torch.optim.Adam([point], lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss(point, step).sum().backward()
        optimizer.step()
    return point.detach()


def scoreopt_image(
    denoise: Denoise, x: Tensor, steps: int, rate: float, sigmas: list[Tensor], noise: list[Tensor]
) -> Tensor:
    """ScoreOpt-O: move the image so that it is denoised to itself; a level and noise for each step."""

    def loss(point: Tensor, step: int) -> Tensor:
        noised = point + sigmas[step].reshape(-1, 1, 1, 1) * noise[step]
        return ((denoise(noised, sigmas[step]) - point) ** 2).mean(dim=(1, 2, 3))

    return _image(_adam(loss, 2 * x - 1, steps, rate))


def scoreopt_noised(denoise: Denoise, x: Tensor, steps: int, rate: float, sigma: float, noise: Tensor) -> Tensor:
    """ScoreOpt-N: move the noised image so that the noise seen in it is the noise added, then denoise it."""
    sigmas = torch.full((len(x),), sigma)

    def loss(point: Tensor, step: int) -> Tensor:
        return (((point - denoise(point, sigmas)) / sigma - noise) ** 2).mean(dim=(1, 2, 3))

    point = _adam(loss, 2 * x - 1 + sigma * noise, steps, rate)
    with torch.no_grad():
        return _image(denoise(point, sigmas))
