"""Gradients through an unrolled descent, in memory that does not grow with its steps.

One step of a purifier is x ← C(x − λ φ(v)), v ← μ v + g(x) / mean|g(x)| (without momentum: v = g), with g the gradient of
the objective and C the clip to the ball and to [0, 1]. Its pull-back needs the derivative of C and φ, which are
elementwise, and one product of g's Jacobian, the Hessian of the objective, with a vector. So nothing of the networks'
graphs is kept: iterates and gradients are stored, and the steps are walked backwards, one product each. The product is
a second backward pass ("hessian"), or a difference of gradients ("forward-difference", "central-difference"): the
Hessian is symmetric, H c = d/dh ∇F(x + h c), and a gradient needs no second derivative of any layer.

φ is a sign in the published algorithm. Its derivative is zero almost everywhere, so the exact gradient never sees the
objective; the smooth functions of `GradientConfig.mode` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from robustmim.config import GradientConfig
from robustmim.descent import advance, projected_descent
from robustmim.geometry import Ball
from robustmim.types import Images, PerSample


@runtime_checkable
class TwoPathObjective(Protocol):
    """An objective of an image that is seen and of an image that is compared with; the descent follows some of the two.

    Attributes:
        paths: which of them the descent's gradient goes through.
    """

    paths: Literal["both", "input", "target"]

    def __call__(self, x: Images, step: int) -> PerSample:
        """Return the value with paths that are not followed detached."""

    def between(self, seen: Images, target: Images, step: int) -> PerSample:
        """Return the value, differentiable in both."""


def smooth_sign(config: GradientConfig, progress: float = 0.0) -> Callable[[Images], Images]:
    """Return the smooth function that stands for the sign; its scale is not differentiated.

    Args:
        config: mode and temperature.
        progress: of the attack in [0, 1], which anneals the temperature.
    """
    temperature = config.temperature
    if config.final_temperature is not None:
        temperature *= (config.final_temperature / temperature) ** progress

    def smooth(v: Images) -> Images:
        scale = v.detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-30)
        if config.mode == "straight-through":
            return v / scale
        if config.mode == "tanh":
            return torch.tanh(v / (temperature * scale))
        if config.mode == "rational":
            return v / (v.abs() + temperature * scale)
        length = v.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1, 1)
        return v * (math.sqrt(v[0].numel()) / length)

    return smooth


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return the value of the one with the derivative of the other."""
    return value.detach() + (surrogate - surrogate.detach())


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """A projected descent to be differentiated.

    Attributes:
        objective: what is descended.
        ball: its norm and radius, as the attacker has them.
        lengths: of each step, positive.
        momentum: weight of the velocity.
        output: last iterate, mean of the iterates, or the best one.
        gradient: the attacker's choice of a gradient; its mode is not "identity".
        progress: of the attack.
        noise: added to the image before the first step.
        parameters: weights of the objective that the output is also to be connected to (RAMRM, Eq. 7).
    """

    objective: TwoPathObjective
    ball: Ball
    lengths: list[float]
    momentum: float = 0.0
    output: Literal["last", "mean", "best"] = "last"
    gradient: GradientConfig
    progress: float = 0.0
    noise: Images | None = None
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, x: Images) -> Images:
        """Return the purified images, connected to `x` and to the parameters."""
        return cast(Images, _Unroll.apply(x, self, *self.parameters))

    @property
    def sees_the_objective(self) -> bool:
        """Whether the direction has a derivative: a hard sign has none, the unit vector of l2 has."""
        return self.gradient.mode != "exact" or self.ball.norm != "linf"

    def _direction(self, *, pulling: bool) -> Callable[[Images], Images]:
        # For l2 the step is smooth as it is, and its exact derivative is taken in every mode.
        if self.gradient.mode == "exact" or self.ball.norm != "linf":
            return self.ball.steepest
        smooth = smooth_sign(self.gradient, self.progress)
        if self.gradient.forward == "smooth":
            return smooth
        if not pulling:
            return self.ball.steepest
        return lambda v: straight_through(v.sign(), smooth(v))

    def _project(self, point: Images, center: Images) -> Images:
        inside = self.ball.project(point, center)
        return inside if self.gradient.clip == "exact" else straight_through(inside, point)

    def _start(self, x: Images) -> Images:
        return x if self.noise is None else self._project(x + self.noise, x)

    def descend(self, x: Images) -> tuple[Images, list[Images], list[Images], list[Tensor]]:
        """Return the output, and for each step its iterate and gradient; then each iterate's weight `[B]` in the output."""
        iterates: list[Images] = []
        gradients: list[Images] = []
        values: list[PerSample] = []

        def keep(state: dict[str, Any]) -> None:
            iterates.append(state["x"])
            gradients.append(state["gradient"])
            values.append(state["value"])

        descent = projected_descent(
            self.objective,
            x,
            self.ball,
            steps=len(self.lengths),
            step_size=self.lengths.__getitem__,
            maximise=False,
            momentum=self.momentum,
            direction=self._direction(pulling=False),
            start=self._start(x),
            output=self.output,
            callback=keep,
        )
        count = len(self.lengths)
        if self.output == "mean":
            weights = [torch.full_like(values[0], 1 / (count + 1))] * (count + 1)
        elif self.output == "best":
            best = torch.stack(values).argmin(0)
            weights = [(best == s).to(x.dtype) for s in range(count)] + [torch.zeros_like(values[0])]
        else:
            weights = [torch.zeros_like(values[0])] * count + [torch.ones_like(values[0])]
        return descent.output, iterates, gradients, weights

    def pull_back(
        self, x: Images, iterates: list[Images], gradients: list[Images], weights: list[Tensor], upstream: Images
    ) -> tuple[Images, list[Tensor]]:
        """Return the gradients of <upstream, output> in `x` and in the parameters."""
        velocities = self._velocities(gradients)
        direction = self._direction(pulling=True)
        count = len(self.lengths)
        first_seen = 0 if self.gradient.last is None else max(0, count - self.gradient.last)
        at_iterate = weights[count].view(-1, 1, 1, 1) * upstream
        at_velocity = None if self.momentum == 0 else torch.zeros_like(x)
        at_center = torch.zeros_like(x)
        at_parameters = [torch.zeros_like(parameter) for parameter in self.parameters]
        for step in reversed(range(count)):
            leaves = [iterates[step], gradients[step], x] + ([velocities[step]] if self.momentum else [])
            with torch.enable_grad():
                leaves = [leaf.detach().requires_grad_(True) for leaf in leaves]
                results = advance(
                    leaves[0],
                    leaves[3] if self.momentum else None,
                    leaves[1],
                    leaves[2],
                    length=-self.lengths[step],
                    momentum=self.momentum,
                    direction=direction,
                    project=self._project,
                )
                pulled = torch.autograd.grad(
                    [result for result in results if result is not None],
                    leaves,
                    [at_iterate] if at_velocity is None else [at_iterate, at_velocity],
                    allow_unused=True,
                    materialize_grads=True,
                )
            at_iterate = pulled[0] + weights[step].view(-1, 1, 1, 1) * upstream
            at_center = at_center + pulled[2]
            if at_velocity is not None:
                at_velocity = pulled[3]
            if self.sees_the_objective and step >= first_seen:
                product, *own = self._product(iterates[step], gradients[step], pulled[1], step)
                at_iterate = at_iterate + product
                at_parameters = [total + part for total, part in zip(at_parameters, own, strict=True)]
        if self.noise is None:
            return at_iterate + at_center, at_parameters
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (at_start,) = torch.autograd.grad(self._start(leaf), leaf, at_iterate)
        return at_start + at_center, at_parameters

    def _velocities(self, gradients: list[Images]) -> list[Images]:
        """Return the velocity before each step."""
        if self.momentum == 0:
            return []
        velocities = [torch.zeros_like(gradients[0])]
        for gradient in gradients[:-1]:
            scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
            velocities.append(self.momentum * velocities[-1] + gradient / scale)
        return velocities

    def _product(self, x: Images, gradient: Images, vector: Images, step: int) -> tuple[Tensor, ...]:
        """Return Jᵀ c, J the Jacobian of the descent's gradient at `x`; then the same for its Jacobian in each parameter.

        With F(s, t) the objective, s seen and t compared with, the gradient along the paths followed is g(x), and
        Jᵀ c = ∇_z d/dh F(z + h c [seen], z + h c [target]) with the shift on the followed paths only: by the symmetry of
        second derivatives this holds where g leaves a path out and J itself is not symmetric, and for parameters.
        """
        paths = self.objective.paths
        nothing = (torch.zeros_like(x), *(torch.zeros_like(parameter) for parameter in self.parameters))
        if self.gradient.product == "hessian":
            with torch.enable_grad():
                seen, target = x.detach().requires_grad_(True), x.detach().requires_grad_(True)
                value = self.objective.between(seen, target, step).sum()
                followed = {"both": (seen, target), "input": (seen,), "target": (target,)}[paths]
                slopes = torch.autograd.grad(
                    value, followed, create_graph=True, allow_unused=True, materialize_grads=True
                )
                along = torch.stack([(slope * vector).sum() for slope in slopes]).sum()
                if not along.requires_grad:
                    return nothing
                at_seen, at_target, *own = torch.autograd.grad(
                    along, (seen, target, *self.parameters), allow_unused=True, materialize_grads=True
                )
            return (at_seen + at_target, *own)

        # The step of the difference balances truncation and rounding: ε^(1/2) one-sided, ε^(1/3) central. The factors are
        # those with which float32 came nearest to the full graph on our masked models. What is left of a product there is 1e-3
        # one-sided, flat around the best step (the gradient's own rounding meets the third derivative, whatever the norms are),
        # and 1e-4 central.
        central = self.gradient.product == "central-difference"
        epsilon = torch.finfo(x.dtype).eps
        reach = epsilon ** (1 / 3) / 4 if central else epsilon ** (1 / 2) / 2
        size = vector.square().mean((1, 2, 3), keepdim=True).sqrt()
        length = torch.where(size > 0, reach / size.clamp(min=1e-30), torch.zeros_like(size))
        if not (length > 0).any():
            return nothing
        scale = torch.where(length > 0, 1 / length.clamp(min=1e-30), torch.zeros_like(length))

        def slopes_at(shift: Images | float) -> tuple[Tensor, ...]:
            # Each sample's difference has a length of its own: the division by it must come before samples are added up.
            with torch.enable_grad():
                leaf = x.detach().requires_grad_(True)
                value = self.objective.between(
                    leaf + shift if paths != "target" else leaf, leaf + shift if paths != "input" else leaf, step
                )
                return torch.autograd.grad(
                    (value * scale.flatten()).sum(), (leaf, *self.parameters), allow_unused=True, materialize_grads=True
                )

        above = slopes_at(length * vector)
        if central:
            return tuple((a - b) / 2 for a, b in zip(above, slopes_at(-length * vector), strict=True))
        # Along both paths the unshifted gradient is the one that the descent has taken.
        known = paths == "both" and not self.parameters
        before = (gradient * scale,) if known else slopes_at(0.0)
        return tuple(a - b for a, b in zip(above, before, strict=True))


class _Unroll(torch.autograd.Function):
    """The descent as one node of autograd's graph."""

    @staticmethod
    def forward(context: Any, x: Images, unrolled: Unrolled, *parameters: Tensor) -> Images:
        with torch.no_grad():
            output, context.iterates, context.gradients, context.weights = unrolled.descend(x.detach())
        context.unrolled = unrolled
        context.save_for_backward(x)
        return output

    @staticmethod
    def backward(context: Any, upstream: Images) -> tuple[Tensor | None, ...]:
        (x,) = context.saved_tensors
        with torch.no_grad():
            at_x, at_parameters = context.unrolled.pull_back(
                x, context.iterates, context.gradients, context.weights, upstream.contiguous()
            )
        return (at_x, None, *at_parameters)
