"""What to do where the memory does not hold a batch: take half of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error is that of a device, or of the machine, whose memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halving(images: int, work: Callable[[int], Result]) -> Result:
    """Return what some work on so many images gives; on half as many, and so on, if the memory does not hold them."""
    while True:
        try:
            return work(images)
        except RuntimeError as error:
            if not out_of_memory(error) or images == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        images //= 2
