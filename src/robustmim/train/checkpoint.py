"""Everything a run needs to go on, in one safetensors file written atomically: no pickle, no half-written state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustmim.errors import CheckpointError
from robustmim.runs import atomic


def save(
    path: Path,
    *,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    objective: dict[str, Tensor],
    about: dict[str, Any],
) -> None:
    """Write weights, averages, the optimiser's state, the objective's, and `about` (step, elapsed seconds, …) to one file."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    tensors |= {f"objective.{name}": value for name, value in objective.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    # Tensors that share memory are refused by the format; each is copied out, off the device.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with atomic(path) as part:
        save_file(tensors, part, metadata={"about": json.dumps(about)})


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Return the same numbers, in memory as those of `like`: a fused optimiser goes through weights and state side by side."""
    return torch.empty_like(like, dtype=value.dtype, device="cpu").copy_(value) if value.shape == like.shape else value


def load(
    path: Path, *, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint back into a model, its average and its optimiser; return `about` and the objective's state.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "objective": {}}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            for key in file.keys():  # noqa: SIM118 - the file is no mapping
                part, name = key.split(".", 1)
                parts[part][name] = file.get_tensor(key)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to start over") from error
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} belongs to another model: {error}") from error
    for name, value in average.items():
        value.copy_(parts["average"][name])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = _laid_out(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return about, parts["objective"]
