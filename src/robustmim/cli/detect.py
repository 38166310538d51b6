"""`robustmim detect [RECIPE] [--images GLOB]`: which images are attacked, and how well can that be told?"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustmim.cli.arguments import DefenceOptions
from robustmim.config import DetectRecipe, PurifyRecipe
from robustmim.errors import InputError, RecipeError
from robustmim.recipe import load_recipe, parse

if TYPE_CHECKING:
    from torch import nn

    from robustmim.analysis.detection import Detector, Score
    from robustmim.data.loader import Batch

CALIBRATION, CLEAN, GRAY_BOX, AWARE = "calibration", "clean", "gray-box", "aware of the detector"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectOptions(DefenceOptions):
    """What is looked at."""

    purifier: str = "recommended-cifar10"
    """Purification recipe whose masked model looks at the images, by name or file. The score disagreement takes any purifier
    that offers attackers a gradient."""
    statistic: Literal["entropy", "amv"] = "entropy"
    """Of the score attention: entropy of the maps, or their variation between the image and the purified one (AMV)."""
    images: str | None = None
    """Score these files (file, folder or glob) instead of measuring the detector; the threshold is calibrated as ever."""


def cells_of(recipe: DetectRecipe) -> list[tuple[str, str]]:
    """List what is scored, in order: clean images, then each attack at each budget."""
    from robustmim.radius import radius_text

    attacks = [(attack, radius_text(radius)) for radius in recipe.radii for attack in (GRAY_BOX, AWARE)]
    return [(CALIBRATION, "0"), (CLEAN, "0"), *attacks]


def score_of(recipe: DetectRecipe, options: DetectOptions) -> Score:
    """Return the detector's score.

    Raises:
        RecipeError: a statistic of attention for a score that looks at none.
    """
    if options.statistic == "entropy":
        return recipe.score
    if recipe.score != "attention":
        raise RecipeError(
            f"statistic {options.statistic} is one of attention, and the score is {recipe.score}: add --score attention"
        )
    return options.statistic


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("detect", DetectRecipe, DetectOptions, arguments, default="detect-cifar10")
    recipe = options.limited(recipe)
    score = score_of(recipe, options)
    purify = load_recipe(PurifyRecipe, options.purifier)

    import torch

    from robustmim.analysis.detection import Detector, threshold_at
    from robustmim.cli.console import Progress, output, say
    from robustmim.cli.training import open_source
    from robustmim.data.loader import Batch
    from robustmim.evaluate.accuracy import in_order
    from robustmim.models.adapters import check_classifier
    from robustmim.models.masked import freeze
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import describe, make_purifier
    from robustmim.rng import keys
    from robustmim.runs import RunFolder, append_line, read_lines, write_json
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    classifier = freeze(open_classifier(options.classifier, options.arch, device=device))
    source = open_source(recipe.data, device)
    if recipe.calibration >= len(source):
        raise RecipeError(
            f"calibration takes {recipe.calibration} of the {len(source)} images and leaves none to attack; lower it"
        )
    first = source.fetch(torch.arange(min(2, len(source)))).to(device).float() / 255
    check_classifier(classifier, first, len(source.classes))
    detector = Detector(make_purifier(purify, device=device, classifier=classifier), score, classifier)
    with torch.no_grad():
        # What cannot be scored is said before anything is written.
        detector(first, keys(recipe.seed, "detect", torch.arange(len(first), device=device)))

    images, labels, ids = [], [], []
    for batch in in_order(source, recipe.batch_size, device):
        images.append(batch.images)
        labels.append(batch.labels)
        ids.append(batch.ids)
    everything = Batch(torch.cat(images), torch.cat(labels), torch.cat(ids))
    place = torch.arange(len(everything.ids), device=device)
    calibration, rest = (
        Batch(everything.images[part], everything.labels[part], everything.ids[part])
        for part in (place < recipe.calibration, place >= recipe.calibration)
    )
    if options.images is not None:
        return score_files(detector, calibration, recipe, options, device=device)

    path = Path(options.out or f"runs/{name}-{Path(options.classifier).stem}-{options.purifier}")
    asked = {key: getattr(options, key) for key in ("classifier", "arch", "purifier", "statistic")}
    cells = cells_of(recipe)
    if options.dry_run:
        say(f"{len(cells)} cells, {recipe.calibration} + {len(rest.ids)} images; nothing was written")
        return 0
    folder = RunFolder(path, recipe={"detect": recipe, "purify": purify, **asked}, kind="detect", harmless=())
    records = [
        {"cell": line["cell"], "radius": line["radius"], **sample}
        for line in read_lines(path / "records.jsonl")
        for sample in line["samples"]
    ]
    done = {(record["cell"], record["radius"]) for record in records}
    say(f"{path}: {score}, {len(calibration.ids)} images calibrate, {len(rest.ids)} are attacked; {describe(purify)}")
    progress = Progress(len(cells), unit="cells", every=5.0)
    stop = {"asked": False}
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.update(asked=True))
    began = time.monotonic()
    try:
        for cell in cells:
            if cell in done:
                continue
            if stop["asked"] or time.monotonic() - began > options.max_time:
                break
            clean = [record["score"] for record in records if record["cell"] == CALIBRATION]
            threshold = threshold_at(clean, recipe.false_positive_rate) if clean else 0.0
            spread = float(torch.tensor(clean).std().clamp(min=1e-12)) if clean else 1.0
            batch = calibration if cell[0] == CALIBRATION else rest
            found: list[dict[str, Any]] = []
            for some in place[: len(batch.ids)].split(recipe.batch_size):
                part = Batch(batch.images[some], batch.labels[some], batch.ids[some])
                found += look(classifier, detector, part, cell, recipe, threshold=threshold, spread=spread)
            # A cell is written whole or not at all, in one line, so that a run that was killed goes on with the next.
            append_line(path / "records.jsonl", {"cell": cell[0], "radius": cell[1], "samples": found})
            records += [{"cell": cell[0], "radius": cell[1], **row} for row in found]
            done.add(cell)
            progress.update(len(done), f"{cell[0]} {cell[1]}")
    except BaseException as error:
        folder.update("failed", error=str(error) or type(error).__name__)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if len(done) < len(cells):
        folder.update("stopped")
        say(f"stopped after {len(done)} of {len(cells)} cells; to go on: robustmim {' '.join(sys.argv[1:])}")
        return 130
    named = Path(options.classifier).name + (f" ({options.arch})" if options.arch else "")
    content = conclude(records, recipe, score=score, classifier=named, purifier=describe(purify))
    write_json(path / "claim.json", content)
    folder.update("finished")
    if options.json:
        output(content)
    show(content)
    say(f"claim: {path}/claim.json")
    return 4 if any(finding["level"] == "red" for finding in content["findings"]) else 0


def look(
    classifier: nn.Module,
    detector: Detector,
    batch: Batch,
    cell: tuple[str, str],
    recipe: DetectRecipe,
    *,
    threshold: float,
    spread: float,
) -> list[dict[str, Any]]:
    """Attack a batch as a cell says, and score it on draws that no attack has seen."""
    import torch

    from robustmim.analysis.evasion import evade
    from robustmim.geometry import Ball
    from robustmim.radius import Radius
    from robustmim.rng import keys

    x, y = batch.images, batch.labels
    drawn = keys(recipe.seed, "detect", batch.ids).fold(*cell)
    if cell[0] in (GRAY_BOX, AWARE):
        x = evade(
            classifier,
            detector,
            x,
            y,
            Ball(norm=recipe.norm, eps=Radius(cell[1])),
            threshold=threshold if cell[0] == AWARE else float("-inf"),
            spread=spread,
            keys=drawn.fold("attack"),
            steps=recipe.steps,
            weights=recipe.weights if cell[0] == AWARE else (0.0,),
        )
    with torch.no_grad():
        scores, answers = detector(x, drawn.fold("verdict")), classifier(x).argmax(1)
    return [
        {"id": number, "score": float(f"{score:.6g}"), "right": int(answer == label)}
        for number, score, answer, label in zip(
            batch.ids.tolist(), scores.tolist(), answers.tolist(), y.tolist(), strict=True
        )
    ]


def conclude(
    records: list[dict[str, Any]], recipe: DetectRecipe, *, score: str, classifier: str, purifier: str
) -> dict[str, Any]:
    """Sum up the records: threshold, false positives, and for each attack AUROC, detection, and what slips through.

    An image that is wrong without an attack is nobody's success: "fooled" are those that were right and are wrong now, and the
    share that is wrong and unnoticed stands beside that of the clean images.
    """
    from robustmim.analysis.detection import area_under_curve, threshold_at
    from robustmim.evaluate.statistics import wilson_interval
    from robustmim.runs import environment

    def of(cell: str, radius: str) -> list[dict[str, Any]]:
        return [record for record in records if (record["cell"], record["radius"]) == (cell, radius)]

    def share(hits: list[bool]) -> dict[str, Any]:
        low, high = wilson_interval(sum(hits), len(hits))
        value = round(sum(hits) / len(hits), 4) if hits else None
        return {"n": len(hits), "count": sum(hits), "share": value, "low": round(low, 4), "high": round(high, 4)}

    threshold = threshold_at([record["score"] for record in of(CALIBRATION, "0")], recipe.false_positive_rate)

    def detected(record: dict[str, Any]) -> bool:
        return bool(record["score"] > threshold)

    def slipped(record: dict[str, Any]) -> bool:
        return not record["right"] and not detected(record)

    clean = of(CLEAN, "0")
    was_right = {record["id"] for record in clean if record["right"]}
    rows: list[dict[str, Any]] = []
    findings: list[dict[str, str]] = []
    for attack, radius in cells_of(recipe)[2:]:
        found = of(attack, radius)
        could = [record for record in found if record["id"] in was_right]
        fooled = [record for record in could if not record["right"]]
        area, low, high = area_under_curve([r["score"] for r in clean], [r["score"] for r in found])
        rows.append(
            {
                "attack": attack,
                "radius": radius,
                "auroc": {"n": len(found), "value": round(area, 4), "low": round(low, 4), "high": round(high, 4)},
                "detected": share([detected(record) for record in found]),
                "fooled": share([not record["right"] for record in could]),
                "fooled_and_detected": share([detected(record) for record in fooled]),
                "fooled_and_undetected": share([slipped(record) for record in could]),
                "wrong_and_undetected": share([slipped(record) for record in found]),
            }
        )
    worst = max((row for row in rows if row["attack"] == AWARE), key=lambda row: row["fooled_and_undetected"]["low"])
    slipping = worst["fooled_and_undetected"]
    unaware = next(row for row in rows if row["attack"] == GRAY_BOX and row["radius"] == worst["radius"])
    if slipping["n"] and slipping["share"] > 0.5:
        findings.append(
            {
                "level": "red",
                "sentence": f"An attacker who knows the detector makes {slipping['share']:.0%} of the {slipping['n']} images "
                f"that were right wrong and unnoticed at {worst['radius']}; one who does not, {unaware['fooled_and_undetected']['share']:.0%}.",
            }
        )
    return {
        "classifier": classifier,
        "purifier": purifier,
        "score": score,
        "data": f"{recipe.data.name} {recipe.data.split}"
        + (f", after the first {recipe.data.skip}" if recipe.data.skip else ""),
        "norm": recipe.norm,
        "steps": recipe.steps,
        "weights": list(recipe.weights),
        "seed": recipe.seed,
        "calibration": recipe.calibration,
        "images": len(clean),
        "false_positive_rate": recipe.false_positive_rate,
        "threshold": threshold,
        "false_positives": share([detected(record) for record in clean]),
        "clean": {
            "wrong": share([not record["right"] for record in clean]),
            "wrong_and_undetected": share([slipped(record) for record in clean]),
        },
        "attacks": rows,
        "findings": findings,
        "environment": environment(),
    }


def show(content: dict[str, Any]) -> None:
    """Print the table of a claim."""
    from rich.table import Table

    from robustmim.cli.console import console, say

    table = Table(title=f"{content['score']}, {content['classifier']} on {content['data']}, n = {content['images']}")
    widths = {
        "attack": 8,
        "budget": 6,
        "AUROC": 11,
        "detected": 8,
        "fooled": 8,
        "of these detected": 8,
        "fooled, unseen": 8,
    }
    for column, width in widths.items():
        # Intervals go on a line of their own, so that 80 columns hold the table.
        table.add_column(column, justify="left" if column == "attack" else "right", width=width)

    def text(row: dict[str, Any]) -> str:
        return f"{row['share']:.1%} ({row['low'] * 100:.0f}–{row['high'] * 100:.0f})" if row["n"] else "–"

    for row in content["attacks"]:
        area = row["auroc"]
        shares = (row[name] for name in ("detected", "fooled", "fooled_and_detected", "fooled_and_undetected"))
        texts = [f"{area['value']:.3f} ({area['low']:.2f}–{area['high']:.2f})", *map(text, shares)]
        table.add_row(row["attack"], row["radius"], *texts)
    console.print(table)
    say(
        f"threshold {content['threshold']:.4g} from {content['calibration']} clean images; of the others "
        f"{text(content['false_positives'])} are taken for attacked. Fooled: of those that were right before. Without any "
        f"attack {text(content['clean']['wrong'])} are wrong, {text(content['clean']['wrong_and_undetected'])} wrong and "
        "undetected"
    )
    for finding in content["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")


def score_files(
    detector: Detector, calibration: Batch, recipe: DetectRecipe, options: DetectOptions, *, device: Any
) -> int:
    """Score files of the user's; print one line for each. One that cannot be read stops no other: it is listed, and 1 returned."""
    import torch

    from robustmim.analysis.detection import threshold_at
    from robustmim.cli.console import output, say
    from robustmim.data.images import find_images, fit_image, read_image
    from robustmim.rng import content_ids, keys

    size = calibration.images.shape[-1]
    with torch.no_grad():
        clean = [
            float(score)
            for part in torch.arange(len(calibration.ids)).split(recipe.batch_size)
            for score in detector(calibration.images[part], keys(recipe.seed, "detect", calibration.ids[part]))
        ]
        threshold = threshold_at(clean, recipe.false_positive_rate)
        rows, bad = [], []
        for path in find_images([options.images or ""]):
            try:
                x = fit_image(read_image(path), size)[None].to(device).float() / 255
            except InputError as error:
                bad.append(str(error))
                continue
            score = float(detector(x, keys(recipe.seed, "detect", content_ids(x))))
            rows.append({"file": str(path), "score": score, "attacked": score > threshold})
            say(f"{'attacked' if score > threshold else 'ordinary'}  {score:.4g}  {path}")
    say(
        f"threshold {threshold:.4g}: {recipe.false_positive_rate:.0%} of clean images like the calibration's lie above it"
    )
    if options.json:
        output({"threshold": threshold, "images": rows})
    for message in bad:
        say(f"not scored: {message}")
    return 1 if bad else 0
