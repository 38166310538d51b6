"""`robustmim certify [RECIPE] --classifier … --purifier …`: how far does the class of a smoothed classifier provably hold?"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

from robustmim.cli.arguments import DefenceOptions
from robustmim.config import CertifyRecipe
from robustmim.recipe import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertifyOptions(DefenceOptions):
    """What is certified."""

    purifier: str = "reconstruction-cifar10"
    """Purification recipe that takes the noise away, by name or file; "none" smooths the bare classifier."""
    empirical: str | None = None
    """Folder of an l2 evaluation of the same classifier and purifier: what attacks have left stands beside what is certified."""


def attacked(folder: Path, *, title: str, purifier: str | None, data: str) -> dict[str, Any]:
    """Return the worst cases of an evaluation, for the claim.

    Raises:
        InputError: no evaluation, or one of something else.
    """
    from robustmim.errors import InputError
    from robustmim.runs import read_json

    claim = read_json(folder / "claim.json")
    own = {"norm": "l2", "classifier": title, "purifier": purifier, "data": data}
    for name, value in own.items():
        if claim.get(name) != value:
            raise InputError(
                f"--empirical {folder}: its {name} is {claim.get(name)}, not {value}; name another evaluation"
            )
    if not claim.get("worst_cases"):
        raise InputError(f"--empirical {folder}: it attacks nothing; name another evaluation")
    of = f"the worst of {len(claim['protocol'])} attacks on the classifier that is smoothed here"
    return {"of": of, "accuracies": claim["worst_cases"]}


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("certify", CertifyRecipe, CertifyOptions, arguments, default="cifar10-sigma-0.12")
    recipe = options.limited(recipe)
    purify = options.purification()

    import torch

    from robustmim.cli.console import Progress, duration, output, say
    from robustmim.cli.training import open_source
    from robustmim.evaluate.accuracy import in_order
    from robustmim.evaluate.certify import Smoothed, base_classifier, conclude, record_of
    from robustmim.evaluate.journal import Journal, read_journal
    from robustmim.models.adapters import check_classifier
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import describe, make_purifier
    from robustmim.report.page import write_report
    from robustmim.runs import RunFolder, environment, write_json
    from robustmim.train.distributed import choose_device, world

    device = choose_device(options.device)
    classifier = open_classifier(options.classifier, options.arch, device=device)
    smoothed = Smoothed(
        base_classifier(classifier, make_purifier(purify, device=device, classifier=classifier) if purify else None),
        recipe,
    )
    source = open_source(recipe.data, device)
    first = source.fetch(torch.arange(min(2, len(source)))).to(device).float() / 255
    check_classifier(classifier, first, len(source.classes))
    draws = recipe.selection_draws + recipe.draws
    named = describe(purify) if purify else "no purifier"
    if options.dry_run:
        few = 2 * min(recipe.batch_size, recipe.draws)
        smoothed.counts(first[0], 0, purpose="dry run", draws=min(recipe.batch_size, recipe.draws))  # warms up
        began = time.perf_counter()
        smoothed.counts(first[0], 0, purpose="dry run", draws=few)
        each = (time.perf_counter() - began) / few
        seconds = each * draws * len(source)
        say(
            f"{len(source)} images × {draws} draws of {1000 * each:.2f} ms, {named}; about {duration(seconds)} on {device}; "
            "nothing was written"
        )
        if options.json:
            output({"images": len(source), "draws": draws, "seconds": round(seconds), "device": str(device)})
        return 0

    defence = f"{Path(options.classifier).stem}-{Path(options.purifier).stem if purify else 'bare'}"
    path = Path(options.out or f"runs/certify-{name}-{defence}")
    asked = {key: getattr(options, key) for key in ("classifier", "arch", "purifier")}
    kept = {"certify": recipe, "purify": purify, **asked}
    with world(options.device) as here:
        folder = RunFolder(path, recipe=kept, kind="certify", harmless=("certify.batch_size",), leads=here.leads)
        here.wait()  # nobody writes into a folder that is refused
        # Of an image that was written twice the first line stands.
        records: dict[int, dict[str, Any]] = {}
        for record in read_journal(path):
            records.setdefault(record["id"], record)
        journal = Journal(path, here)
        spent = dict(folder.timing.get("certify", {"seconds": 0.0, "images": 0}))
        if here.leads:
            say(f"{path}: {len(source)} images of {source.name} × {draws} draws, σ {recipe.sigma:g}; {named}")
        mine = source.ids.tolist()[here.rank :: here.size]
        progress = Progress(len(mine), unit="images")
        stop = {"asked": False}
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.update(asked=True))
        start = time.monotonic()
        try:
            for place, batch in enumerate(in_order(source, 1, here.device)):
                number = int(batch.ids[0])
                if number in records or place % here.size != here.rank:
                    continue
                # An image that has begun is finished, however little time is left: its draws are kept whole or not at all.
                if time.monotonic() - start > options.max_time:
                    break
                began = time.perf_counter()
                certificate = smoothed.certify(batch.images[0], number, stop=lambda: stop["asked"])
                if certificate is None:
                    break
                spent = {"seconds": spent["seconds"] + time.perf_counter() - began, "images": spent["images"] + 1}
                records[number] = record_of(certificate, number=number, label=int(batch.labels[0]))
                journal.append([records[number]])
                folder.update("running", timing={"certify": spent})
                if here.leads:
                    right = [r for r in records.values() if r["predicted"] == r["label"]]
                    done = sum(number in records for number in mine)
                    progress.update(done, f"certified and right {len(right) / len(records):.1%}")
        except BaseException as error:
            folder.update("failed", error=str(error) or type(error).__name__)
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        complete = not here.any(not all(number in records for number in mine))
        if not here.leads:
            return 0 if complete else 130
        for record in read_journal(path):
            records.setdefault(record["id"], record)
        if not complete:
            folder.update("stopped")
            say(f"stopped after {len(records)} of {len(source)} images; to go on: robustmim {' '.join(sys.argv[1:])}")
            return 130
        rows = [records[number] for number in source.ids.tolist()]
        journal.merge(rows)
    title = Path(options.classifier).name + (f" ({options.arch})" if options.arch else "")
    content = conclude(rows, recipe, classifier=title, purifier=describe(purify) if purify else None) | {
        "milliseconds_per_image": round(1000 * spent["seconds"] / spent["images"], 2) if spent["images"] else None,
        "environment": environment(),
    }
    if options.empirical is not None:
        content["empirical"] = attacked(
            Path(options.empirical), title=title, purifier=content["purifier"], data=content["data"]
        )
    write_json(path / "claim.json", content)
    folder.update("finished")
    if options.json:
        output(content)
    show(content)
    say(f"claim: {path}/claim.json; report: {write_report(path)}")
    return 0


def show(content: dict[str, Any]) -> None:
    """Print the table of a claim."""
    from rich.table import Table

    from robustmim.cli.console import console, say
    from robustmim.radius import Radius

    table = Table(
        title=f"{content['classifier']} on {content['data']}, smoothed with σ {content['sigma']:g}, n = {content['images']}, "
        f"seed {content['seed']}"
    )
    table.add_column("", no_wrap=True)
    for head in ("accuracy", "95 %"):
        table.add_column(head, justify="right", no_wrap=True)

    def add(what: str, row: dict[str, Any]) -> None:
        table.add_row(what, f"{row['accuracy']:.1%}", f"{row['low']:.1%} – {row['high']:.1%}")

    add("most frequent class", content["smoothed"])
    for row in content["certified"]:
        add(f"certified, l2 {row['radius']:g}", row)
    for row in content.get("empirical", {}).get("accuracies", []):
        add(f"left by attacks, l2 {float(Radius(row['radius'])):g}", row)
    add("abstained", content["abstained"])
    console.print(table)
    say(
        f"{content['purifier'] or 'no purifier'}; mean certified radius {content['mean_radius']:.3f}, at most "
        f"{content['largest_radius']:.3f} with {content['draws']} draws; {content['milliseconds_per_image']} ms an image"
    )
    for finding in content["findings"]:
        say(f"{finding['level']}: {finding['sentence']}")
