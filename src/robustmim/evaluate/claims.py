"""What a run's records say: accuracies with intervals, what must be said with them, and pictures for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from robustmim.config import AttackConfig, EvaluateRecipe, PurifyRecipe
from robustmim.data.sources import Source
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.run import Cell, Evaluator, cells
from robustmim.evaluate.statistics import wilson_interval
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.load import describe
from robustmim.purify.trace import Trace
from robustmim.radius import radius_text
from robustmim.rng import keys
from robustmim.runs import RunFolder, atomic, environment, read_lines, write_json

EXAMPLES = 8
TRACED = 16


def tally(records: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Count one cell: n, correct, accuracy and its 95 % Wilson interval."""
    judged = [record for record in records if key in record["predicted"]]
    correct = sum(record["predicted"][key] == record["label"] for record in judged)
    return _share(correct, len(judged))


def _share(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(correct, n)
    accuracy = correct / n if n else 0.0
    return {"n": n, "correct": correct, "accuracy": round(accuracy, 4), "low": round(low, 4), "high": round(high, 4)}


def worst_case(records: list[dict[str, Any]], radius: float) -> dict[str, Any]:
    """Count samples that withstand every attack at a budget, among those that faced them all."""
    names = [Cell(attack, radius, "purified").key for attack in ("gray-box", "white-box")]
    names = [name for name in names if any(name in record["predicted"] for record in records)]
    names = names or [Cell("gray-box", radius, "bare").key]
    judged = [record for record in records if all(name in record["predicted"] for name in names)]
    correct = sum(all(record["predicted"][name] == record["label"] for name in names) for record in judged)
    return {"radius": radius_text(radius)} | _share(correct, len(judged))


def describe_attack(config: AttackConfig, *, through: bool) -> str:
    """Say in a line how an attack works."""
    start = "random start" if config.random_start else "no random start"
    text = f"PGD-{config.steps}, step {config.step_size:g} ε, {start}"
    if through:
        return (
            f"{text}, EOT {config.eot}, through the purifier with identity gradient (BPDA); verdict on fresh draws. "
            "An upper bound on robustness: stronger attacks exist"
        )
    return f"{text}, on the bare classifier; the attacker does not know of the purifier"


def claim(
    records: list[dict[str, Any]],
    evaluator: Evaluator,
    *,
    classifier: str,
    purifier: str | None,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Sum up the records: every accuracy with its interval, and what must be said with it."""
    recipe = evaluator.recipe
    table = [
        {"attack": cell.attack, "radius": radius_text(cell.radius), "defence": cell.defence} | tally(records, cell.key)
        for cell in cells(recipe, purified=purifier is not None)
    ]
    worst = [worst_case(records, radius) for radius in recipe.radii]
    times = {what: evaluator.seconds[what] / n * 1000 for what, n in evaluator.images.items() if n}
    middle = recipe.radii[len(recipe.radii) // 2] if recipe.radii else 0.0
    return {
        "classifier": classifier,
        "purifier": purifier,
        "data": f"{recipe.data.name} {recipe.data.split}"
        + (f", {recipe.data.part}" if recipe.data.part != "all" else "")
        + (f", after the first {recipe.data.skip}" if recipe.data.skip else ""),
        "norm": recipe.norm,
        "seed": recipe.seed,
        "images": len(records),
        "cells": [row for row in table if row["n"]],
        "worst_case": worst[-1] if worst else None,
        "worst_cases": worst,
        "protocol": {"gray-box": describe_attack(recipe.gray_box, through=False)}
        | ({"white-box": describe_attack(recipe.white_box, through=True)} if purifier else {}),
        "findings": findings(records, recipe, purified=purifier is not None),
        "milliseconds_per_image": {what: round(value, 3) for what, value in times.items()},
        "per_class": _per_class(records, middle, classes) if len(classes) <= 20 else None,
        "environment": environment(),
    }


def _per_class(records: list[dict[str, Any]], radius: float, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    names = {
        "clean": Cell("none", 0.0, "bare").key,
        "attacked_bare": Cell("gray-box", radius, "bare").key,
        "attacked_purified": Cell("gray-box", radius, "purified").key,
    }
    rows = []
    for number, name in enumerate(classes):
        own = [record for record in records if record["label"] == number]
        if own:
            rows.append({"class": name} | {what: tally(own, key)["accuracy"] for what, key in names.items()})
    return rows


def findings(records: list[dict[str, Any]], recipe: EvaluateRecipe, *, purified: bool) -> list[dict[str, str]]:
    """Say what a reader must know before quoting a number."""
    found = []

    def add(level: str, sentence: str) -> None:
        found.append({"level": level, "sentence": sentence})

    if purified:
        add(
            "amber",
            "The white-box attack uses the identity gradient only; for this purifier that is the weakest attack that knows "
            "it. Read its accuracy as an upper bound.",
        )
    for radius in recipe.radii:
        gray = tally(records, Cell("gray-box", radius, "purified").key)
        white = tally(records, Cell("white-box", radius, "purified").key)
        if purified and white["n"] and white["low"] > gray["high"]:
            add(
                "red",
                f"At {radius_text(radius)} the attack through the purifier is weaker than the one that ignores it: it does "
                "not work, and its accuracy means nothing.",
            )
        bare = tally(records, Cell("gray-box", radius, "bare").key)
        if purified and bare["n"] and gray["high"] < bare["low"]:
            add("red", f"At {radius_text(radius)} purification makes the attacked images worse.")
    if len(records) < 500:
        add("amber", f"{len(records)} images: differences of a few points are within the intervals.")
    return found


def save_examples(evaluator: Evaluator, source: Source, folder: Path, *, device: torch.device) -> dict[str, Any]:
    """Write pictures of the first samples (examples.safetensors) and return the traces of some more, for the report.

    The gray-box attack at the middle budget; without a purifier the pictures show the attack alone.
    """
    recipe = evaluator.recipe
    radius = recipe.radii[len(recipe.radii) // 2]
    batch = next(iter(in_order(source, TRACED, device)))
    drawn = keys(recipe.seed, "verdict", batch.ids)
    attacked = evaluator.attack("gray-box", batch, radius)
    pictures = {"clean": batch.images, "attacked": attacked}
    traces: dict[str, Any] = {}
    purifier = evaluator.purifier
    if purifier is not None:
        model = purifier.model if isinstance(purifier, AMRMPure) else None
        for name, x, result in (("clean", batch.images, "purified_clean"), ("attacked", attacked, "purified")):
            trace = Trace(model, reference=batch.images, keys=drawn)
            own = drawn.fold("none") if name == "clean" else drawn.fold("gray-box", radius_text(radius))
            pictures[result] = purifier(x, keys=own, callback=trace)
            curves = trace.mean()
            traces[name] = {"amv": None} | curves
    tensors = {name: x[:EXAMPLES].cpu().contiguous() for name, x in pictures.items()}
    tensors |= {
        f"predicted_{name}": evaluator.classify(x)[:EXAMPLES].cpu().contiguous() for name, x in pictures.items()
    }
    tensors["label"] = batch.labels[:EXAMPLES].cpu().contiguous()
    with atomic(folder / "examples.safetensors") as part:
        save_file(tensors, part, metadata={"classes": json.dumps(source.classes), "radius": radius_text(radius)})
    return traces


def conclude(
    evaluator: Evaluator,
    source: Source,
    folder: RunFolder,
    *,
    classifier: str,
    purify: PurifyRecipe | None,
    device: torch.device,
) -> dict[str, Any]:
    """Write claim.json and examples.safetensors of a complete evaluation; return the claim."""
    content = claim(
        read_lines(folder.path / "records.jsonl"),
        evaluator,
        classifier=classifier,
        purifier=describe(purify) if purify else None,
        classes=source.classes,
    )
    content["trace"] = save_examples(evaluator, source, folder.path, device=device)
    write_json(folder.path / "claim.json", content)
    folder.update("finished")
    return content
