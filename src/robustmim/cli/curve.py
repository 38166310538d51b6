"""`robustmim curve [RECIPE] --over … --values …`: accuracy over the budget, an attack's steps or draws, a purifier's steps."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal

from robustmim.cli.evaluate import EvaluateOptions, default_folder, measure, prepared
from robustmim.config import EvaluateRecipe, PurifyRecipe
from robustmim.errors import RecipeError
from robustmim.radius import Radius
from robustmim.recipe import parse

Over = Literal["radius", "attack-steps", "eot", "purification-steps"]
DEFAULTS: dict[str, tuple[str, ...]] = {
    "radius": ("0/255", "1/255", "2/255", "4/255", "8/255", "16/255"),
    "attack-steps": ("5", "10", "20", "40", "80"),
    "eot": ("1", "2", "4", "8", "16"),
    "purification-steps": ("1", "2", "4", "8", "16"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveOptions(EvaluateOptions):
    """What is varied; every point is an evaluation of its own, in a folder of its own."""

    over: Over = "radius"
    """The one thing that changes from point to point; all else is the recipe's, at its largest budget."""
    values: str | None = None
    """Its values, separated by commas: budgets such as 8/255, or whole numbers."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("curve", EvaluateRecipe, CurveOptions, arguments, default="cifar10-linf")
    recipe = prepared(recipe, options)
    if options.over == "attack-steps":
        recipe = with_steps(recipe)
    purify = options.purification()
    path = Path(options.out or default_folder(f"{name}-{options.over}", options, "curve"))
    values = DEFAULTS[options.over]
    if options.values is not None:
        values = tuple(value.strip() for value in options.values.strip("[]").split(",") if value.strip())
    recipes = [varied(recipe, purify, options.over, value) for value in values]
    points = []
    for value, (one, own) in zip(values, recipes, strict=True):
        code, content = measure(one, own, options, path / value.replace("/", "-"))
        if content is not None:
            points.append({"value": value, "cells": content["cells"], "worst_case": content["worst_case"]})
        elif code:
            return code
    if not points:
        return 0

    from robustmim.cli.console import output, say
    from robustmim.report.page import write_report
    from robustmim.runs import RunFolder, write_json

    asked = {key: getattr(options, key) for key in ("over", "classifier", "arch", "purifier")}
    kept = {"evaluate": recipe, "purify": purify, **asked, "values": values}
    folder = RunFolder(path, recipe=kept, kind="curve", harmless=("values", "evaluate.batch_size"))
    found = {"norm": recipe.norm, **asked, "points": points}
    write_json(path / "curve.json", found)
    folder.update("finished")
    if options.json:
        output(found)
    show(found)
    say(f"written: {path / 'curve.json'}; report: {write_report(path)}")
    return 0


def with_steps(recipe: EvaluateRecipe) -> EvaluateRecipe:
    """Return the recipe with those of its attacks that have steps to vary; the others are named.

    Raises:
        RecipeError: none has.
    """
    from robustmim.cli.console import say
    from robustmim.registry import builder

    kept = tuple(a for a in recipe.attacks if "steps" in inspect.signature(builder("attack", a.attack)).parameters)
    if not kept:
        raise RecipeError("none of the attacks has steps that could be varied; vary radius, eot or purification-steps")
    for attack in recipe.attacks:
        if attack not in kept:
            say(f"left out: {attack.name}: {attack.attack} has no steps to vary")
    return dataclasses.replace(recipe, attacks=kept)


def with_purification_steps(purify: PurifyRecipe, number: int) -> PurifyRecipe:
    """Return a purification of so many steps.

    Raises:
        RecipeError: it has none.
    """
    if purify.baseline is not None:
        from robustmim.registry import builder

        if "steps" not in inspect.signature(builder("purifier", purify.baseline.name)).parameters:
            raise RecipeError(
                f"the purifier {purify.baseline.name} has no steps that could be varied; vary radius, attack-steps or eot"
            )
        options = purify.baseline.options | {"steps": number}
        return dataclasses.replace(purify, baseline=dataclasses.replace(purify.baseline, options=options))
    if purify.reconstruction is not None:
        raise RecipeError(
            "a reconstruction is one pass, without steps that could be varied; vary radius, attack-steps or eot"
        )
    if purify.diffusion is not None:
        return dataclasses.replace(purify, diffusion=dataclasses.replace(purify.diffusion, steps=number))
    return dataclasses.replace(purify, amrm=dataclasses.replace(purify.amrm, steps=number))


def varied(
    recipe: EvaluateRecipe, purify: PurifyRecipe | None, over: Over, value: str
) -> tuple[EvaluateRecipe, PurifyRecipe | None]:
    """Return the recipes of one point.

    Raises:
        RecipeError: a value that is none, or purification steps without a purifier or of one that has none.
    """
    everywhere = tuple(dataclasses.replace(attack, radii=None) for attack in recipe.attacks)
    if over == "radius":
        try:
            return dataclasses.replace(recipe, radii=(Radius(value),), attacks=everywhere), purify
        except ValueError as error:
            raise RecipeError(str(error)) from error
    if not value.isdigit() or int(value) < 1:
        raise RecipeError(f"--values of {over} are whole numbers from 1, not {value!r}")
    number = int(value)
    recipe = dataclasses.replace(recipe, radii=(max(recipe.radii),), attacks=everywhere)
    if over == "purification-steps":
        if purify is None:
            raise RecipeError("there is no purifier whose steps could be varied; say which with --purifier")
        return recipe, with_purification_steps(purify, number)
    if over == "eot":
        attacks = [dataclasses.replace(a, eot=number) if a.randomness == "fresh" else a for a in everywhere]
    else:
        attacks = [dataclasses.replace(a, options=a.options | {"steps": number}) for a in everywhere]
    return dataclasses.replace(recipe, attacks=tuple(attacks)), purify


def show(found: dict[str, Any]) -> None:
    """Print the curve as a table."""
    from rich.table import Table

    from robustmim.cli.console import console

    names = list(dict.fromkeys((c["attack"], c["defence"]) for point in found["points"] for c in point["cells"]))
    table = Table(title=f"{found['classifier']} behind {found['purifier']}")
    table.add_column(found["over"], justify="right")
    for attack, defence in names:
        table.add_column(f"{attack}, {defence}", justify="right")
    table.add_column("worst case", justify="right")
    for point in found["points"]:
        cells = {(cell["attack"], cell["defence"]): f"{cell['accuracy']:.1%}" for cell in point["cells"]}
        worst = point["worst_case"]
        own = [cells.get(name, "") for name in names]
        table.add_row(point["value"], *own, f"{worst['accuracy']:.1%}" if worst else "")
    console.print(table)
