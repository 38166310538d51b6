"""What `train` and `pretrain` share: data, processes, progress, and how a run ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustmim.cli.arguments import JobOptions
from robustmim.cli.console import Progress, duration, output, say
from robustmim.config import DataConfig, RunConfig
from robustmim.data import sources
from robustmim.data.corruptions import Corrupted
from robustmim.data.loader import Batch, Batches, Loader
from robustmim.data.sources import Source
from robustmim.models.masked import parameter_count
from robustmim.models.zoo import save_model
from robustmim.rng import keys
from robustmim.runs import RunFolder, to_plain
from robustmim.train.distributed import World
from robustmim.train.engine import Evaluation, fit
from robustmim.train.objectives import Objective

RESIDENT_BYTES = 2**30
"""Photographs are decoded once and kept if they fit in this; larger sets are decoded whenever they are fetched."""


def open_source(config: DataConfig, device: torch.device) -> Source:
    """Open the data set a recipe names; sets that fit stay on the device as uint8."""
    source = sources.load(
        config.name,
        config.split,
        root=Path(config.root) if config.root else None,
        size=config.size,
        resize=config.resize,
        skip=config.skip,
        limit=config.limit,
        part=config.part,
    )
    if isinstance(source, sources.FolderSource) and 3 * source.size**2 * len(source) <= RESIDENT_BYTES:
        source = source.resident()
    if isinstance(source, sources.ResidentSource):
        source = source.to(device)
    return Corrupted(source, config.corruption, config.severity) if config.corruption else source


def open_loader(config: DataConfig, run: RunConfig, here: World, source: Source) -> Loader:
    """Make the training batches of one data set."""
    return Loader(
        source,
        config,
        batch_size=run.batch_size,
        seed=run.seed,
        device=here.device,
        rank=here.rank,
        world=here.size,
    )


def estimate(model: nn.Module, objective: Objective, batches: Batches, run: RunConfig) -> float:
    """Time two training steps and return the seconds that the whole run would take (evaluations not counted)."""
    total = round(run.epochs * batches.steps_per_epoch)
    spent: list[float] = []
    for step in range(3):  # the first warms up
        began = time.perf_counter()
        batch: Batch = batches.batch(step)
        objective(model, batch, keys(run.seed, "step", batch.ids, step), step)["loss"].backward()
        spent.append(time.perf_counter() - began)
    model.zero_grad(set_to_none=True)
    return min(spent[1:]) * total


def run_training(
    *,
    kind: str,
    name: str,
    recipe: Any,
    options: JobOptions,
    here: World,
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    evaluate: Evaluation,
    saved_config: dict[str, Any],
    finish: Callable[[nn.Module], None] = lambda model: None,
) -> int:
    """Train, save, tell how it ended; return the exit code. `finish` is the last to touch the model before it is saved."""
    run: RunConfig = recipe.run
    path = Path(options.out or f"runs/{name}")
    if options.dry_run:
        seconds = estimate(model, objective, batches, run)
        if here.leads:
            answer = {"parameters": parameter_count(model), "seconds": round(seconds), "device": str(here.device)}
            say(f"{answer['parameters']:,} parameters; about {duration(seconds)} on {here.device}; nothing was written")
            if options.json:
                output(answer)
        return 0
    harmless = ("probe", "validation", "run.evaluate_every", "run.checkpoint_minutes")
    folder = RunFolder(path, recipe=recipe, kind=kind, harmless=harmless, leads=here.leads)
    resumed = (path / "last.safetensors").exists()
    if here.leads:
        say(
            f"{'resuming' if resumed else 'starting'} {path}: {saved_config['name']}, {parameter_count(model):,} parameters, "
            f"{run.epochs:g} epochs × {batches.steps_per_epoch} steps × {run.batch_size} images"
            + (f" over {here.size} processes" if here.size > 1 else "")
            + f" on {here.device}"
        )
    progress: Progress | None = None

    def show(row: dict[str, Any]) -> None:
        nonlocal progress
        progress = progress or Progress(row["total"], unit="steps", every=30.0)
        hidden = {"step", "total", "learning_rate", "seconds", "evaluation"}
        note = "  ".join(
            f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in hidden
        )
        progress.update(row["step"], note, force="loss" not in row)

    try:
        status = fit(
            model,
            objective,
            batches,
            optimizer_config=recipe.optimizer,
            run=run,
            folder=folder,
            world=here,
            evaluate=evaluate,
            max_seconds=float(options.max_time),
            report=show,
        )
    except BaseException as error:
        folder.update("failed", error=str(error) or type(error).__name__)
        raise
    if not here.leads:
        return 0 if status == "finished" else 130
    if status == "stopped":
        folder.update("stopped")
        say(f"stopped; everything is in {path}. To go on: robustmim {' '.join(sys.argv[1:])}")
        return 130
    finish(model)
    save_model(path, model, to_plain(saved_config))
    folder.update("finished")
    say(f"finished: {path}/model.safetensors")
    if options.json:
        output({"status": status, "folder": str(path)})
    return 0
