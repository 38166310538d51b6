"""AMRM-Pure (Algorithm 1): descend the masked reconstruction loss over the input, by the sign of its gradient.

    x ← clip(x − λ · sign ∇ₓ L_rec(x), η)                                             (Eq. 4)

The paper leaves eleven things open that concern a masked autoencoder (docs/paper-versus-code, A1–A11); each is a field
of `AMRMConfig`. The same code purifies with any `MaskedModel`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.config import AMRMConfig
from robustmim.data.images import check_images
from robustmim.descent import Objective, projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.masked import MaskedModel, freeze
from robustmim.models.masking import MaskSchedule
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, PerSample


def step_sizes(config: AMRMConfig) -> list[float]:
    """Return the step of each iteration (A1, A2)."""
    if config.schedule == "cosine":
        return [config.step_size * (1 + math.cos(math.pi * s / config.steps)) / 2 for s in range(config.steps)]
    after = config.decay_at * config.steps
    return [config.step_size * (config.decay if s >= after else 1.0) for s in range(config.steps)]


def reconstruction_objective(model: MaskedModel, config: AMRMConfig, keys: Keys, grid: tuple[int, int]) -> Objective:
    """Return L_rec as a function of (images, step): the masks of a step are replayed from the keys."""
    schedule = MaskSchedule(ratio=config.mask_ratio, scheme=config.masks, average=config.mask_average)

    def loss(x: Images, step: int) -> PerSample:
        seen = x.detach() if config.gradient == "target" else x
        target = x.detach() if config.gradient == "input" else x
        masks = schedule.masks(keys, grid, step)
        total = model.reconstruct(seen, masks[0], target=target).loss
        for mask in masks[1:]:
            total = total + model.reconstruct(seen, mask, target=target).loss
        return total / len(masks)

    return loss


def _padded(x: Tensor, keys: Keys) -> tuple[Tensor, Keys]:
    """Repeat the last sample until the batch fills all threads, two at the least.

    Convolution kernels for a single image, or for batches that the threads do not divide, add up in another order; with
    whole batches a sample's result is the same, bit for bit, alone or among others.
    """
    unit = max(2, torch.get_num_threads()) if x.device.type == "cpu" else 1
    missing = -len(x) % unit
    if not missing:
        return x, keys
    return torch.cat([x, x[-1:].expand(missing, -1, -1, -1)]), Keys(
        torch.cat([keys.values, keys.values[-1:].expand(missing)])
    )


@register("purifier", "amrm")
class AMRMPure:
    """Purify by sign-gradient descent of a masked model's loss.

    Args:
        model: any `MaskedModel`; it is frozen and put into evaluation mode.
        config: the algorithm's switches.

    Raises:
        RecipeError: a number of steps below one.
    """

    def __init__(self, model: MaskedModel, config: AMRMConfig = AMRMConfig()) -> None:
        if config.steps < 1:
            raise RecipeError(f"purification takes at least one step, not {config.steps}")
        if isinstance(model, nn.Module):
            freeze(model)
        self.model, self.config = model, config
        self._step_sizes = step_sizes(config)

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(
            randomised=self.config.masks != "fixed-global" or self.config.start_noise > 0,
            optimises_at_test_time=True,
            steps=self.config.steps,
        )

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample, for its masks and start noise.
            callback: told each step's {"step", "x", "value", "gradient", "center", "ball"} before it is taken, over the
                batch as given. See `robustmim.purify.trace.Trace`.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        size = len(x)
        if size == 0:
            return x
        check_images(x)
        # Gradients are taken here whatever the caller's mode; tensors made in inference mode must be copied for that.
        with torch.inference_mode(False), torch.no_grad():
            return self._descend(*_padded(x.detach().clone(), keys), size, callback)[:size]

    def _descend(self, x: Images, keys: Keys, size: int, callback: Callback | None) -> Images:
        config = self.config
        ball = Ball(norm=config.norm, eps=config.radius)
        start = None
        if config.start_noise:
            noise = keys.fold("start").normal(*x.shape[1:]).to(x)
            start = ball.project(x + config.start_noise * noise, x)

        def unpadded(state: dict[str, Any]) -> None:
            assert callback is not None
            callback({name: v[:size] if isinstance(v, Tensor) else v for name, v in state.items()})

        descent = projected_descent(
            reconstruction_objective(self.model, config, keys, self.model.grid(*x.shape[-2:])),
            x,
            ball,
            steps=config.steps,
            step_size=self._step_sizes.__getitem__,
            maximise=False,
            momentum=config.momentum,
            start=start,
            callback=unpadded if callback else None,
        )
        return {"last": descent.last, "mean": descent.mean, "best": descent.best}[config.output]
