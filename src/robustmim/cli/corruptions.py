"""`robustmim corruptions [RECIPE] --classifier … --purifier …`: how accurate is a classifier on foggy, noisy, blurred images?"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustmim.cli.arguments import DefenceOptions
from robustmim.config import CorruptionsRecipe
from robustmim.errors import InputError, RecipeError
from robustmim.recipe import parse

if TYPE_CHECKING:
    import torch
    from torch import nn

    from robustmim.data.sources import Source
    from robustmim.purify.traits import Purifier

CLEAN = ("none", 0)
"""The cell of clean images, measured first: the relative corruption error needs it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorruptionOptions(DefenceOptions):
    """What is evaluated."""

    baseline: str | None = None
    """Divide by its errors, for the mCE: folder of a finished run of this command on the same images, or "alexnet" for
    ImageNet. Default: with a purifier the bare classifier, else nothing."""


def chosen(recipe: CorruptionsRecipe) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names and the severities that a recipe asks for, each once and in the order of the paper.

    Raises:
        RecipeError: one that does not exist, or none at all.
    """
    from robustmim.data.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, check_corruption

    words = recipe.names.split(",") if isinstance(recipe.names, str) else list(recipe.names)
    groups = {"all": BENCHMARK, "extra": EXTRA}
    names = [name for word in map(str.strip, words) if word for name in groups.get(word, (word,))]
    given = recipe.severities
    parts = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        severities = sorted({int(part) for part in parts})
    except ValueError as error:
        raise RecipeError(f"severities: {given!r} are not numbers from 1 to 5 joined by commas") from error
    if not names or not severities:
        raise RecipeError("name one corruption and one severity at least: --names all --severities 1,3,5")
    for name in names:
        for severity in severities:
            check_corruption(name, severity)
    return tuple(name for name in CORRUPTIONS if name in names), tuple(severities)


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse(
        "corruptions", CorruptionsRecipe, CorruptionOptions, arguments, default="corruptions-cifar10"
    )
    if recipe.data.corruption is not None:
        raise RecipeError("data.corruption: this command corrupts clean images itself; leave it out and use --names")
    names, severities = chosen(recipe)
    if options.baseline not in (None, "alexnet") and not (Path(options.baseline or "") / "claim.json").exists():
        raise RecipeError(f"--baseline {options.baseline} is no folder of a finished run of `robustmim corruptions`")
    # The choice is kept as it is meant, so that "1,3" and [1, 3] are the same run.
    recipe = dataclasses.replace(recipe, names=names, severities=severities)
    recipe = options.limited(recipe)
    purify = options.purification()

    import torch

    from robustmim.cli.console import Progress, duration, output, say
    from robustmim.cli.training import open_source
    from robustmim.evaluate.journal import Journal, read_journal
    from robustmim.models.adapters import check_classifier
    from robustmim.models.masked import freeze
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import describe, make_purifier
    from robustmim.report.page import write_report
    from robustmim.runs import RunFolder, write_json
    from robustmim.train.distributed import choose_device, world

    device = choose_device(options.device)
    classifier = freeze(open_classifier(options.classifier, options.arch, device=device))
    source = open_source(recipe.data, device)
    first = source.fetch(torch.arange(min(2, len(source)))).to(device).float() / 255
    check_classifier(classifier, first, len(source.classes))
    purifier = make_purifier(purify, device=device, classifier=classifier) if purify else None
    cells = [CLEAN, *((name, severity) for name in names for severity in severities)]
    measure = partial(count_right, classifier, purifier, source, device=device, seed=recipe.seed)
    if options.dry_run:
        few = min(8, len(source))
        began = time.perf_counter()
        measure(cells[-1], batch_size=few, limit=few)
        seconds = (time.perf_counter() - began) / few * len(source) * len(cells)
        say(f"{len(cells)} cells × {len(source)} images; about {duration(seconds)} on {device}; nothing was written")
        if options.json:
            output({"cells": len(cells), "images": len(source), "seconds": round(seconds), "device": str(device)})
        return 0

    defence = f"{Path(options.classifier).stem}-{options.purifier if purify else 'bare'}"
    path = Path(options.out or f"runs/corruptions-{name}-{defence}")
    asked = {key: getattr(options, key) for key in ("classifier", "arch", "purifier")}
    kept = {"corruptions": recipe, "purify": purify, **asked}
    with world(options.device) as here:
        folder = RunFolder(
            path, recipe=kept, kind="corruptions", harmless=("corruptions.batch_size",), leads=here.leads
        )
        here.wait()  # nobody writes into a folder that is refused
        records = {cell_of(record): record for record in read_journal(path)}
        journal = Journal(path, here)
        if here.leads:
            named = describe(purify) if purify else "bare"
            say(f"{path}: {len(cells)} cells × {len(source)} images of {source.name}; {named}")
        mine = cells[here.rank :: here.size]
        progress = Progress(len(mine), unit="cells")
        stop = {"asked": False}
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.update(asked=True))
        began = time.monotonic()
        try:
            for cell in mine:
                if cell in records:
                    continue
                # A cell that has begun is finished, however little time is left: it could not be resumed half-way.
                if stop["asked"] or time.monotonic() - began > options.max_time:
                    break
                right = measure(cell, batch_size=recipe.batch_size, stop=lambda: stop["asked"])
                if right is None:
                    break
                records[cell] = {
                    "corruption": cell[0],
                    "severity": cell[1],
                    "images": len(source),
                    "correct": right,
                }
                journal.append([records[cell]])
                if here.leads:
                    shares = "  ".join(f"{what} {count / len(source):.1%}" for what, count in right.items())
                    done = sum(cell in records for cell in mine)
                    progress.update(done, f"{cell[0]} {cell[1]}  {shares}")
        except BaseException as error:
            folder.update("failed", error=str(error) or type(error).__name__)
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        complete = not here.any(not all(cell in records for cell in mine))
        if not here.leads:
            return 0 if complete else 130
        records |= {cell_of(record): record for record in read_journal(path)}
        if not complete:
            folder.update("stopped")
            say(f"stopped after {len(records)} of {len(cells)} cells; to go on: robustmim {' '.join(sys.argv[1:])}")
            return 130
        rows = [records[cell] for cell in cells]
        journal.merge(rows)
    title = Path(options.classifier).name + (f" ({options.arch})" if options.arch else "")
    content = conclude(rows, recipe, classifier=title, purifier=describe(purify) if purify else None)
    divide(content, options.baseline)
    write_json(path / "claim.json", content)
    folder.update("finished")
    if options.json:
        output(content)
    show(content)
    say(f"claim: {path}/claim.json; report: {write_report(path)}")
    return 0


def cell_of(record: dict[str, Any]) -> tuple[str, int]:
    """Return the cell that a record is of: a corruption and its severity."""
    return record["corruption"], record["severity"]


def count_right(
    classifier: nn.Module,
    purifier: Purifier | None,
    source: Source,
    cell: tuple[str, int],
    *,
    device: torch.device,
    seed: int,
    batch_size: int,
    limit: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, int] | None:
    """Count the images of a cell that are classified rightly, bare and purified; None when asked to stop before the end."""
    import torch

    from robustmim.data.corruptions import Corrupted
    from robustmim.evaluate.accuracy import in_order
    from robustmim.rng import keys

    seen: Source = source if cell == CLEAN else Corrupted(source, *cell, seed)
    right = {"bare": 0} | ({"purified": 0} if purifier else {})
    done = 0
    for batch in in_order(seen, batch_size, device):
        if stop():
            return None
        images = {"bare": batch.images}
        if purifier:
            images["purified"] = purifier(batch.images, keys=keys(seed, "verdict", batch.ids).fold(*cell))
        with torch.no_grad():
            for what, x in images.items():
                right[what] += int((classifier(x).argmax(1) == batch.labels).sum())
        done += len(batch.ids)
        if limit is not None and done >= limit:
            break
    return right


def conclude(
    records: list[dict[str, Any]], recipe: CorruptionsRecipe, *, classifier: str, purifier: str | None
) -> dict[str, Any]:
    """Sum up the records: every accuracy with its interval, and the mean errors, divided by nothing."""
    from robustmim.evaluate.corruption_error import mean_corruption_error, relative_mean_corruption_error
    from robustmim.evaluate.statistics import wilson_interval
    from robustmim.runs import environment

    found = {cell_of(record): record for record in records}
    names, severities = chosen(recipe)
    table, summary = [], {}
    for defence in found[CLEAN]["correct"]:
        for corruption, severity in [CLEAN, *((name, severity) for name in names for severity in severities)]:
            n, correct = (record := found[corruption, severity])["images"], record["correct"][defence]
            low, high = wilson_interval(correct, n)
            row = {"corruption": corruption, "severity": severity, "defence": defence, "n": n, "correct": correct}
            table.append(row | {"accuracy": round(correct / n, 4), "low": round(low, 4), "high": round(high, 4)})

        def error(corruption: str, severity: int, defence: str = defence) -> float:
            record = found[corruption, severity]
            return 1 - record["correct"][defence] / record["images"]

        errors = {name: [error(name, severity) for severity in severities] for name in names}
        summary[defence] = {
            "clean_error": round(error(*CLEAN), 4),
            "mean_corruption_error": round(mean_corruption_error(errors), 4),
            "relative_mean_corruption_error": round(relative_mean_corruption_error(errors, error(*CLEAN)), 4),
        }
    return {
        "classifier": classifier,
        "purifier": purifier,
        "data": f"{recipe.data.name} {recipe.data.split}"
        + (f", {recipe.data.part}" if recipe.data.part != "all" else "")
        + (f", after the first {recipe.data.skip}" if recipe.data.skip else ""),
        "seed": recipe.seed,
        "images": found[CLEAN]["images"],
        "corruptions": names,
        "severities": severities,
        "cells": table,
        "summary": summary,
        "findings": [
            {
                "level": "amber",
                "sentence": "The corruptions were made here (frost is synthesised): compare their errors with each other, not "
                "with numbers from the published files.",
            }
        ],
        "environment": environment(),
    }


def divide(content: dict[str, Any], asked: str | None) -> None:
    """Add the mCE and the relative mCE to a claim's summary, and what they are divided by.

    Args:
        content: the claim.
        asked: see `CorruptionOptions.baseline`.

    Raises:
        InputError: no baseline of the same images, corruptions and severities.
    """
    from robustmim.evaluate.corruption_error import (
        alexnet,
        baseline_of,
        mean_corruption_error,
        relative_mean_corruption_error,
    )
    from robustmim.runs import read_json

    names, severities = content["corruptions"], content["severities"]
    if asked == "alexnet":
        baseline = alexnet(names, severities)
    elif asked is not None:
        baseline = baseline_of(read_json(Path(asked) / "claim.json"), content)
    elif content["purifier"] is not None and all(row["correct"] < row["n"] for row in content["cells"]):
        baseline = baseline_of(content, content)
    else:
        return
    content["baseline"] = baseline.name
    for defence, found in content["summary"].items():
        own = baseline_of(content, content, defence)
        if (own.errors, own.clean) == (baseline.errors, baseline.clean):
            continue
        found["mCE"] = round(mean_corruption_error(own.errors, baseline.errors), 4)
        try:
            relative = relative_mean_corruption_error(own.errors, own.clean, baseline.errors, baseline.clean)
        except InputError as error:  # a baseline that a corruption costs nothing
            content["findings"].append({"level": "amber", "sentence": f"No relative mCE, {defence}: {error}."})
        else:
            found["relative_mCE"] = round(relative, 4)


def show(content: dict[str, Any]) -> None:
    """Print the table of a claim."""
    from rich.table import Table

    from robustmim.cli.console import console, say

    defences = list(content["summary"])
    table = Table(
        title=f"{content['classifier']} on {content['data']}, n = {content['images']}, seed {content['seed']}"
    )
    table.add_column("corruption", no_wrap=True)
    table.add_column("severity", justify="right")
    for defence in defences:
        table.add_column(defence, justify="right")
        table.add_column("95 %", justify="right", no_wrap=True)
    rows: dict[tuple[str, int], list[str]] = {}
    for row in content["cells"]:
        texts = [f"{row['accuracy']:.1%}", f"{row['low'] * 100:.1f}–{row['high'] * 100:.1f}"]
        rows.setdefault((row["corruption"], row["severity"]), []).extend(texts)
    for (corruption, severity), texts in rows.items():
        table.add_row(corruption, str(severity) if severity else "", *texts)
    console.print(table)
    scope = f"{len(content['corruptions'])} corruptions, severities {', '.join(map(str, content['severities']))}"
    for defence, found in content["summary"].items():
        say(
            f"{defence}: clean error {found['clean_error']:.1%}, mean corruption error {found['mean_corruption_error']:.1%} "
            f"({scope}), above the clean error {found['relative_mean_corruption_error']:.1%}"
            + (f"; mCE {found['mCE']:.1%}" if "mCE" in found else "")
            + (f", relative mCE {found['relative_mCE']:.1%}" if "relative_mCE" in found else "")
        )
    if "baseline" in content:
        say(f"mCE: errors over those of {content['baseline']}; above 100 % is worse")
    for finding in content["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")
