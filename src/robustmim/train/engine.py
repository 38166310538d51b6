"""The engine that trains everything: straight loop, exact resume, clean stop.

Order of a step: learning rate → batch → for each of its parts loss and backward → clip → optimiser → average → objective's
own → log → evaluate → checkpoint. One step makes one reduction over the processes, however many parts it has and passes its
objective makes. A step whose gradient is not a number is skipped, its traces in batch norm included.
Every draw is a function of (seed, sample id, step), so a checkpoint needs no random state, and a run that was killed
goes on to the same weights, bit for bit, on the same hardware and number of processes.
"""

from __future__ import annotations

import math
import resource
import signal
import sys
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
from robustmim.errors import RecipeError, RobustmimError
from robustmim.models.maskdit import ConditionedBlock
from robustmim.models.vit import Block
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder
from robustmim.train import checkpoint
from robustmim.train.distributed import World
from robustmim.train.objectives import FollowsSteps, KeepsState, Objective, Training
from robustmim.train.schedule import learning_rate_factor, make_optimizer

Status = Literal["finished", "stopped"]
Evaluation = Callable[[nn.Module], dict[str, float]]
"""A model in evaluation mode → named numbers."""

LOG_EVERY_SECONDS = 10.0


class Diverged(RobustmimError):
    """The gradient is no longer a number, step after step."""


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


def _backward(forward: nn.Module, parts: list[Batch], drawn: Keys, step: int, autocast: Any) -> dict[str, Tensor]:
    """Add up the gradients of a step's parts and return the means of their values; processes are asked once, in the last."""
    total: dict[str, Tensor] = {}
    size = len(drawn) // len(parts)
    for number, part in enumerate(parts):
        waits = isinstance(forward, DistributedDataParallel) and number + 1 < len(parts)
        with forward.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with autocast:
                values = forward(part, drawn[number * size : (number + 1) * size], step)
            (values["loss"] / len(parts)).backward()
        for name, value in values.items():
            total[name] = total.get(name, 0) + value.detach() / len(parts)
    return total


def _autocast(precision: str, device: torch.device) -> Any:
    bfloat16 = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def compile_blocks(model: nn.Module) -> None:
    """Compile a model's transformer blocks in place; their parameters keep their names.

    Block by block rather than as a whole: all blocks of a width share what is compiled, and what lies around them (masks,
    draws, an attack's projections) stays as it is.

    Raises:
        RecipeError: there are none.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block | ConditionedBlock)]
    if not blocks:
        raise RecipeError(
            f"run.compile is for transformers, and {type(model).__name__} has no blocks of one: set it to false"
        )
    for block in blocks:
        block.compile()


def _peak_memory(device: torch.device) -> float:
    """Return the most memory held so far, in MiB: by tensors on a GPU, by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, on a Mac in bytes
    return held / (2**20 if sys.platform == "darwin" else 2**10)


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
        Diverged: more steps in a row than `run.skips` had no finite gradient; the weights from before them are saved.
        CheckpointError: `last.safetensors` is damaged or of another model.
        RecipeError: a batch that cannot be cut into the parts asked for.
    """
    if batches.replays > 1 and run.accumulate > 1:
        raise RecipeError("training that replays its batches takes each of them whole; set run.accumulate to 1")
    if (run.batch_size // world.size) % run.accumulate:
        raise RecipeError(
            f"a process's {run.batch_size // world.size} images cannot be cut into {run.accumulate} equal parts; change "
            "run.batch_size or run.accumulate"
        )
    total = max(1, round(run.epochs * batches.steps_per_epoch))
    evaluate_every = max(1, round(run.evaluate_every * batches.steps_per_epoch))
    optimizer = make_optimizer(model, optimizer_config)
    average = {name: value.clone() for name, value in model.state_dict().items()} if run.ema else {}
    path = folder.path / "last.safetensors"
    step, spent = 0, 0.0
    skipped, in_a_row = 0, 0
    if path.exists():
        about, kept = checkpoint.load(path, model=model, average=average, optimizer=optimizer)
        step, spent = about["step"], about["seconds"]
        total = step if step == about["total"] else total  # the run has ended, if before its time
        skipped, in_a_row = about.get("skipped", 0), about.get("in_a_row", 0)
        if isinstance(objective, KeepsState):
            objective.restore(kept)
        folder.forget_after(step)
    if run.compile:
        compile_blocks(model)
    forward: nn.Module = _Step(model, objective)
    if world.size > 1:
        forward = DistributedDataParallel(forward, broadcast_buffers=True)
    # What a forward pass changes besides the gradients.
    remembered = [
        buffer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for buffer in layer.buffers()
    ]

    began = last_saved = last_logged = time.monotonic()
    logged_step = step

    def seconds() -> float:
        return spent + time.monotonic() - began

    def save() -> None:
        if world.leads:
            about = {"step": step, "total": total, "seconds": seconds(), "skipped": skipped, "in_a_row": in_a_row}
            state: dict[str, Tensor] = objective.state() if isinstance(objective, KeepsState) else {}
            checkpoint.save(path, model=model, average=average, optimizer=optimizer, objective=state, about=about)

    with _stop_signals() as asked:
        model.train()
        while step < total:
            factor = learning_rate_factor(optimizer_config, step / total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            batch = batches.batch(step)
            drawn = keys(run.seed, "step", batch.ids, step)
            before = [buffer.clone() for buffer in remembered]
            optimizer.zero_grad(set_to_none=True)
            autocast = _autocast(run.precision, world.device)
            values = _backward(forward, batch.parts(run.accumulate), drawn, step, autocast)
            trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
            step += 1
            ended = False
            # Every process has the same gradient by now, and so comes to the same conclusion.
            if norm.isfinite():
                if optimizer_config.clip:
                    nn.utils.clip_grads_with_norm_(trained, optimizer_config.clip, norm)
                optimizer.step()
                in_a_row = 0
                if average:
                    _update_average(average, model, run.ema, step)
                if isinstance(objective, FollowsSteps):
                    ended = objective.after_step(
                        Training(model, average, optimizer, step, total, batches.steps_per_epoch, world)
                    )
            else:
                for buffer, value in zip(remembered, before, strict=True):
                    buffer.copy_(value)
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row > run.skips:
                    save()
                    raise Diverged(
                        f"the gradient was not a number {in_a_row} times in a row, up to step {step}; the weights from before "
                        f"are saved in {path}. Lower optimizer.learning_rate, or set optimizer.clip"
                    )
            if ended:
                total = step

            now = time.monotonic()
            # What all processes do together, one's clock decides; asking costs a reduction, so not every step.
            asks = step % 10 == 0 or world.size == 1
            due = step in (1, total) or (asks and world.any(now - last_logged > LOG_EVERY_SECONDS))
            if due and not in_a_row:
                row: dict[str, Any] = {**world.mean(values), **({"skipped": skipped} if skipped else {})}
                rate = (step - logged_step) * len(batch.images) * world.size / max(now - last_logged, 1e-9)
                row |= {
                    "step": step,
                    "epoch": round(step / batches.steps_per_epoch, 3),
                    "total": total,
                    "learning_rate": factor * optimizer_config.learning_rate,
                    "images_per_second": round(rate, 1),
                    "peak_memory_mib": round(_peak_memory(world.device)),
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
            if asks and step % batches.replays == 0:
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
