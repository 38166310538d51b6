"""`robustmim evaluate [RECIPE] --classifier … --purifier …`: how accurate is a classifier behind a purifier, attacked?"""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

from robustmim.cli.arguments import JobOptions
from robustmim.config import EvaluateRecipe, PurifyRecipe
from robustmim.errors import RecipeError
from robustmim.recipe import load_recipe, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(JobOptions):
    """What is evaluated."""

    classifier: str = "fast-cnn-cifar10"
    """Zoo name, folder of a trained classifier, or (with --arch) someone else's checkpoint."""
    arch: str | None = None
    """Architecture of someone else's checkpoint, such as resnet56; `robustmim list classifiers`."""
    purifier: str = "recommended-cifar10"
    """Purification recipe, by name or file; "none" measures the bare classifier."""
    limit: int | None = None
    """Use only the first so many images."""
    fail_under: float = 0.0
    """Exit with 3 when the worst case at the largest budget is lower than this fraction."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("evaluate", EvaluateRecipe, EvaluateOptions, arguments, default="cifar10-linf")
    if options.limit is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=options.limit))
    purify = None if options.purifier == "none" else load_recipe(PurifyRecipe, options.purifier)
    if not recipe.radii:
        raise RecipeError("an evaluation needs at least one budget in `radii`")

    import torch

    from robustmim.cli.console import Progress, duration, output, say
    from robustmim.cli.training import open_source
    from robustmim.evaluate.claims import conclude
    from robustmim.evaluate.run import Evaluator
    from robustmim.models.adapters import check_classifier
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import describe, make_purifier
    from robustmim.report.page import write_report
    from robustmim.runs import RunFolder, read_lines
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    classifier = open_classifier(options.classifier, options.arch, device=device)
    source = open_source(recipe.data, device)
    first = source.fetch(torch.arange(min(2, len(source)))).to(device).float() / 255
    check_classifier(classifier, first, len(source.classes))
    evaluator = Evaluator(classifier, make_purifier(purify, device=device) if purify else None, recipe)

    defence = f"{Path(options.classifier).stem}-{options.purifier if purify else 'bare'}"
    path = Path(options.out or f"runs/evaluate-{name}-{defence}")
    if options.dry_run:
        import time

        from robustmim.evaluate.accuracy import in_order

        batch = next(iter(in_order(source, min(recipe.batch_size, 8), device)))
        began = time.perf_counter()
        evaluator.evaluate(batch)
        seconds = (time.perf_counter() - began) / len(batch.ids) * len(source)
        say(f"{len(source)} images; about {duration(seconds)} on {device}; nothing was written")
        if options.json:
            output({"images": len(source), "seconds": round(seconds), "device": str(device)})
        return 0

    asked = {key: getattr(options, key) for key in ("classifier", "arch", "purifier")}
    folder = RunFolder(
        path, recipe={"evaluate": recipe, "purify": purify, **asked}, kind="evaluate", harmless=("evaluate.batch_size",)
    )
    stop = {"asked": False}
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.update(asked=True))
    progress = Progress(len(source), unit="images")
    say(f"{path}: {len(source)} images of {source.name}; {describe(purify) if purify else 'no purifier'}")
    try:
        complete = evaluator.run(
            source,
            folder,
            device=device,
            max_seconds=float(options.max_time),
            report=progress.update,
            stop=lambda: stop["asked"],
        )
    except BaseException as error:
        folder.update("failed", error=str(error) or type(error).__name__)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    records = read_lines(path / "records.jsonl")
    if not complete:
        folder.update("stopped")
        say(f"stopped after {len(records)} images; to go on: robustmim {' '.join(sys.argv[1:])}")
        return 130
    named = Path(options.classifier).name + (f" ({options.arch})" if options.arch else "")
    content = conclude(evaluator, source, folder, classifier=named, purify=purify, device=device)
    page = write_report(path)
    if options.json:
        output(content)
    show(content)
    say(f"report: {page}")
    worst = content["worst_case"]
    return 3 if worst and worst["accuracy"] < options.fail_under else 0


def show(content: dict) -> None:
    """Print the table of a claim."""
    from rich.table import Table

    from robustmim.cli.console import console, say

    table = Table(title=f"{content['classifier']} on {content['data']}, {content['norm']}, seed {content['seed']}")
    for column, side in (
        ("attack", "left"),
        ("ε", "right"),
        ("defence", "left"),
        ("accuracy", "right"),
        ("95 %", "right"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    table.add_column("n", justify="right")
    for row in content["cells"]:
        interval = f"{row['low']:.1%} – {row['high']:.1%}"
        table.add_row(row["attack"], row["radius"], row["defence"], f"{row['accuracy']:.1%}", interval, str(row["n"]))
    console.print(table)
    for finding in content["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")
