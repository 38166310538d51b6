"""Convolutions of a frozen network that are to be differentiated twice, without the waste.

A convolution is linear in its input, and its transpose is the convolution transposed. PyTorch's second derivative computes
the gradient in the weight all the same, frozen or not; that is a third of a Hessian-vector product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        context.save_for_backward(weight)
        context.options = stride, padding, groups
        context.size = x.shape[-2:]
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = context.saved_tensors
        stride, padding, groups = context.options
        # Rows and columns at the far border that the stride left out.
        rest = [
            size - ((out - 1) * step - 2 * pad + side)
            for size, out, step, pad, side in zip(
                context.size, upstream.shape[-2:], stride, padding, weight.shape[-2:], strict=True
            )
        ]
        gradient = F.conv_transpose2d(upstream, weight, None, stride, padding, rest, groups)
        return gradient, None, None, None, None, None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class LeanSecondDerivative(TorchFunctionMode):
    """Inside the block, second derivatives through 2-d convolutions with frozen weights cost no more than they must.

    Values and derivatives are those of `torch.conv2d`; calls with trainable weights, dilation or arguments by keyword are
    left as they are.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace `torch.conv2d`; let all else pass."""
        if function is torch.conv2d and not kwargs:
            given: list[Any] = [*args, *(None, 1, 0, 1, 1)[len(args) - 2 :]]
            x, weight, bias, stride, padding, dilation, groups = given
            frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
            if frozen and not isinstance(padding, str) and _pair(dilation) == (1, 1):
                return _Convolution.apply(x, weight, bias, _pair(stride), _pair(padding), groups)
        return function(*args, **(kwargs or {}))
