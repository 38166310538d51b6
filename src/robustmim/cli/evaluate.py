"""`robustmim evaluate [RECIPE] --classifier … --purifier …`: how accurate is a classifier behind a purifier, attacked?"""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from robustmim.cli.arguments import DefenceOptions
from robustmim.config import AttackConfig, EvaluateRecipe, PurifyRecipe
from robustmim.errors import RecipeError, suggest
from robustmim.evaluate.table import cells, in_rising_order
from robustmim.recipe import parse

if TYPE_CHECKING:
    import torch

    from robustmim.data.sources import Source
    from robustmim.evaluate.run import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DefenceOptions):
    """What is evaluated."""

    only: str | None = None
    """Run only these attacks of the recipe, by name, separated by commas."""
    keep_images: bool = False
    """Keep every adversarial image in the run's folder `adversarial`: a file for each attack and budget."""
    fail_under: float = 0.0
    """Exit with 3 when the worst case at the largest budget is lower than this fraction."""


def _chosen(recipe: EvaluateRecipe, names: str) -> tuple[AttackConfig, ...]:
    """Return the attacks with these names.

    Raises:
        RecipeError: no such attack in the recipe; the message gives the nearest one.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {attack.name: attack for attack in recipe.attacks}
    for name in wanted:
        if name not in known:
            raise RecipeError(f"the recipe has no attack {name!r}. {suggest(name, known)}")
    return tuple(attack for attack in recipe.attacks if attack.name in wanted)


def prepared(recipe: EvaluateRecipe, options: EvaluateOptions) -> EvaluateRecipe:
    """Return the recipe with the options that narrow it down applied, and its budgets in order.

    Raises:
        RecipeError: no budgets, or attacks that the recipe does not have.
    """
    recipe = options.limited(recipe)
    if options.only is not None:
        recipe = dataclasses.replace(recipe, attacks=_chosen(recipe, options.only))
    if not recipe.radii:
        raise RecipeError("an evaluation needs at least one budget in `radii`")
    return dataclasses.replace(recipe, radii=in_rising_order(recipe.radii))


def default_folder(name: str, options: EvaluateOptions, command: str = "evaluate") -> Path:
    """Return where a run goes when nothing else is said."""
    defence = f"{Path(options.classifier).stem}-{'bare' if options.purifier == 'none' else options.purifier}"
    return Path(f"runs/{command}-{name}-{defence}")


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("evaluate", EvaluateRecipe, EvaluateOptions, arguments, default="cifar10-linf")
    recipe = prepared(recipe, options)
    purify = options.purification()
    code, content = measure(recipe, purify, options, Path(options.out or default_folder(name, options)))
    if content is None:
        return code

    from robustmim.cli.console import output, say
    from robustmim.evaluate.honesty import status

    if options.json:
        output(content)
    show(content)
    say(f"report: {content['report']}")
    worst = content["worst_case"]
    if worst and worst["accuracy"] < options.fail_under:
        return 3
    return 4 if status(content["findings"]) == "red" else 0


def opened(
    recipe: EvaluateRecipe, purify: PurifyRecipe | None, options: EvaluateOptions
) -> tuple[Evaluator, Source, torch.device]:
    """Return the defence with its attacks, the images, and where to compute; say which attacks were left out.

    Raises:
        RobustmimError: a classifier, purifier, data set or recipe that is not there, or that do not fit each other.
    """
    from robustmim.cli.console import say
    from robustmim.cli.training import open_source
    from robustmim.evaluate.run import REFERENCES, Evaluator, reference_images
    from robustmim.models.adapters import check_classifier
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import make_purifier
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    classifier = open_classifier(options.classifier, options.arch, device=device)
    source = open_source(recipe.data, device)
    # An attacker has as much of the data however few images are measured.
    limit = recipe.data.limit
    few = limit is not None and limit < REFERENCES
    known = open_source(dataclasses.replace(recipe.data, limit=REFERENCES), device) if few else source
    reference = reference_images(known, device)
    check_classifier(classifier, reference, len(source.classes))
    evaluator = Evaluator(
        classifier, make_purifier(purify, device=device, classifier=classifier) if purify else None, recipe, reference
    )
    for left_out, why in evaluator.left_out.items():
        say(f"left out: {left_out}: {why}")
    return evaluator, source, device


def measure(
    recipe: EvaluateRecipe, purify: PurifyRecipe | None, options: EvaluateOptions, path: Path
) -> tuple[int, dict | None]:
    """Run one evaluation into a folder, or say what it would cost.

    Returns:
        The exit code and the claim; None for the claim where there is none: a dry run, a run that was stopped, or a
        process that does not lead.
    """
    from robustmim.attacks.target import Interrupted, until
    from robustmim.cli.console import Progress, duration, output, say
    from robustmim.evaluate.claims import conclude
    from robustmim.evaluate.kept import FOLDER
    from robustmim.evaluate.run import dealt, read_records
    from robustmim.purify.load import describe
    from robustmim.report.page import write_report
    from robustmim.runs import RunFolder
    from robustmim.train.distributed import world

    evaluator, source, device = opened(recipe, purify, options)
    if options.dry_run:
        from robustmim.evaluate.cost import estimate

        seconds, rows = estimate(evaluator, source, device)
        for row in rows:
            say(
                f"  {row['attack']}: up to {row['forward']:.0f} + {row['backward']:.0f} passes, {duration(row['seconds'])}"
            )
        say(f"{len(source)} images; at most {duration(seconds)} on {device}, less as images fall; nothing was written")
        if options.json:
            output({"images": len(source), "seconds": round(seconds), "device": str(device), "attacks": rows})
        return 0, None

    asked = {key: getattr(options, key) for key in ("classifier", "arch", "purifier")}
    stop = {"asked": False}
    with world(options.device) as here:
        folder = RunFolder(
            path,
            # Without what was left out: an optional attack that a suite gains does not make another run of this one.
            recipe={"evaluate": evaluator.recipe, "purify": purify, **asked},
            kind="evaluate",
            harmless=("evaluate.batch_size",),
            leads=here.leads,
        )
        if options.keep_images and not (path / FOLDER).exists() and list(path.glob("records*.jsonl")):
            raise RecipeError(f"{path} holds records, but not their images; start over in another folder (--out)")
        here.wait()  # nobody writes into a folder that is refused
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.update(asked=True))
        table = cells(evaluator.recipe, purified=purify is not None)
        own = dealt(source, recipe.batch_size, here)
        progress = Progress(len(own) * len(table), unit="verdicts")
        if here.leads:
            named = describe(purify) if purify else "no purifier"
            say(f"{path}: {len(source)} images of {source.name}, {len(evaluator.attacks)} attacks; {named}")
        limit = float(options.max_time)
        interrupt = until(limit, lambda: stop["asked"])
        again = f"to go on: robustmim {' '.join(sys.argv[1:])}"
        try:
            complete = evaluator.run(
                source,
                folder,
                device=here.device,
                world=here,
                max_seconds=limit,
                keep_images=options.keep_images,
                report=progress.update if here.leads else lambda done, note: None,
                stop=lambda: stop["asked"],
            )
            if not complete:
                folder.update("stopped")
                if here.leads:
                    done = sum(len(rows) for rows in read_records(path).values())
                    say(f"stopped after {done} of {len(source) * len(table)} verdicts; {again}")
                return 130, None
            if not here.leads:
                return 0, None
            content = conclude(
                evaluator,
                source,
                folder,
                classifier=Path(options.classifier).name + (f" ({options.arch})" if options.arch else ""),
                purify=purify,
                device=here.device,
                architecture=options.arch,
                interrupt=interrupt,
            )
        except Interrupted:
            folder.update("stopped")
            say(f"stopped in the checks at the end, with all verdicts there; {again}")
            return 130, None
        except BaseException as error:
            folder.update("failed", error=str(error) or type(error).__name__)
            raise
        finally:
            signal.signal(signal.SIGINT, before)
    return 0, content | {"report": str(write_report(path))}


def show(content: dict) -> None:
    """Print the table of a claim."""
    from rich.table import Table

    from robustmim.cli.console import console, say

    def percent(row: dict) -> tuple[str, str, str]:
        return f"{row['accuracy']:.1%}", f"{row['low']:.1%} – {row['high']:.1%}", str(row["n"])

    def rules(row: dict) -> str:
        found = row.get("rules")
        return f"{found['majority']:.0%} / {found['worst']:.0%}" if found else ""

    random = any("rules" in row for row in content["cells"])
    table = Table(title=f"{content['classifier']} on {content['data']}, {content['norm']}, seed {content['seed']}")
    heads = ["attack", "ε", "defence", "accuracy", "95 %", "n"] + (["majority / every draw"] if random else [])
    for head in heads:
        table.add_column(head, justify="left" if head in ("attack", "defence") else "right")
    for row in content["cells"]:
        table.add_row(row["attack"], row["radius"], row["defence"], *percent(row), *([rules(row)] if random else []))
    for row in content["worst_cases"]:
        defence = "purified" if content["purifier"] else "bare"
        table.add_row(
            "worst case", row["radius"], defence, *percent(row), *([rules(row)] if random else []), style="bold"
        )
    console.print(table)
    for finding in content["findings"]:
        say(f"{finding['level']}: {finding['sentence']} ({finding['link']})")
