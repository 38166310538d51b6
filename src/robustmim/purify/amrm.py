"""AMRM-Pure (Algorithm 1): descend the masked reconstruction loss over the input, by the sign of its gradient.

    x ← clip(x − λ · sign ∇ₓ L_rec(x), η)                                             (Eq. 4)

The paper leaves eleven things open that concern a masked autoencoder (docs/paper-versus-code, A1–A11); each is a field
of `AMRMConfig`. The same code purifies with any `MaskedModel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustmim.adjoint import Unrolled
from robustmim.config import AMRMConfig, GradientConfig
from robustmim.data.images import check_images
from robustmim.descent import projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.frozen_convolution import LeanSecondDerivative
from robustmim.models.masked import MaskedModel, RandomisedModel, freeze, with_draws
from robustmim.models.masking import MaskSchedule
from robustmim.models.vit import explicit_attention
from robustmim.purify.traits import Callback, Traits
from robustmim.radius import Radius
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, PerSample


def step_sizes(config: AMRMConfig) -> list[float]:
    """Return the step of each iteration (A1, A2)."""
    if config.schedule == "cosine":
        return [config.step_size * (1 + math.cos(math.pi * s / config.steps)) / 2 for s in range(config.steps)]
    after = config.decay_at * config.steps
    return [config.step_size * (config.decay if s >= after else 1.0) for s in range(config.steps)]


def mask_schedule(config: AMRMConfig) -> MaskSchedule:
    """Return which masks each iteration sees (A4 to A6).

    Raises:
        RecipeError: a ratio, a number or scales that no masks have.
    """
    return MaskSchedule(
        ratio=config.mask_ratio, scheme=config.masks, average=config.mask_average, scales=config.mask_scales
    )


class ReconstructionObjective:
    """L_rec as a function of (images, step): the masks of a step are replayed from the keys.

    Args:
        model: the masked model.
        config: its switches for masks and gradient path.
        keys: one per sample.
        grid: rows and columns of the masks.
        twice: whether it will be differentiated twice, which fused attention does not allow.
    """

    def __init__(
        self, model: MaskedModel, config: AMRMConfig, keys: Keys, grid: tuple[int, int], *, twice: bool = False
    ) -> None:
        self.paths: Literal["both", "input", "target"] = config.gradient
        self._twice = twice
        self._model, self._keys, self._grid = model, keys, grid
        self._steps = config.steps
        self._schedule = mask_schedule(config)

    def between(self, seen: Images, target: Images, step: int) -> PerSample:
        """Return the loss of reconstructing `target` from what is visible of `seen`."""
        masks = self._schedule.masks(self._keys, self._grid, step)
        progress = step / max(1, self._steps - 1)
        losses = []
        with self._differentiable_twice() if self._twice else nullcontext():
            for number, mask in enumerate(masks):
                model = with_draws(self._model, self._keys, draw=step * len(masks) + number, progress=progress)
                losses.append(model.reconstruct(seen, mask, target=target).loss)
        return torch.stack(losses).mean(0) if len(losses) > 1 else losses[0]

    @contextmanager
    def _differentiable_twice(self) -> Iterator[None]:
        attention = explicit_attention(self._model) if isinstance(self._model, nn.Module) else nullcontext()
        with attention, LeanSecondDerivative():
            yield

    def __call__(self, x: Images, step: int) -> PerSample:
        """Return the loss with gradients through the paths of the configuration (A7)."""
        seen = x.detach() if self.paths == "target" else x
        target = x.detach() if self.paths == "input" else x
        return self.between(seen, target, step)


def padded_batch(x: Tensor, keys: Keys) -> tuple[Tensor, Keys]:
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


def for_samples(callback: Callback | None, size: int) -> Callback | None:
    """Return a callback that is told of the first `size` samples alone: of those given, not of what pads their batch."""
    if callback is None:
        return None

    def tell(state: dict[str, Any]) -> None:
        callback({name: value[:size] if isinstance(value, Tensor) else value for name, value in state.items()})

    return tell


@register("purifier", "amrm")
class AMRMPure:
    """Purify by sign-gradient descent of a masked model's loss.

    Args:
        model: any `MaskedModel`; it is frozen and put into evaluation mode.
        config: the algorithm's switches.

    Raises:
        RecipeError: a number of steps below one, or masks that no grid can have: their ratio, number or scales.
    """

    def __init__(self, model: MaskedModel, config: AMRMConfig = AMRMConfig()) -> None:
        if config.steps < 1:
            raise RecipeError(f"purification takes at least one step, not {config.steps}")
        mask_schedule(config)  # refuses masks that no grid can have
        if isinstance(model, nn.Module):
            freeze(model)
        self.model, self.config = model, config
        self._step_sizes = step_sizes(config)

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        return Traits(
            randomised=self.config.masks != "fixed-global"
            or self.config.start_noise > 0
            or (isinstance(self.model, RandomisedModel) and self.model.randomised),
            optimises_at_test_time=True,
            steps=self.config.steps,
            ball=Ball(norm=self.config.norm, eps=self.config.radius),
        )

    @property
    def mask_ratio(self) -> float:
        """Fraction of the cells that its masks hide."""
        return self.config.mask_ratio

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
        check_images(x, network=self.model)
        # Gradients are taken here whatever the caller's mode; tensors made in inference mode must be copied for that.
        with torch.inference_mode(False), torch.no_grad():
            return self._descend(*padded_batch(x.detach().clone(), keys), size, callback)[:size]

    def differentiable(
        self,
        x: Images,
        *,
        keys: Keys,
        gradient: GradientConfig,
        progress: float = 0.0,
        parameters: tuple[Tensor, ...] = (),
    ) -> Images:
        """Return purified images that are connected to `x` by a gradient of the attacker's choice.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample.
            gradient: which gradient, and through which purifier (`ball_scale`, `steps`); not "identity".
            progress: of the attack in [0, 1], for an annealed temperature.
            parameters: weights of the masked model that the images are also connected to, for training them.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        check_images(x, network=self.model)
        size = len(x)
        steps = self.config.steps if gradient.steps is None else gradient.steps
        config = replace(self.config, steps=steps, radius=Radius(self.config.radius * gradient.ball_scale))
        padded, keys = padded_batch(x, keys)
        unrolled = Unrolled(
            objective=ReconstructionObjective(
                self.model, config, keys, self.model.grid(*x.shape[-2:]), twice=gradient.product == "hessian"
            ),
            ball=Ball(norm=config.norm, eps=config.radius),
            lengths=step_sizes(config),
            momentum=config.momentum,
            output=config.output,
            gradient=gradient,
            progress=progress,
            noise=self._noise(padded, keys),
            parameters=parameters,
        )
        return unrolled(padded)[:size]

    def _noise(self, x: Images, keys: Keys) -> Images | None:
        if not self.config.start_noise:
            return None
        return self.config.start_noise * keys.fold("start").normal(*x.shape[1:]).to(x)

    def _descend(self, x: Images, keys: Keys, size: int, callback: Callback | None) -> Images:
        config = self.config
        ball = Ball(norm=config.norm, eps=config.radius)
        noise = self._noise(x, keys)
        start = None if noise is None else ball.project(x + noise, x)

        return projected_descent(
            ReconstructionObjective(self.model, config, keys, self.model.grid(*x.shape[-2:])),
            x,
            ball,
            steps=config.steps,
            step_size=self._step_sizes.__getitem__,
            maximise=False,
            momentum=config.momentum,
            start=start,
            output=config.output,
            callback=for_samples(callback, size),
        ).output
