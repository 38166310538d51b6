"""Measure a classifier behind a purifier: clean, gray box, white box; one record per sample, resumable at any moment.

Gray box: the attack is made on the bare classifier and then purified; the attacker does not know of the purifier.
White box: the attack passes the purifier with the identity as its gradient and averages over its draws (EOT); the verdict
is taken on draws the attack has not seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustmim.attacks.pgd import PGD
from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.statistics import wilson_interval
from robustmim.geometry import Ball
from robustmim.models.masked import freeze
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.defended import Defended
from robustmim.purify.trace import Trace
from robustmim.purify.traits import Purifier
from robustmim.radius import Radius, radius_text
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder, append_line, atomic, read_lines
from robustmim.types import Images

Attack = Literal["none", "gray-box", "white-box"]
Defence = Literal["bare", "purified"]
EXAMPLES = 8
TRACED = 16


@dataclass(frozen=True)
class Cell:
    """One cell of the table: an attack at a budget against a defence."""

    attack: Attack
    radius: float
    defence: Defence

    @property
    def key(self) -> str:
        """The cell's name in the records: "gray-box 8/255 purified"."""
        return f"{self.attack} {radius_text(self.radius)} {self.defence}"


def _white_box_radii(recipe: EvaluateRecipe) -> tuple[Radius, ...]:
    return recipe.radii if recipe.white_box_radii is None else recipe.white_box_radii


def cells(recipe: EvaluateRecipe, *, purified: bool) -> list[Cell]:
    """List the cells that a recipe asks for."""
    table = [Cell("none", 0.0, "bare")] + [Cell("gray-box", radius, "bare") for radius in recipe.radii]
    if purified:
        table += [Cell("none", 0.0, "purified")]
        table += [Cell("gray-box", radius, "purified") for radius in recipe.radii]
        table += [Cell("white-box", radius, "purified") for radius in _white_box_radii(recipe)]
    return table


class Evaluator:
    """Attack, purify and classify batches of samples.

    Args:
        classifier: logits from [0, 1] images; frozen.
        purifier: or None, to measure the bare classifier.
        recipe: budgets and attacks.
    """

    def __init__(self, classifier: nn.Module, purifier: Purifier | None, recipe: EvaluateRecipe) -> None:
        self.classifier, self.purifier, self.recipe = freeze(classifier), purifier, recipe
        self._defended = Defended(purifier, classifier) if purifier else None
        self.seconds = {"classify": 0.0, "purify": 0.0}
        self.images = {"classify": 0, "purify": 0}

    @torch.no_grad()
    def classify(self, x: Images) -> Tensor:
        """Return the predicted classes."""
        began = time.perf_counter()
        predicted = self.classifier(x).argmax(1)
        self._count("classify", began, len(x))
        return predicted

    def purify(self, x: Images, drawn: Keys, *, trace: Trace | None = None) -> Images:
        """Purify; the time is kept for the report."""
        assert self.purifier is not None
        began = time.perf_counter()
        purified = self.purifier(x, keys=drawn, callback=trace)
        self._count("purify", began, len(x))
        return purified

    def _count(self, what: str, began: float, images: int) -> None:
        self.seconds[what] += time.perf_counter() - began
        self.images[what] += images

    def attack(self, kind: Attack, batch: Batch, radius: float) -> Images:
        """Return the adversarial images of an attack."""
        recipe = self.recipe
        ball = Ball(norm=recipe.norm, eps=radius)
        drawn = keys(recipe.seed, f"attack {kind} {radius_text(radius)}", batch.ids)
        if kind == "gray-box":
            return PGD(recipe.gray_box)(lambda x, _: self.classifier(x), batch.images, batch.labels, ball, keys=drawn)
        assert self._defended is not None
        return PGD(recipe.white_box)(self._defended, batch.images, batch.labels, ball, keys=drawn)

    def evaluate(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one record per sample: id, label and the predicted class in each cell."""
        recipe = self.recipe
        # The verdict's draws: a purpose of its own, so that no attack has seen them.
        verdict = keys(recipe.seed, "verdict", batch.ids)
        found: dict[str, Tensor] = {Cell("none", 0.0, "bare").key: self.classify(batch.images)}
        if self.purifier:
            clean = self.purify(batch.images, verdict.fold("none"))
            found[Cell("none", 0.0, "purified").key] = self.classify(clean)
        for radius in recipe.radii:
            attacked = self.attack("gray-box", batch, radius)
            found[Cell("gray-box", radius, "bare").key] = self.classify(attacked)
            if not self.purifier:
                continue
            purified = self.purify(attacked, verdict.fold("gray-box", radius_text(radius)))
            found[Cell("gray-box", radius, "purified").key] = self.classify(purified)
            if radius not in _white_box_radii(recipe):
                continue
            few = recipe.white_box_images
            chosen = torch.ones_like(batch.ids, dtype=torch.bool)
            if few is not None:
                chosen = torch.arange(len(batch.ids), device=batch.ids.device) < max(0, few - self._first)
            if chosen.any():
                part = Batch(batch.images[chosen], batch.labels[chosen], batch.ids[chosen])
                attacked = self.attack("white-box", part, radius)
                purified = self.purify(attacked, verdict[chosen].fold("white-box", radius_text(radius)))
                predicted = torch.full_like(batch.labels, -1)
                predicted[chosen] = self.classify(purified)
                found[Cell("white-box", radius, "purified").key] = predicted
        return [
            {
                "id": int(batch.ids[i]),
                "label": int(batch.labels[i]),
                "predicted": {key: int(value[i]) for key, value in found.items() if int(value[i]) >= 0},
            }
            for i in range(len(batch.ids))
        ]

    _first = 0  # place of the current batch in the data set, for the number of white-box images

    def run(
        self,
        source: Source,
        folder: RunFolder,
        *,
        device: torch.device,
        max_seconds: float = math.inf,
        report: Callable[[int, str], None] = lambda done, note: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Evaluate every sample that `records.jsonl` does not hold yet; return whether all are done."""
        began = time.monotonic()
        path = folder.path / "records.jsonl"
        records = read_lines(path)
        _rewrite(path, records)
        done = {record["id"] for record in records}
        for place, batch in enumerate(in_order(source, self.recipe.batch_size, device)):
            self._first = place * self.recipe.batch_size
            fresh = torch.tensor([int(i) not in done for i in batch.ids], device=batch.ids.device)
            if not fresh.any():
                continue
            if time.monotonic() - began > max_seconds or stop():
                return False
            # The whole batch is computed again if any of it is missing: the same work, and the same numbers.
            new = [record for record in self.evaluate(batch) if record["id"] not in done]
            for record in new:
                append_line(path, record)
            records += new
            report(len(records), progress_note(records))
        return True


def _rewrite(path: Path, records: list[dict[str, Any]]) -> None:
    """Drop a line that a kill cut short, so that the next one is not glued to it."""
    if path.exists():
        with atomic(path) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in records))


def progress_note(records: list[dict[str, Any]]) -> str:
    """Say in a few words how the cells stand."""
    cell_names = records[0]["predicted"]
    return ", ".join(f"{name} {tally(records, name)['accuracy']:.1%}" for name in list(cell_names)[-2:])


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
    recipe: EvaluateRecipe,
    evaluator: Evaluator,
    *,
    classifier: str,
    purifier: str | None,
    classes: tuple[str, ...],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Sum up the records: every accuracy with its interval, and what must be said with it."""
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
        "environment": environment,
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


def save_examples(
    evaluator: Evaluator, source: Source, folder: Path, *, classes: tuple[str, ...], device: torch.device
) -> dict[str, Any]:
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
        save_file(tensors, part, metadata={"classes": json.dumps(classes), "radius": radius_text(radius)})
    return traces
