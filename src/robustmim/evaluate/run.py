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
from torch import Tensor, nn

from robustmim.attacks.pgd import PGD
from robustmim.config import EvaluateRecipe
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.evaluate.accuracy import in_order
from robustmim.geometry import Ball
from robustmim.models.masked import freeze
from robustmim.purify.defended import Defended
from robustmim.purify.trace import Trace
from robustmim.purify.traits import Purifier
from robustmim.radius import Radius, radius_text
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder, append_line, atomic, read_lines
from robustmim.types import Images

Attack = Literal["none", "gray-box", "white-box"]
Defence = Literal["bare", "purified"]


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

    def evaluate(self, batch: Batch, *, first: int = 0) -> list[dict[str, Any]]:
        """Return one record per sample: id, label and the predicted class in each cell.

        Args:
            batch: samples in the order of the data set.
            first: place of the batch's first sample in it; only so many are attacked through the purifier.
        """
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
                chosen = torch.arange(len(batch.ids), device=batch.ids.device) < max(0, few - first)
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
        for what, measured in folder.timing.items():
            self.seconds[what] += measured["seconds"]
            self.images[what] += int(measured["images"])
        for place, batch in enumerate(in_order(source, self.recipe.batch_size, device)):
            fresh = torch.tensor([int(i) not in done for i in batch.ids], device=batch.ids.device)
            if not fresh.any():
                continue
            if time.monotonic() - began > max_seconds or stop():
                return False
            # The whole batch is computed again if any of it is missing: the same work, and the same numbers.
            new = [
                record
                for record in self.evaluate(batch, first=place * self.recipe.batch_size)
                if record["id"] not in done
            ]
            for record in new:
                append_line(path, record)
            records += new
            report(len(records), progress_note(records))
            spent = {what: {"seconds": self.seconds[what], "images": n} for what, n in self.images.items()}
            folder.update("running", timing=spent)
        return True


def _rewrite(path: Path, records: list[dict[str, Any]]) -> None:
    """Drop a line that a kill cut short, so that the next one is not glued to it."""
    if path.exists():
        with atomic(path) as part:
            part.write_text("".join(json.dumps(record) + "\n" for record in records))


def progress_note(records: list[dict[str, Any]]) -> str:
    """Say in a few words how the last two cells stand."""

    def share(name: str) -> float:
        judged = [record for record in records if name in record["predicted"]]
        return sum(record["predicted"][name] == record["label"] for record in judged) / len(judged)

    return ", ".join(f"{name} {share(name):.1%}" for name in list(records[0]["predicted"])[-2:])
