"""The table that an evaluation fills in: its cells, and which recipes make one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.errors import RecipeError
from robustmim.radius import Radius, radius_text

Defence = Literal["bare", "purified"]
NO_ATTACK = "none"


@dataclass(frozen=True)
class Cell:
    """One cell of the table: an attack at a budget against a defence."""

    attack: str
    radius: float
    defence: Defence

    @property
    def key(self) -> tuple[str, str, str]:
        """What the cell is called in the records: attack, budget as text, defence."""
        return self.attack, radius_text(self.radius), self.defence


def cell_of(record: dict[str, Any]) -> tuple[str, str, str]:
    """Return the key of the cell that a record belongs to."""
    return record["attack"], record["radius"], record["defence"]


def radii_of(attack: AttackConfig, recipe: EvaluateRecipe) -> tuple[Radius, ...]:
    """Return the budgets that an attack is run at, in the recipe's order."""
    return tuple(radius for radius in recipe.radii if attack.radii is None or radius in attack.radii)


def on_fresh_draws(recipe: EvaluateRecipe, radius: float) -> list[AttackConfig]:
    """Return the attacks of a budget whose verdicts are taken on fresh draws: those that the worst case is of."""
    return [a for a in recipe.attacks if a.randomness == "fresh" and radius in radii_of(a, recipe)]


def in_rising_order(radii: Iterable[Radius]) -> tuple[Radius, ...]:
    """Return budgets from the smallest to the largest, each once; alike are those that are written alike."""
    return tuple({radius_text(radius): radius for radius in sorted(radii)}.values())


def defences_of(attack: AttackConfig, *, purified: bool) -> tuple[Defence, ...]:
    """Return what an attack's images are judged on: those made on the bare classifier meet both."""
    if not purified:
        return ("bare",)
    return ("bare", "purified") if attack.against == "classifier" else ("purified",)


def cells(recipe: EvaluateRecipe, *, purified: bool) -> list[Cell]:
    """List the cells that a recipe asks for, in the order they are computed."""
    table = [Cell(NO_ATTACK, 0.0, "bare")] + ([Cell(NO_ATTACK, 0.0, "purified")] if purified else [])
    for radius in recipe.radii:
        for attack in recipe.attacks:
            if radius in radii_of(attack, recipe):
                table += [Cell(attack.name, radius, defence) for defence in defences_of(attack, purified=purified)]
    return table


def check_recipe(recipe: EvaluateRecipe) -> None:
    """Refuse a recipe that cannot be run as it stands.

    Raises:
        RecipeError: names that repeat, budgets out of order or that nobody asked for, draws that contradict the randomness.
    """
    names = [attack.name for attack in recipe.attacks]
    for name in names:
        if names.count(name) > 1 or name == NO_ATTACK:
            raise RecipeError(f"two attacks of an evaluation are called {name!r}; names must differ, and not be 'none'")
    if recipe.radii != in_rising_order(recipe.radii):
        raise RecipeError(f"budgets rise, and none comes twice, but `radii` is {', '.join(map(str, recipe.radii))}")
    if recipe.draws < 1:
        raise RecipeError(f"a verdict takes at least one draw, not {recipe.draws}")
    for attack in recipe.attacks:
        if attack.eot < 1:
            raise RecipeError(f"attack {attack.name!r}: eot is at least 1, not {attack.eot}")
        if attack.randomness != "fresh" and attack.eot > 1:
            raise RecipeError(f"attack {attack.name!r} knows the draw; there is nothing to average over: set eot to 1")
        if attack.randomness != "fresh" and attack.against == "classifier":
            raise RecipeError(f"attack {attack.name!r} is on the bare classifier, which has no draws to know")
        for radius in attack.radii or ():
            if radius not in recipe.radii:
                raise RecipeError(f"attack {attack.name!r} asks for {radius}, which is not among the recipe's radii")
