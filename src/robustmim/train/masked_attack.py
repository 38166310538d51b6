"""The inner maximisation of adversarial masked pre-training: images that the masked model reconstructs worse.

MIMIR's text (Eq. 9) and its code solve different problems; each difference is a field of `MaskedAttackConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn

from robustmim.config import MaskedAttackConfig
from robustmim.descent import projected_descent
from robustmim.geometry import Ball
from robustmim.models.masked import Counted, EncoderModel, MaskedModel, Reconstruction, Units
from robustmim.models.masking import enlarge, random_mask
from robustmim.rng import Keys
from robustmim.types import Images, Mask, PerSample


def reconstruction(
    model: nn.Module,
    x: Images,
    mask: Mask,
    *,
    target: Images,
    loss_over: Counted = "hidden",
    units: Units = "model",
    need_tokens: int | None = None,
) -> Reconstruction:
    """Call `reconstruct` of any masked model; what only an `EncoderModel` can be asked is left out for others."""
    if isinstance(model, EncoderModel):
        return model.reconstruct(x, mask, target=target, loss_over=loss_over, units=units, need_tokens=need_tokens)
    return cast(MaskedModel, model).reconstruct(x, mask, target=target)


@contextmanager
def attacked_model(model: nn.Module) -> Iterator[None]:
    """Put a model that trains into evaluation mode, with weights that need no gradient; undo both afterwards.

    As in MIMIR's code, what is random in training, such as dropped paths, does not disturb the attack. Nothing is kept for
    gradients of weights, and autocast does not remember weights that were cast without a gradient.
    """
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for module in training:
        module.training = False
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def _precision(name: str, device: torch.device) -> Any:
    if name == "training":
        return nullcontext()
    if name == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, torch.bfloat16 if name == "bfloat16" else torch.float16)


def _latent_distance(model: EncoderModel, x: Images, clean: Images, mask: Mask) -> PerSample:
    """Return the mean squared distance of the encodings of `x` and of `clean` under the same mask."""
    with torch.no_grad():
        before = model.tokens(clean, mask)
    return (model.tokens(x, mask).float() - before.float()).square().mean((1, 2))


def attack_reconstruction(
    model: nn.Module,
    x: Images,
    mask: Mask,
    keys: Keys,
    config: MaskedAttackConfig,
    *,
    ratio: float,
    scale: int = 1,
    loss_over: Counted = "hidden",
) -> Images:
    """Return attacked images: within the ball around `x` and in [0, 1], changed only where the masks' support allows.

    Args:
        model: a `MaskedModel`; an `EncoderModel` for a latent target, units of pixels, or a loss over all patches. In
            evaluation mode while it is attacked.
        x: clean images.
        mask: of the training step, which the attack shares unless its masks are fresh.
        keys: a sample's start and fresh masks depend on its key alone.
        config: the attack.
        ratio: what fresh masks hide where the config does not say.
        scale: of fresh masks, see `random_mask`.
        loss_over: what the training loss counts, and so the attack's.
    """
    masked = cast(MaskedModel, model)
    grid = masked.grid(*x.shape[-2:])
    ball = Ball(norm=config.norm, eps=config.radius)
    masks = [mask] * config.steps
    if config.mask == "fresh":
        hide = config.mask_ratio or ratio
        masks = [random_mask(keys.fold("attack mask", step), grid, hide, scale) for step in range(config.steps)]

    def inside(point: Images, outside: Images, step: int) -> Images:
        """Take `point` in the support and `outside` elsewhere."""
        if config.support == "all":
            return point
        hidden = enlarge(masks[step], masked.patch_size)
        return torch.where(hidden if config.support == "hidden" else ~hidden, point, outside)

    def objective(point: Images, step: int) -> PerSample:
        if config.support == "hidden" or config.target == "attacked":
            # Cut the gradient off outside, and no step is taken there. Otherwise hidden pixels have none anyway.
            point = inside(point, point.detach(), step)
        if config.target == "latent":
            value = _latent_distance(cast(EncoderModel, model), point, x, masks[step])
        else:
            target = x if config.target == "clean" else point
            value = reconstruction(
                model, point, masks[step], target=target, loss_over=loss_over, units=config.units
            ).loss
        return value if config.reduction == "sum" else value / len(x)

    with attacked_model(model), _precision(config.precision, x.device):
        return projected_descent(
            objective,
            x,
            ball,
            steps=config.steps,
            step_size=lambda step: config.step_size,
            maximise=True,
            start=inside(ball.random(x, keys.fold("attack start")), x, 0),
        ).last
