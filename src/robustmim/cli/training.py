"""What `train` and `pretrain` share: data, processes, progress, and how a run ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustmim.cli.arguments import JobOptions
from robustmim.cli.console import Progress, duration, output, say
from robustmim.config import DataConfig, GeneratedConfig, OptimizerConfig, RunConfig
from robustmim.data import sources
from robustmim.data.corruptions import Corrupted
from robustmim.data.generated import load_generated
from robustmim.data.loader import Batch, Batches, Extended, Loader
from robustmim.data.sources import Source
from robustmim.errors import RecipeError
from robustmim.models.masked import parameter_count
from robustmim.models.zoo import save_model
from robustmim.rng import keys
from robustmim.runs import RunFolder, to_plain
from robustmim.train.distributed import World
from robustmim.train.engine import Diverged, Evaluation, fit
from robustmim.train.objectives import Objective
from robustmim.train.schedule import make_optimizer

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


def open_generated(
    generated: GeneratedConfig, config: DataConfig, run: RunConfig, here: World, source: Source
) -> Extended:
    """Make training batches of which a part comes from a file of generated images, augmented like the others.

    Raises:
        RecipeError: a fraction that leaves a batch without images of one kind, or cannot be shared by the processes.
        InputError: the file is missing, damaged or does not fit.
    """
    added = round(run.batch_size * generated.fraction / here.size) * here.size
    if not 0 < added < run.batch_size:
        raise RecipeError(
            f"generated.fraction is {generated.fraction:g}: of {run.batch_size} images, {added} would be generated; choose "
            "it between 0 and 1, or leave `generated` out"
        )
    size = source.fetch(torch.arange(1)).shape[-1]
    other = load_generated(generated.file, source.classes, size)
    return Extended(
        [
            open_loader(config, replace(run, batch_size=run.batch_size - added), here, source),
            open_loader(config, replace(run, batch_size=added), here, other),
        ]
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


def arithmetic(
    model: nn.Module, config: OptimizerConfig, run: RunConfig, batches: Batches, here: World
) -> dict[str, Any]:
    """Return how a run's batches and rates come about: what a learning rate means depends on it."""
    steps = max(1, round(run.epochs * batches.steps_per_epoch))
    return {
        "processes": here.size,
        "parts": run.accumulate,
        "images_per_part": run.batch_size // here.size // run.accumulate,
        "images_per_step": run.batch_size,
        "replays": batches.replays,
        "steps": steps,
        "warmup_steps": round(config.warmup * steps),
        "learning_rate": config.learning_rate,
        "learning_rate_per_256_images": config.learning_rate * 256 / run.batch_size,
        "lowest_learning_rate": min(group["peak"] for group in make_optimizer(model, config).param_groups),
    }


def in_words(facts: dict[str, Any]) -> str:
    """Say the arithmetic of a run in a line."""
    text = (
        f"a step: {facts['images_per_step']} images = {facts['processes']} × {facts['parts']} × {facts['images_per_part']} "
        f"(processes × parts × images); rate {facts['learning_rate']:.3g}, {facts['learning_rate_per_256_images']:.3g} for 256 "
        f"images, reached after {facts['warmup_steps']} of {facts['steps']} steps"
    )
    if facts["lowest_learning_rate"] < facts["learning_rate"]:
        text += f"; {facts['lowest_learning_rate']:.3g} in the lowest layer"
    if facts["replays"] > 1:
        text += f"; each batch {facts['replays']} times in a row, so an epoch has {facts['replays']} times the steps"
    return text


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
    product: nn.Module | None = None,
    about: dict[str, Any] | None = None,
) -> int:
    """Train, save, tell how it ended; return the exit code.

    Args:
        kind, name: of the run.
        recipe: with `model`, `optimizer` and `run`.
        options: of the command line.
        here: this process among the others.
        model, objective, batches, evaluate: see `robustmim.train.engine.fit`.
        saved_config: what config.json will say.
        finish: the last to touch the model before it is saved.
        product: the part of the model that is saved; default: all of it.
        about: more for run.json.
    """
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
    harmless = ("probe", "validation", "adversarial.validation", "run.evaluate_every", "run.checkpoint_minutes")
    folder = RunFolder(path, recipe=recipe, kind=kind, harmless=harmless, leads=here.leads)
    resumed = (path / "last.safetensors").exists()
    if here.leads:
        say(
            f"{'resuming' if resumed else 'starting'} {path}: {saved_config['name']}, {parameter_count(model):,} parameters, "
            f"{run.epochs:g} epochs × {batches.steps_per_epoch} steps × {run.batch_size} images"
            + (f" over {here.size} processes" if here.size > 1 else "")
            + f" on {here.device}"
        )
        facts = arithmetic(model, recipe.optimizer, run, batches, here)
        say(in_words(facts))
        folder.update("running", arithmetic=facts, **(about or {}))
    progress: Progress | None = None

    def show(row: dict[str, Any]) -> None:
        nonlocal progress
        progress = progress or Progress(row["total"], unit="steps", every=30.0)
        hidden = {"step", "total", "learning_rate", "seconds", "evaluation", "peak_memory_mib"}
        note = "  ".join(
            f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in hidden
        )
        progress.update(row["step"], note, force="loss" not in row)

    try:
        ended = fit(
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
        status = "diverged" if isinstance(error, Diverged) else "failed"
        folder.update(status, error=str(error) or type(error).__name__)
        raise
    if not here.leads:
        return 0 if ended == "finished" else 130
    if ended == "stopped":
        folder.update("stopped")
        say(f"stopped; everything is in {path}. To go on: robustmim {' '.join(sys.argv[1:])}")
        return 130
    finish(model)
    save_model(path, model if product is None else product, to_plain(saved_config))
    folder.update("finished")
    say(f"finished: {path}/model.safetensors")
    if options.json:
        output({"status": ended, "folder": str(path)})
    return 0
