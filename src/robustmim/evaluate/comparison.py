"""A paired test of two evaluations: the same images, so the differences within pairs tell more than two intervals."""

from __future__ import annotations

import math
from typing import Any

from robustmim.config import EvaluateRecipe
from robustmim.evaluate.claims import Records, faced_by_all
from robustmim.evaluate.table import on_fresh_draws
from robustmim.evaluate.verdict import Worst, broken, share, worst_of_each
from robustmim.radius import radius_text
from robustmim.recipe import recipe_from

WorstCases = dict[str, tuple[str, dict[int, Worst]]]
"""By budget: what is defended, bare or purified, and what the worst attack leaves of each sample."""
Judged = dict[int, tuple[float, bool]]
"""By sample: the share of its draws that were right, and whether it stands by majority."""


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: are discordant pairs split evenly?

    Args:
        only_first: pairs that the first got right and the second wrong.
        only_second: the reverse.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)


def compare(first: Records, second: Records) -> list[dict[str, Any]]:
    """Compare two runs cell by cell on the images that both judged.

    Returns:
        For each cell they share: n, both accuracies (mean rule), the mean difference second - first with its 95 %
        interval (normal, over pairs), how many only one of them got right (majority rule), and the exact McNemar p.
    """
    rows = []
    for cell, own in first.items():
        judged = [
            {number: (share(row), not broken(row)) for number, row in run.items() if not row.get("skipped")}
            for run in (own, second.get(cell, {}))
        ]
        rows += _paired(*judged, attack=cell[0], radius=cell[1], defence=cell[2])
    return rows


def compare_worst(first: WorstCases, second: WorstCases) -> list[dict[str, Any]]:
    """Compare the worst cases of two runs, whatever attacks each took and whatever it defends: a classifier and the same purified.

    Returns:
        Rows like those of `compare`, one for each budget that both have.
    """
    rows = []
    for radius, (defence, own) in first.items():
        other_defence, other = second.get(radius, (defence, {}))
        judged = [{number: (one.share, one.standing) for number, one in run.items()} for run in (own, other)]
        which = defence if defence == other_defence else f"{defence} and {other_defence}"
        rows += _paired(*judged, attack="worst case", radius=radius, defence=which)
    return rows


def worst_cases(run: dict[str, Any], records: Records) -> WorstCases:
    """Return what withstands the worst of a run's attacks, by budget: of the samples that have faced all of them.

    Args:
        run: what was run, as `run.json` says under "recipe".
        records: what was found.

    Raises:
        KeyError: it is not an evaluation that was run.
        RecipeError: its recipe has unknown keys or wrong types.
    """
    recipe = recipe_from(EvaluateRecipe, run["evaluate"])
    purified = run["purify"] is not None
    found: WorstCases = {}
    for radius in recipe.radii:
        attacks = len(on_fresh_draws(recipe, radius))
        faced = faced_by_all(records, recipe, radius, purified=purified)
        # Of a run that was stopped, the others may still fall.
        whole = {number: rows for number, rows in faced.items() if len(rows) == attacks}
        found[radius_text(radius)] = ("purified" if purified else "bare", worst_of_each(whole))
    return found


def _paired(first: Judged, second: Judged, *, attack: str, radius: str, defence: str) -> list[dict[str, Any]]:
    pairs = [(own, second[number]) for number, own in first.items() if number in second]
    if not pairs:
        return []
    n = len(pairs)
    differences = [b[0] - a[0] for a, b in pairs]
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n)
    only_first = sum(a[1] and not b[1] for a, b in pairs)
    only_second = sum(b[1] and not a[1] for a, b in pairs)
    return [
        {
            "attack": attack,
            "radius": radius,
            "defence": defence,
            "n": n,
            "first": sum(a[0] for a, _ in pairs) / n,
            "second": sum(b[0] for _, b in pairs) / n,
            "difference": mean,
            "low": mean - 1.96 * spread,
            "high": mean + 1.96 * spread,
            "only_first": only_first,
            "only_second": only_second,
            "p": exact_mcnemar(only_first, only_second),
        }
    ]
