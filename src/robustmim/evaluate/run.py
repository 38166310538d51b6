"""Measure a classifier behind a purifier: every attack of a recipe, one record per sample and cell, resumable at any moment.

An attack `against: classifier` is made on the bare classifier and meets the purifier only afterwards (gray box, transfer); an
attack `against: defence` goes through the purifier (white box). Verdicts are taken on draws that no attack has seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustmim.attacks.objectives import Logits, cross_entropy, margin
from robustmim.attacks.parts import KnowingAttack, Parts
from robustmim.attacks.target import Attack, Chunks, Cost, Interrupted, Target, until
from robustmim.clock import seconds
from robustmim.config import AttackConfig, EvaluateRecipe, GradientConfig
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.errors import InputError, RecipeError
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.journal import Journal, read_journal
from robustmim.evaluate.kept import FOLDER, KeptImages
from robustmim.evaluate.memory import out_of_memory
from robustmim.evaluate.table import (
    Cell,
    Defence,
    cell_of,
    cells,
    check_recipe,
    defences_of,
    radii_of,
)
from robustmim.evaluate.verdict import Judged, broken, judge
from robustmim.geometry import Ball
from robustmim.models.folded import folded
from robustmim.models.masked import freeze
from robustmim.purify.defended import Defended
from robustmim.purify.replacement import Replacement, make_replacement
from robustmim.purify.traits import Purifier
from robustmim.radius import Radius, radius_text
from robustmim.registry import build
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder, append_line
from robustmim.train.distributed import World
from robustmim.types import Images

REFERENCES = 64
"""Images that an attacker has of the data."""


def _go_on() -> None:
    """Interrupt nothing."""


def _learns(gradient: GradientConfig) -> bool:
    return gradient.mode == "replacement" and gradient.replacement == "imitation"


def _asks_another(gradient: GradientConfig) -> bool:
    """Say whether the attacker's images go through another purifier than the one that judges them."""
    if gradient.mode == "identity":
        return False
    altered = gradient.mode != "replacement" and (gradient.ball_scale != 1 or gradient.steps is not None)
    return altered or gradient.forward == "smooth"


def reference_images(source: Source, device: torch.device) -> Images:
    """Return what an attacker has of the data: the first 64 images, the same however the work is dealt out."""
    return source.fetch(torch.arange(min(REFERENCES, len(source)))).to(device).float() / 255


def dealt(source: Source, batch_size: int, world: World) -> list[int]:
    """Return the ids of the samples that are this process's: batches are dealt out in turn."""
    return [number for i, number in enumerate(source.ids.tolist()) if i // batch_size % world.size == world.rank]


class Evaluator:
    """Attack, purify and classify batches of samples.

    Args:
        classifier: logits from [0, 1] images; frozen.
        purifier: or None, to measure the bare classifier.
        recipe: budgets and attacks.
        reference: images that attacks may learn or estimate from, the same for every batch (`reference_images`); None if
            there are none, and those attacks are refused.

    Attributes:
        recipe: without the attacks that were left out.
        left_out: why, for each optional attack that the defence cannot face, or that does not know the norm.

    Raises:
        RecipeError: an attack, option or norm that does not exist, an attack that is not optional and needs what the defence
            does not have, or a recipe that contradicts itself.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier | None,
        recipe: EvaluateRecipe,
        reference: Images | None = None,
    ) -> None:
        check_recipe(recipe)
        # Folding takes layers away; an attack that names one must find it.
        named = any(attack.options.get("layer") is not None for attack in recipe.attacks)
        self.classifier, self.purifier = freeze(classifier) if named else folded(classifier), purifier
        self.parts = Parts(classifier=self.classifier, purifier=purifier, reference=reference)
        self._imitations: dict[tuple[GradientConfig, float], Replacement] = {}
        self._chunks: dict[GradientConfig, Chunks] = {}
        self._interrupt: Callable[[], None] = _go_on
        self._kept: KeptImages | None = None
        self.attacks: dict[str, Attack] = {}
        self.left_out: dict[str, str] = {}
        for attack in recipe.attacks:
            built = build("attack", attack.attack, **attack.options)
            try:
                self._check(attack, built, recipe.norm)
            except RecipeError as error:
                if not attack.optional:
                    raise
                self.left_out[attack.name] = str(error)
                continue
            self.attacks[attack.name] = built
        kept = tuple(attack for attack in recipe.attacks if attack.name in self.attacks)
        self.recipe = dataclasses.replace(recipe, attacks=kept)
        if recipe.cascade and recipe.draws == 1 and self.randomised:
            raise RecipeError(
                "on one draw of a random defence images fall by luck, and `cascade` would not attack them again: set `draws` "
                "to 2 or more, or `cascade` to false"
            )
        self.seconds = {"classify": 0.0, "purify": 0.0}
        self.images = {"classify": 0, "purify": 0}

    def _check(self, attack: AttackConfig, built: Attack, norm: str) -> None:
        """Raise RecipeError if an attack does not know the norm, or the defence lacks what it needs."""
        if norm not in built.norms:
            known = " or ".join(built.norms)
            raise RecipeError(f"attack {attack.name!r} ({attack.attack}) works in {known}, not in {norm}")
        if isinstance(built, KnowingAttack):
            built.check(self.parts)
        if self.purifier is None or attack.against == "classifier":
            return
        if _learns(attack.gradient):
            self.parts.reference_images()
        else:
            Defended(self.purifier, self.classifier, gradient=attack.gradient)  # refuses a gradient there is not

    @property
    def randomised(self) -> bool:
        """Whether the defence's answers depend on draws."""
        return self.purifier is not None and self.purifier.traits.randomised

    def white_box(self, attack: AttackConfig) -> bool:
        """Say whether an attack goes by gradients through the defence itself, not through a part or a stand-in of it."""
        if self.attacks[attack.name].black_box:
            return False
        if self.purifier is None:
            return True
        return attack.against == "defence" and (attack.gradient.mode == "identity" or attack.gradient.forward == "hard")

    @torch.no_grad()
    def classify(self, x: Images) -> Logits:
        """Return the bare classifier's logits; the time is kept for the report."""
        began = seconds(x.device)
        logits = self.classifier(x)
        self._count("classify", began, x)
        return logits

    def purify(self, x: Images, drawn: Keys) -> Images:
        """Purify; the time is kept for the report."""
        assert self.purifier is not None
        self._interrupt()
        began = seconds(x.device)
        purified = self.purifier(x, keys=drawn)
        self._count("purify", began, x)
        return purified

    @contextmanager
    def interrupted_by(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Ask, before each query of an attack and each purification, whether to go on.

        Args:
            interrupt: raises `Interrupted` where not.
        """
        self._interrupt = interrupt
        try:
            yield
        finally:
            self._interrupt = _go_on

    def _count(self, what: str, began: float, x: Images) -> None:
        self.seconds[what] += seconds(x.device) - began
        self.images[what] += len(x)

    def known_keys(self, attack: AttackConfig, batch: Batch) -> Keys | None:
        """Return the defence's draws where the attacker knows them."""
        if attack.randomness == "known":
            return keys(self.recipe.seed, "known", batch.ids)
        if attack.randomness == "fixed":
            return keys(self.recipe.seed, "fixed", torch.zeros_like(batch.ids))
        return None

    def _replacement(self, gradient: GradientConfig, radius: float) -> Replacement | None:
        """Return what stands for the purifier's gradient where that must be learnt; it is learnt once for each budget."""
        if self.purifier is None or not _learns(gradient):
            return None
        if (gradient, radius) not in self._imitations:
            ball = Ball(norm=self.recipe.norm, eps=radius)
            learnt = make_replacement(self.purifier, gradient, images=self.parts.reference_images(), ball=ball)
            self._imitations[gradient, radius] = learnt
        return self._imitations[gradient, radius]

    def target(self, attack: AttackConfig, batch: Batch, radius: float) -> Target:
        """Return what an attack sees of the defence, with the attacker's own draws."""
        drawn = keys(self.recipe.seed, f"attack {attack.name} {radius_text(radius)}", batch.ids)
        if self.purifier is None or attack.against == "classifier":
            alone = self.purifier is None
            return Target(
                scores=lambda x, keys, progress: self.classifier(x),
                keys=drawn,
                drop=alone,
                parts=self.parts,
                interrupt=self._interrupt,
            )
        gradient, replacement = attack.gradient, self._replacement(attack.gradient, radius)
        return Target(
            scores=Defended(self.purifier, self.classifier, gradient=gradient, replacement=replacement),
            keys=drawn,
            parts=self.parts,
            # What falls before the attacker's purifier need not fall before the real one.
            drop=not _asks_another(gradient),
            # All draws of what draws nothing are the same; a replacement may draw on its own.
            draws=attack.eot if self.randomised or gradient.mode == "replacement" else 1,
            average=attack.average,
            randomised=self.randomised,
            known=self.known_keys(attack, batch),
            chunk=1 if batch.images.device.type == "cpu" else None,
            chunks=self._chunks.setdefault(gradient, {}),
            interrupt=self._interrupt,
        )

    def attacked(
        self, attack: AttackConfig, batch: Batch, radius: float
    ) -> tuple[Images, dict[str, list[float]], Cost]:
        """Return adversarial images, what is to be known of how they came about, and what they cost.

        The second holds, per sample: "loss", the cross-entropy, and "margin", the largest wrong logit less the right one, before
        and after; "zero_gradient", the share of the gradient's elements at the clean image that are exactly zero; "distance" moved, in the norm;
        "failed", 1 if the attack left something that is no image in the ball, for which the clean image stands.
        """
        ball = Ball(norm=self.recipe.norm, eps=radius)
        target = self.target(attack, batch, radius)
        x, y = batch.images, batch.labels
        about: dict[str, list[float]] = {}
        began = seconds(x.device)
        found = self.attacks[attack.name](target, x, y, ball).detach()
        cost = Cost(target.cost.forward, target.cost.backward, seconds(x.device) - began)
        inside = found.isfinite().flatten(1).all(1)
        inside &= ball.distance(found.nan_to_num(), x) <= radius * (1 + 1e-4) + 1e-6
        inside &= ((found >= 0) & (found <= 1)).flatten(1).all(1)
        about["failed"] = (~inside).float().tolist()
        found = torch.where(inside.view(-1, 1, 1, 1), found, x)
        about["distance"] = ball.distance(found, x).tolist()
        probe = Target(**(vars(target) | {"cost": Cost(), "keys": target.keys.fold("about")}))
        if not self.attacks[attack.name].black_box:
            before = probe.gradient(x, y, cross_entropy, 0)
            about["zero_gradient"] = (before.ascent == 0).float().mean((1, 2, 3)).tolist()
        else:
            before = probe.value(x, y, cross_entropy, 0)
        after = probe.value(found, y, cross_entropy, 0, progress=1.0)
        about["loss_before"], about["loss_after"] = before.value.tolist(), after.value.tolist()
        about["margin_before"], about["margin_after"] = (margin(seen.logits, y).tolist() for seen in (before, after))
        return found, about, cost

    def _answer(self, defence: Defence) -> Callable[[Images, Keys], Logits]:
        if defence == "bare":
            return lambda x, drawn: self.classify(x)
        return lambda x, drawn: self.classify(self.purify(x, drawn))

    def judge(self, batch: Batch, x: Images, cell: Cell, known: Keys | None) -> Judged:
        """Judge images on the fresh draws of a cell, or on the known ones."""
        # A purpose of its own, so that no attack has seen the verdict's draws.
        verdict = keys(self.recipe.seed, "verdict", batch.ids).fold(cell.attack, radius_text(cell.radius))
        random = cell.defence == "purified" and self.randomised and known is None
        return judge(
            self._answer(cell.defence),
            x,
            batch.labels,
            verdict if known is None else known,
            draws=self.recipe.draws if random else 1,
            known=known is not None,
        )

    def evaluate(
        self, batch: Batch, *, first: int = 0, done: dict[tuple[str, str, str], dict[int, dict[str, Any]]] | None = None
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any] | None]]:
        """Yield, cell after cell, one record per sample; and what the attack cost, if there was one.

        Args:
            batch: samples in the order of the data set.
            first: place of the batch's first sample in it.
            done: records of cells that are complete for this batch, by cell and id; they are not computed again.
        """
        done = {} if done is None else done
        recipe, purified = self.recipe, self.purifier is not None
        for cell in cells(recipe, purified=purified)[: 2 if purified else 1]:
            if cell.key not in done:
                yield self._records(batch, cell, self.judge(batch, batch.images, cell, None)), None
        for radius in recipe.radii:
            fallen: dict[int, str] = {}
            for attack in recipe.attacks:
                if radius not in radii_of(attack, recipe):
                    continue
                own = [Cell(attack.name, radius, defence) for defence in defences_of(attack, purified=purified)]
                if not all(cell.key in done for cell in own):
                    # What falls to fresh draws says nothing of the columns in which the attacker knows the draws.
                    spared = fallen if attack.randomness == "fresh" else {}
                    for records, cost in self._face(attack, batch, radius, own, first, spared):
                        done[cell_of(records[0])] = {record["id"]: record for record in records}
                        yield records, cost
                # What falls to an attacker who knows less is left to those who know more: if they miss it, they do not work.
                if recipe.cascade and attack.randomness == "fresh" and self.white_box(attack):
                    for number, record in done[own[-1].key].items():
                        if not record.get("skipped") and broken(record):
                            fallen.setdefault(number, attack.name)

    def _face(
        self, attack: AttackConfig, batch: Batch, radius: Radius, own: list[Cell], first: int, fallen: dict[int, str]
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any] | None]]:
        """Run one attack at one budget on those of a batch that must face it."""
        place = torch.arange(len(batch.ids)) + first
        chosen = torch.tensor([int(number) not in fallen for number in batch.ids])
        if attack.images is not None:
            chosen &= place < attack.images
        chosen = chosen.to(batch.ids.device)
        part = Batch(batch.images[chosen], batch.labels[chosen], batch.ids[chosen])
        spent: dict[str, Any] | None = None
        about: dict[str, list[float]] = {}
        found = part.images
        if len(part.ids):
            found, about, cost = self.attacked(attack, part, radius)
            if self._kept is not None:
                self._kept.keep(attack.name, radius, part, found)
            spent = {"attack": attack.name, "radius": radius_text(radius), "images": len(part.ids)}
            spent |= {"forward": cost.forward, "backward": cost.backward, "seconds": round(cost.seconds, 3)}
        for cell in own:
            known = self.known_keys(attack, part) if cell.defence == "purified" else None
            records = self._records(part, cell, self.judge(part, found, cell, known), about) if len(part.ids) else []
            by_id = {record["id"]: record for record in records}
            blank = {"attack": cell.attack, "radius": radius_text(cell.radius), "defence": cell.defence}
            everyone = []
            for number, label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
                why = fallen.get(number, "not among the images of this attack")
                everyone.append(by_id.get(number, {"id": number, "label": label} | blank | {"skipped": why}))
            yield everyone, spent
            spent = None

    def _records(
        self, batch: Batch, cell: Cell, judged: Judged, about: dict[str, list[float]] | None = None
    ) -> list[dict[str, Any]]:
        attack, radius, defence = cell.key
        rows = []
        for i, number in enumerate(batch.ids.tolist()):
            row = {"id": number, "label": int(batch.labels[i]), "attack": attack, "radius": radius, "defence": defence}
            row |= {"predicted": int(judged.predicted[i]), "right": int(judged.right[i]), "draws": judged.draws}
            if judged.again is not None:
                row["again"] = int(judged.again[i])
            for name, values in (about or {}).items():
                row[name] = float(f"{values[i]:.6g}")
            rows.append(row)
        return rows

    def run(
        self,
        source: Source,
        folder: RunFolder,
        *,
        device: torch.device,
        world: World | None = None,
        max_seconds: float = math.inf,
        keep_images: bool = False,
        report: Callable[[int, str], None] = lambda done, note: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Evaluate what `records.jsonl` does not hold yet; return whether all is done.

        A unit of work is a cell of a batch; it is computed whole or not at all, and always with the same batch, so that
        a run that was killed, or shared among processes, ends with the same records as one that was not. A run that is to
        stop does so before the next query of an attack; the cell it was at is computed anew when it goes on.

        Args:
            source: the images.
            folder: where records go.
            device: where to compute.
            world: this process among others; batches are dealt out in turn.
            max_seconds: wall-clock limit.
            keep_images: whether adversarial images are kept too, see `robustmim.evaluate.kept`; a run that began so goes on
                so.
            report: told how many verdicts of this process are done, and how the last cell stands.
            stop: asked before each query of an attack and after each cell.

        Raises:
            InputError: some of what was written is gone from the folder when all is done.
        """
        interrupt = until(max_seconds, stop)
        world = World(0, 1, device) if world is None else world
        known, journal = read_records(folder.path), Journal(folder.path, world)
        if world.leads:
            for what, measured in folder.timing.items():
                self.seconds[what] += measured["seconds"]
                self.images[what] += int(measured["images"])
        mine = set(dealt(source, self.recipe.batch_size, world))
        finished = sum(number in mine for records in known.values() for number in records)
        complete = False
        keep_images |= (folder.path / FOLDER).exists()
        self._kept = KeptImages(folder.path, self.recipe.norm) if keep_images else None
        with suppress(Interrupted), self.interrupted_by(interrupt):
            for place, batch in enumerate(in_order(source, self.recipe.batch_size, device)):
                if place % world.size != world.rank:
                    continue
                ids = batch.ids.tolist()
                done = {
                    key: {number: records[number] for number in ids}
                    for key, records in known.items()
                    if all(number in records for number in ids)
                }
                for records, cost in self._in_memory(batch, place * self.recipe.batch_size, done):
                    journal.append(row for row in records if row["id"] not in known.get(cell_of(row), {}))
                    if cost is not None and world.leads:
                        append_line(folder.path / "costs.jsonl", cost)
                    finished += len(records)
                    report(finished, progress_note(records))
                    spent = {what: {"seconds": self.seconds[what], "images": n} for what, n in self.images.items()}
                    folder.update("running", timing=spent)
                    interrupt()
            complete = True
        complete = not world.any(not complete)
        if complete and world.leads:
            if self._kept is not None:
                self._kept.merge()
            known = read_records(folder.path)
            table = cells(self.recipe, purified=self.purifier is not None)
            wanted = [(cell.key, number) for cell in table for number in source.ids.tolist()]
            gone = sum(number not in known.get(key, {}) for key, number in wanted)
            if gone:
                raise InputError(
                    f"{gone} of {len(wanted)} verdicts are gone from {folder.path}: another program changed its records while "
                    "they were written. The same command computes those again and keeps the rest"
                )
            journal.merge(known[key][number] for key, number in wanted)
        return complete

    def _in_memory(
        self, batch: Batch, first: int, done: dict[tuple[str, str, str], dict[int, dict[str, Any]]]
    ) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any] | None]]:
        """Evaluate a batch, in halves if the memory does not hold it."""
        try:
            yield from self.evaluate(batch, first=first, done=done)
            return
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch.ids) == 1:
                raise
        if batch.images.is_cuda:
            torch.cuda.empty_cache()
        half = len(batch.ids) // 2
        for part, start in ((slice(0, half), first), (slice(half, None), first + half)):
            some = Batch(batch.images[part], batch.labels[part], batch.ids[part])
            wanted = set(some.ids.tolist())
            known = {key: {i: row for i, row in rows.items() if i in wanted} for key, rows in done.items()}
            yield from self._in_memory(some, start, known)


def read_records(folder: Path) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """Read the records of a run, whole or not, of one process or several: by cell, then by id.

    Raises:
        InputError: they are of something else than an evaluation.
    """
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    try:
        for record in read_journal(folder):
            found.setdefault(cell_of(record), {})[record["id"]] = record
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder} holds records, but not those of an evaluation") from error
    return found


def progress_note(records: list[dict[str, Any]]) -> str:
    """Say in a few words how a cell stands in its last batch."""
    judged = [record for record in records if not record.get("skipped")]
    attack, radius, defence = cell_of(records[0])
    if not judged:
        return f"{attack} {radius} {defence}: none left to face it"
    right = sum(record["right"] / record["draws"] for record in judged) / len(judged)
    return f"{attack} {radius} {defence}: {right:.1%} of {len(judged)}"
