"""The engine that trains everything: straight loop, exact resume, clean stop.

Order of a step: learning rate → batch → loss → backward → clip → optimiser → average → log → evaluate → checkpoint.
Every draw is a function of (seed, sample id, step), so a checkpoint needs no random state, and a run that was killed
goes on to the same weights, bit for bit, on the same hardware and number of processes.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustmim.config import OptimizerConfig, RunConfig
from robustmim.data.loader import Batch, Batches
from robustmim.errors import RobustmimError
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder
from robustmim.train import checkpoint
from robustmim.train.distributed import World
from robustmim.train.objectives import Objective
from robustmim.train.schedule import learning_rate_factor, make_optimizer

Status = Literal["finished", "stopped"]
Evaluation = Callable[[nn.Module], dict[str, float]]
"""A model in evaluation mode → named numbers."""

LOG_EVERY_SECONDS = 10.0


class Diverged(RobustmimError):
    """The loss is no longer a number."""


class _Step(nn.Module):
    """Objective and model as one forward pass, so that DDP sees it: attacks inside use the raw model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective

    def forward(self, batch: Batch, drawn: Keys, step: int) -> dict[str, Tensor]:
        return self._objective(self.model, batch, drawn, step)


@contextmanager
def _stop_signals() -> Iterator[dict[str, bool]]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop grants after the step."""
    asked = {"stop": False}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked["stop"] and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked["stop"] = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def using_average(model: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """Evaluate with the averaged weights (if there are any) inside the block."""
    if not average:
        yield
        return
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average)
    try:
        yield
    finally:
        model.load_state_dict(own)


def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    # The first steps are forgotten faster, so that the average does not remember the initialisation.
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].lerp_(value, weight)
            else:
                average[name].copy_(value)


def _autocast(precision: str, device: torch.device) -> Any:
    bfloat16 = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    optimizer_config: OptimizerConfig,
    run: RunConfig,
    folder: RunFolder,
    world: World,
    evaluate: Evaluation,
    max_seconds: float = math.inf,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Status:
    """Train until the epochs are done or time is up; resume where `last.safetensors` in the folder stands.

    Args:
        model: on `world.device`; holds the averaged weights at the end if the recipe averages.
        objective: what is minimised.
        batches: what step t sees.
        optimizer_config, run: the recipe.
        folder: where log and checkpoints go.
        world: this process among the others.
        evaluate: measured every `run.evaluate_every` epochs and at the end, on the averaged weights.
        max_seconds: wall-clock limit of this call; the run can be resumed after it.
        report: told every log row, for progress on the screen.

    Returns:
        "finished", or "stopped" when the limit or a signal came first.

    Raises:
        Diverged: the loss is not finite; the last checkpoint is kept.
        CheckpointError: `last.safetensors` is damaged or of another model.
    """
    total = max(1, round(run.epochs * batches.steps_per_epoch))
    evaluate_every = max(1, round(run.evaluate_every * batches.steps_per_epoch))
    optimizer = make_optimizer(model, optimizer_config)
    average = {name: value.clone() for name, value in model.state_dict().items()} if run.ema else {}
    path = folder.path / "last.safetensors"
    step, spent = 0, 0.0
    if path.exists():
        about = checkpoint.load(path, model=model, average=average, optimizer=optimizer)
        step, spent = about["step"], about["seconds"]
        folder.forget_after(step)
    forward: nn.Module = _Step(model, objective)
    if world.size > 1:
        forward = DistributedDataParallel(forward, broadcast_buffers=True)

    began = last_saved = last_logged = time.monotonic()
    logged_step = step

    def seconds() -> float:
        return spent + time.monotonic() - began

    def save() -> None:
        if world.leads:
            about = {"step": step, "total": total, "seconds": seconds()}
            checkpoint.save(path, model=model, average=average, optimizer=optimizer, about=about)

    with _stop_signals() as asked:
        model.train()
        while step < total:
            factor = learning_rate_factor(optimizer_config, step / total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            batch = batches.batch(step)
            drawn = keys(run.seed, "step", batch.ids, step)
            with _autocast(run.precision, world.device):
                values = forward(batch, drawn, step)
            loss = values["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if optimizer_config.clip:
                nn.utils.clip_grad_norm_(model.parameters(), optimizer_config.clip)
            optimizer.step()
            step += 1
            if average:
                _update_average(average, model, run.ema, step)

            now = time.monotonic()
            if now - last_logged > LOG_EVERY_SECONDS or step in (1, total):
                # Reading the loss waits for the device, so it is read, and checked, only when logged.
                row = {name: value.item() for name, value in values.items()}
                if not math.isfinite(row["loss"]):
                    raise Diverged(
                        f"the loss became {row['loss']} at step {step}; everything up to the last checkpoint is kept in "
                        f"{path}. Lower optimizer.learning_rate, or set optimizer.clip"
                    )
                rate = (step - logged_step) * len(batch.images) * world.size / max(now - last_logged, 1e-9)
                row |= {
                    "step": step,
                    "epoch": round(step / batches.steps_per_epoch, 3),
                    "total": total,
                    "learning_rate": factor * optimizer_config.learning_rate,
                    "images_per_second": round(rate, 1),
                    "seconds": round(seconds(), 1),
                }
                last_logged, logged_step = now, step
                folder.log(row)
                if world.leads:
                    report(row)
            if step % evaluate_every == 0 or step == total:
                model.eval()
                with using_average(model, average):
                    found = evaluate(model) if world.leads else {}
                model.train()
                row = {"step": step, "epoch": round(step / batches.steps_per_epoch, 3), "total": total, **found}
                folder.log(row | {"evaluation": True, "seconds": round(seconds(), 1)})
                if world.leads:
                    report(row)
                last_logged, logged_step = time.monotonic(), step
            # One process's clock or signal stops all at the same step; asking costs a reduction, so not every step.
            if step % batches.replays == 0 and (step % 10 == 0 or world.size == 1):
                if world.any(asked["stop"] or time.monotonic() - began > max_seconds) and step < total:
                    save()
                    return "stopped"
                if time.monotonic() - last_saved > run.checkpoint_minutes * 60 and world.leads:
                    save()
                    last_saved = time.monotonic()
        save()
        model.eval()
        if average:
            model.load_state_dict(average)
    return "finished"
