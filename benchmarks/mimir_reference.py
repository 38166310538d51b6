"""A plain MIMIR step in the style of research code: the yardstick, not the product.

Softmax attention written out, gather and un-shuffle around the decoder, predictions for every patch, an attack on a network
whose weights all require gradients, a mask for the attack and another one for training, HSIC-CCA by two inverses, AdamW as
torch has it by default, and a look at the gradient's norm and at the loss after each step. It works on our model's weights, so
that the same draws must give the same step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import reference
from robustmim.models.mae import MaskedAutoencoder

EPS, STEP, WEIGHT = 8 / 255, 10 / 255, 1e-5


def random_mask(x: Tensor, cells: int, ratio: float) -> Tensor:
    """Hide the cells that come first in a random order: bool `[B, cells]`."""
    noise = torch.rand(len(x), cells, device=x.device)
    rank = torch.argsort(torch.argsort(noise, dim=1), dim=1)
    return rank < int(cells * ratio)


def forward(model: MaskedAutoencoder, x: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss over hidden patches, normalised patch by patch, and the encoder's tokens."""
    flat = mask.float()
    keep = int((1 - flat[0]).sum())
    shuffle = torch.argsort(flat, dim=1, stable=True)
    restore = torch.argsort(shuffle, dim=1)
    x = (x - model.normalise.mean) / model.normalise.deviation
    target = (target - model.normalise.mean) / model.normalise.deviation

    tokens = model.patch_embed.proj(x).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:]
    tokens = torch.gather(tokens, 1, shuffle[:, :keep, None].repeat(1, 1, tokens.shape[2]))
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    tokens = torch.cat([first, tokens], dim=1)
    for layer in model.blocks:
        tokens = reference.block(layer, tokens)
    latent = model.norm(tokens)

    tokens = model.decoder_embed(latent)
    masked = model.mask_token.repeat(len(x), flat.shape[1] - keep, 1)
    whole = torch.cat([tokens[:, 1:], masked], dim=1)
    whole = torch.gather(whole, 1, restore[:, :, None].repeat(1, 1, whole.shape[2]))
    tokens = torch.cat([tokens[:, :1], whole], dim=1) + model.decoder_pos_embed
    for layer in model.decoder_blocks:
        tokens = reference.block(layer, tokens)
    predicted = model.decoder_pred(model.decoder_norm(tokens))[:, 1:]

    goal = reference.patches_of(target, model.patch_size)
    goal = (goal - goal.mean(dim=-1, keepdim=True)) / (goal.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
    error = ((predicted - goal) ** 2).mean(dim=-1)
    return (error * flat).sum() / flat.sum(), latent


def kernel(rows: Tensor, sigma: float) -> Tensor:
    squares = (rows * rows).sum(1)
    distances = squares[:, None] - 2 * rows @ rows.T + squares[None, :]
    return torch.exp(-distances / (2 * sigma**2 * rows.shape[1]))


def normalised_hsic(x: Tensor, z: Tensor, sigma: float = 5.0) -> Tensor:
    """Return Σ Rx ∘ Rzᵀ with R = KH (KH + εnI)⁻¹, each inverse computed as such."""
    n = len(x)
    eye = torch.eye(n, device=x.device)
    centre = eye - torch.ones(n, n, device=x.device) / n
    kx, kz = kernel(x, sigma) @ centre, kernel(z, sigma) @ centre
    rx = kx @ torch.inverse(kx + 1e-5 * n * eye)
    rz = kz @ torch.inverse(kz + 1e-5 * n * eye)
    return (rx * rz.T).sum()


def step(
    model: MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    ratio: float,
    draws: tuple[Tensor, Tensor, Tensor] | None = None,
) -> float:
    """Take one training step; `draws` are start, attack's mask and training's mask where they are not to be random."""
    cells = model.pos_embed.shape[1] - 1
    start = draws[0] if draws else torch.clamp(x + torch.empty_like(x).uniform_(-EPS, EPS), 0, 1)
    model.eval()
    adversarial = start.clone().detach().requires_grad_(True)
    mask = draws[1] if draws else random_mask(x, cells, ratio)
    loss, _ = forward(model, adversarial, adversarial, mask)
    gradient = torch.autograd.grad(loss, adversarial, retain_graph=False, create_graph=False)[0]
    adversarial = adversarial.detach() + STEP * gradient.sign()
    delta = torch.clamp(adversarial - x, min=-EPS, max=EPS)
    adversarial = torch.clamp(x + delta, min=0, max=1).detach()
    model.train()
    mask = draws[2] if draws else random_mask(x, cells, ratio)
    loss, latent = forward(model, adversarial, x, mask)
    penalty = normalised_hsic(adversarial.flatten(1), latent.flatten(1))
    if math.isfinite(penalty.item()):
        loss = loss + WEIGHT * penalty
    optimizer.zero_grad()
    loss.backward()
    # Public code asks for the norm of the gradient, to log it, whether or not it clips.
    norms = [torch.norm(parameter.grad.detach(), 2.0) for parameter in model.parameters() if parameter.grad is not None]
    torch.norm(torch.stack(norms), 2.0).item()
    optimizer.step()
    return loss.item()
