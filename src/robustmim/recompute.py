"""Gradients through many steps of a function, without their graphs in memory and where fused attention has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def recorded(x: Tensor) -> bool:
    """Say whether a gradient in `x` is being recorded."""
    return torch.is_grad_enabled() and x.requires_grad


def recomputed(step: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
    """Return `step(x, *arguments)`; where a gradient in `x` is recorded, its graph is made again on the way back.

    The step must draw by keys alone: there is no generator whose state would be restored.
    """
    if recorded(x):
        return checkpoint(step, x, *arguments, use_reentrant=False, preserve_rng_state=False)
    return step(x, *arguments)


@contextmanager
def slopes(*, twice: bool) -> Iterator[None]:
    """Record gradients in here; `twice` for those that are differentiated again, which fused attention cannot be."""
    with torch.enable_grad():
        if twice:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield
