"""Processes started by `torchrun`, or a single one: the same code."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from robustmim.errors import EnvironmentUnusable


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def any(self, value: bool) -> bool:
        """Return whether `value` is true in any process: all must stop at the same step."""
        if self.size == 1:
            return value
        flag = torch.tensor([float(value)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        """Wait for the others: what the process that leads has made is there afterwards."""
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means of scalars over the processes, which must all ask, for the same ones."""
        row = torch.stack([value.detach().to(self.device, torch.float32) for value in values.values()])
        if self.size > 1:
            dist.all_reduce(row)
        return dict(zip(values, (row / self.size).tolist(), strict=True))


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device: of several processes each gets a GPU of its own.

    Raises:
        EnvironmentUnusable: a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EnvironmentUnusable(f"{name!r} is no device; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentUnusable("no CUDA device can be used here; say --device cpu, or see `robustmim doctor`")
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.first = sum(len(part) for part in parts[: dist.get_rank()])
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each process computes the same number from the same rows, so its gradient by our rows is the others' as well, and
        # nothing need be sent. DDP averages over processes what is a sum over rows: hence the factor.
        return gradients[0][ctx.first : ctx.first + ctx.count] * dist.get_world_size()


def gathered(rows: Float[Tensor, "share width"]) -> Float[Tensor, "batch width"]:
    """Return the rows of all processes, in the order of their ranks: the batch as one process would hold it.

    For a number that every process computes from all rows, alike; the average of the processes' gradients, which is what
    DDP makes, is then the gradient of that number. Rows come back as they are where there is one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


@contextmanager
def world(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started (gloo on CPU, NCCL on CUDA), or be alone; leave at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # DistributedDataParallel imports it, and where it is first imported between joining and leaving it keeps the process group for
    # good: gloo's threads would outlive the interpreter and now and then abort the process at its end.
    importlib.import_module("torch._dynamo")
    # Processes of an evaluation meet only at its end, and some may be hours ahead of others.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(days=2))
    try:
        yield World(dist.get_rank(), size, chosen)
        dist.barrier()  # the one that saves is last; leaving before it would break its connections
    finally:
        dist.destroy_process_group()
