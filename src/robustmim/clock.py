"""The time, as measurements need it: a GPU still works when Python has gone on, so its clock is read when it is done."""

from __future__ import annotations

import time

import torch


def seconds(device: torch.device) -> float:
    """Return the seconds of a clock that never goes back, once the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
