"""What a run's records say: accuracies with intervals under three rules, the worst case, costs, pictures for the report."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from robustmim.attacks.search import NearestAttack
from robustmim.config import AttackConfig, EvaluateRecipe, GradientConfig, PurifyRecipe
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.active_checks import active_checks
from robustmim.evaluate.honesty import findings
from robustmim.evaluate.memory import halving
from robustmim.evaluate.robustbench import robustbench_entry
from robustmim.evaluate.run import Evaluator, read_records
from robustmim.evaluate.statistics import wilson_interval
from robustmim.evaluate.table import NO_ATTACK, Cell, Defence, cells, on_fresh_draws, radii_of
from robustmim.evaluate.verdict import broken, share, withstands_every_draw, worst_of_each
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.load import describe
from robustmim.purify.trace import Trace
from robustmim.radius import Radius, radius_text
from robustmim.registry import builder
from robustmim.rng import keys
from robustmim.runs import RunFolder, atomic, environment, read_lines, write_json

EXAMPLES = 8
TRACED = 16

Records = dict[tuple[str, str, str], dict[int, dict[str, Any]]]
"""Records by cell, then by id."""


def proportion(values: list[float]) -> dict[str, Any]:
    """Average per-sample values in [0, 1]: n, correct (their sum), accuracy and a 95 % Wilson interval."""
    correct, n = sum(values), len(values)
    low, high = wilson_interval(correct, n)
    accuracy = correct / n if n else 0.0
    whole = round(correct) if abs(correct - round(correct)) < 1e-9 else round(correct, 2)
    return {"n": n, "correct": whole, "accuracy": round(accuracy, 4), "low": round(low, 4), "high": round(high, 4)}


def tally(records: Records, cell: Cell) -> dict[str, Any]:
    """Count one cell over the samples that faced it; "rules" holds its accuracy under each rule where there are draws."""
    faced = [row for row in records.get(cell.key, {}).values() if not row.get("skipped")]
    found = proportion([share(row) for row in faced])
    if any(row["draws"] > 1 for row in faced):
        found["rules"] = {
            "mean": found["accuracy"],
            "majority": proportion([float(not broken(row)) for row in faced])["accuracy"],
            "worst": proportion([float(withstands_every_draw(row)) for row in faced])["accuracy"],
            "draws": faced[0]["draws"] * (2 if "again" in faced[0] else 1),
        }
    failed = sum(bool(row.get("failed")) for row in faced)
    if failed:
        found["failed"] = failed
    return found


def nearest_distances(records: Records, evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Return, for each attack that looks for the nearest adversarial image, the accuracy at every budget.

    It is told by "distances", sorted, of the n images that faced the attack at its largest budget and were broken: at a
    budget below that one, accuracy is the share of the n whose distance is larger, or that were not broken. An attack that
    other attacks have spared images is left out: what they could not break is no sample of the data.
    """
    found: dict[str, dict[str, Any]] = {}
    for attack in evaluator.recipe.attacks:
        bare = evaluator.purifier is None or attack.against == "classifier"
        defence: Defence = "bare" if bare else "purified"
        built, radii = evaluator.attacks[attack.name], radii_of(attack, evaluator.recipe)
        if not isinstance(built, NearestAttack) or not built.seeks_the_nearest or not radii:
            continue
        rows = records.get(Cell(attack.name, radii[-1], defence).key, {}).values()
        if any(row.get("skipped") in evaluator.attacks for row in rows):
            continue
        faced = [row for row in rows if not row.get("skipped") and "distance" in row]
        if faced:
            # An attack that leaves what it cannot break as it was tells no distance of it.
            distances = sorted(row["distance"] for row in faced if broken(row))
            found[attack.name] = {"radius": radius_text(radii[-1]), "n": len(faced), "distances": distances}
    return found


def faced_by_sample(records: Records, chosen: list[Cell]) -> dict[int, list[dict[str, Any]]]:
    """Group the records of some cells by sample, in the order of the cells."""
    found: dict[int, list[dict[str, Any]]] = {}
    for cell in chosen:
        for number, row in records.get(cell.key, {}).items():
            found.setdefault(number, []).append(row)
    return found


def faced_by_all(
    records: Records, recipe: EvaluateRecipe, radius: float, *, purified: bool
) -> dict[int, list[dict[str, Any]]]:
    """Return, by sample, what all attacks on fresh draws found at one budget, of what is defended.

    Only samples that every attack was meant for are there: an attack limited to the first images limits the rest.
    """
    defence: Defence = "purified" if purified else "bare"
    attacks = on_fresh_draws(recipe, radius)
    limits = [attack.images for attack in attacks if attack.images is not None]
    samples = faced_by_sample(records, [Cell(attack.name, radius, defence) for attack in attacks])
    return {
        number: rows
        for number, rows in list(samples.items())[: min(limits) if limits else None]
        if any(not row.get("skipped") for row in rows)
    }


def worst_case(records: Records, recipe: EvaluateRecipe, radius: float, *, purified: bool) -> dict[str, Any]:
    """Combine all attacks on fresh draws at one budget: what withstands the worst of them, sample by sample."""
    judged = faced_by_all(records, recipe, radius, purified=purified)
    worst = worst_of_each(judged)
    found = {"radius": radius_text(radius)} | proportion([one.share for one in worst.values()])
    found["rules"] = {
        "mean": found["accuracy"],
        "majority": proportion([float(one.standing) for one in worst.values()])["accuracy"],
        "worst": proportion([float(one.every_draw) for one in worst.values()])["accuracy"],
    }
    alone = {attack.name: 0 for attack in on_fresh_draws(recipe, radius)}
    for rows in judged.values():
        breakers = [row["attack"] for row in rows if not row.get("skipped") and broken(row)]
        if len(breakers) == 1:
            alone[breakers[0]] += 1
    found["only_broken_by"] = alone
    return found


def describe_gradient(config: GradientConfig) -> str:
    """Say in a few words what passes for the purifier's gradient."""
    if config.mode == "identity":
        return "identity (BPDA)"
    if config.mode == "replacement":
        text = config.replacement + (f" of {config.blur:g} pixels" if config.replacement == "blur" else "")
        return f"of a replacement (BPDA): {text}" + (", forward pass too" if config.forward == "smooth" else "")
    text = config.mode
    if config.mode in ("tanh", "rational"):
        text += f" τ {config.temperature:g}"
        if config.final_temperature is not None:
            text += f" → {config.final_temperature:g}"
    text += f", {config.clip} clips"
    if config.mode != "exact":
        text += f", {config.product}"
    if config.last is not None:
        text += f", last {config.last} steps"
    if config.forward == "smooth":
        text += ", smooth forward pass"
    if config.ball_scale != 1:
        text += f", η × {config.ball_scale:g}"
    if config.steps is not None:
        text += f", S {config.steps}"
    return text


def describe_attack(config: AttackConfig, *, purified: bool, randomised: bool, black_box: bool) -> str:
    """Say in a line how an attack works."""
    given = config.options
    if "surrogate" in inspect.signature(builder("attack", config.attack)).parameters:
        given = {"surrogate": "the purifier's guide"} | given
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    text = config.attack + (f" ({options})" if options else "")
    if not purified:
        return text
    if config.against == "classifier":
        return f"{text}, on the bare classifier; the attacker does not know of the purifier"
    text += ", through the purifier, "
    text += "by its answers at most" if black_box else f"gradient {describe_gradient(config.gradient)}"
    if randomised:
        drawn = {
            "fresh": f"EOT {config.eot}"
            + (" on logits" if config.average == "logits" else "")
            + ", verdict on fresh draws",
            "known": "the attacker knows the draws of the verdict",
            "fixed": "one draw for all, which the attacker knows",
        }
        text += f", {drawn[config.randomness]}"
    return text


def _costs(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    total: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_lines(folder / "costs.jsonl"):
        own = total.setdefault((row["attack"], row["radius"]), {})
        for name in ("images", "forward", "backward", "seconds"):
            own[name] = own.get(name, 0) + row[name]
    return total


def claim(
    records: Records,
    evaluator: Evaluator,
    *,
    classifier: str,
    purifier: str | None,
    classes: tuple[str, ...],
    folder: Path,
    checks: list[dict[str, Any]],
    architecture: str | None = None,
) -> dict[str, Any]:
    """Sum up the records: every accuracy with its interval, what must be said with it, and RobustBench's fields."""
    recipe, purified = evaluator.recipe, evaluator.purifier is not None
    ids = sorted(records.get((NO_ATTACK, "0", "bare"), {}))
    costs = _costs(folder)
    table = []
    for cell in cells(recipe, purified=purified):
        row: dict[str, Any] = {"attack": cell.attack, "radius": radius_text(cell.radius), "defence": cell.defence}
        row |= tally(records, cell)
        spent = costs.get((cell.attack, radius_text(cell.radius)))
        if spent and spent["images"]:
            row["cost"] = {
                "forward": round(spent["forward"] / spent["images"], 1),
                "backward": round(spent["backward"] / spent["images"], 1),
                "seconds": round(spent["seconds"] / spent["images"], 3),
            }
        if row["n"]:
            table.append(row)
    worst = (
        [worst_case(records, recipe, radius, purified=purified) for radius in recipe.radii] if recipe.attacks else []
    )
    worst = [row for row in worst if row["n"]]
    times = {what: evaluator.seconds[what] / n * 1000 for what, n in evaluator.images.items() if n}
    middle = recipe.radii[len(recipe.radii) // 2] if recipe.radii else Radius(0.0)
    content = {
        "classifier": classifier,
        "purifier": purifier,
        "data": f"{recipe.data.name} {recipe.data.split}"
        + (f", {recipe.data.part}" if recipe.data.part != "all" else "")
        + (f", after the first {recipe.data.skip}" if recipe.data.skip else ""),
        "norm": recipe.norm,
        "seed": recipe.seed,
        "images": len(ids),
        # Which ones: two claims with the same digest are of the same samples.
        "samples_sha256": hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest(),
        "draws": recipe.draws if evaluator.randomised else 1,
        "cells": table,
        "worst_case": worst[-1] if worst else None,
        "worst_cases": worst,
        "protocol": {
            attack.name: describe_attack(
                attack,
                purified=purified,
                randomised=evaluator.randomised,
                black_box=evaluator.attacks[attack.name].black_box,
            )
            for attack in recipe.attacks
        },
        "attacks": {
            attack.name: {
                "against": attack.against,
                "randomness": attack.randomness,
                "gradient": describe_gradient(attack.gradient),
            }
            for attack in recipe.attacks
        },
        "nearest": nearest_distances(records, evaluator),
        "left_out": evaluator.left_out,
        "milliseconds_per_image": {what: round(value, 3) for what, value in times.items()},
        "per_class": _per_class(records, recipe, middle, classes, purified=purified) if len(classes) <= 20 else None,
        "environment": environment(),
    }
    content["findings"] = findings(content, records, evaluator, checks)
    content["robustbench"] = robustbench_entry(
        content,
        recipe,
        architecture=architecture or type(evaluator.classifier).__name__,
        traits=evaluator.purifier.traits if evaluator.purifier is not None else None,
    )
    return content


def gray_box_of(recipe: EvaluateRecipe) -> AttackConfig | None:
    """Return the first attack made on the bare classifier: the one that pictures and classes are shown for."""
    return next((attack for attack in recipe.attacks if attack.against == "classifier"), None)


def _per_class(
    records: Records, recipe: EvaluateRecipe, radius: Radius, classes: tuple[str, ...], *, purified: bool
) -> list[dict[str, Any]] | None:
    shown = gray_box_of(recipe) or next(iter(recipe.attacks), None)
    if shown is None or radius not in radii_of(shown, recipe):
        return None
    named = {
        "clean": Cell(NO_ATTACK, 0.0, "bare"),
        "attacked_bare": Cell(shown.name, radius, "bare"),
        "attacked_purified": Cell(shown.name, radius, "purified"),
    }
    rows = []
    for number, name in enumerate(classes):
        row: dict[str, Any] = {"class": name}
        for what, cell in named.items():
            own = [r for r in records.get(cell.key, {}).values() if r["label"] == number and not r.get("skipped")]
            row[what] = proportion([share(record) for record in own])["accuracy"]
        if any(record["label"] == number for record in records[named["clean"].key].values()):
            rows.append(row)
    return rows


def save_examples(
    evaluator: Evaluator, source: Source, folder: Path, *, device: torch.device, images: int = TRACED
) -> dict[str, Any]:
    """Write pictures of the first samples (examples.safetensors) and return the traces of some more, for the report.

    The first attack on the bare classifier (else the first of all) at the middle budget; without a purifier the pictures
    show the attack alone.
    """
    recipe = evaluator.recipe
    shown = gray_box_of(recipe) or recipe.attacks[0]
    radii = radii_of(shown, recipe)
    radius = radii[len(radii) // 2]
    few = images if shown.against == "classifier" else min(images, EXAMPLES)
    full = next(iter(in_order(source, few, device)))
    batch = Batch(full.images, full.labels, full.ids)
    drawn = keys(recipe.seed, "verdict", batch.ids)
    attacked, _, _ = evaluator.attacked(shown, batch, radius)
    pictures = {"clean": batch.images, "attacked": attacked}
    traces: dict[str, Any] = {}
    purifier = evaluator.purifier
    if purifier is not None:
        model = purifier.model if isinstance(purifier, AMRMPure) else None
        for name, x, result in (("clean", batch.images, "purified_clean"), ("attacked", attacked, "purified")):
            trace = Trace(model, reference=batch.images, keys=drawn)
            own = drawn.fold(
                NO_ATTACK if name == "clean" else shown.name, "0" if name == "clean" else radius_text(radius)
            )
            pictures[result] = purifier(x, keys=own.fold(0, 0), callback=trace)
            traces[name] = {"amv": None} | trace.mean()
    tensors = {name: x[:EXAMPLES].cpu().contiguous() for name, x in pictures.items()}
    tensors |= {
        f"predicted_{name}": evaluator.classify(x).argmax(1)[:EXAMPLES].cpu().contiguous()
        for name, x in pictures.items()
    }
    tensors["label"] = batch.labels[:EXAMPLES].cpu().contiguous()
    with atomic(folder / "examples.safetensors") as part:
        save_file(tensors, part, metadata={"classes": json.dumps(source.classes), "radius": radius_text(radius)})
    return traces


def _name(evaluator: Evaluator, purify: PurifyRecipe | None) -> str | None:
    if purify is not None:
        return describe(purify)
    # One's own, without a recipe.
    return None if evaluator.purifier is None else type(evaluator.purifier).__name__


def conclude(
    evaluator: Evaluator,
    source: Source,
    folder: RunFolder,
    *,
    classifier: str,
    purify: PurifyRecipe | None,
    device: torch.device,
    architecture: str | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the active checks, write claim.json and examples.safetensors of a complete evaluation; return the claim.

    Args:
        evaluator, source, folder, device: as they were run.
        classifier, purify, architecture: what the claim is about.
        interrupt: asked before each query of an attack; it raises `Interrupted` where the checks must end. Those that have ended
            are not run again.
    """
    with evaluator.interrupted_by(interrupt):
        checks = active_checks(evaluator, source, folder, device=device)
    content = claim(
        read_records(folder.path),
        evaluator,
        classifier=classifier,
        purifier=_name(evaluator, purify),
        classes=source.classes,
        folder=folder.path,
        checks=checks,
        architecture=architecture,
    )
    if evaluator.recipe.attacks:
        content["trace"] = halving(
            TRACED, lambda images: save_examples(evaluator, source, folder.path, device=device, images=images)
        )
    write_json(folder.path / "claim.json", content)
    folder.update("finished")
    return content
