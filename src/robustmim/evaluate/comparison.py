"""A paired test of two evaluations: the same images, so the differences within pairs tell more than two intervals."""

from __future__ import annotations

import math
from typing import Any

from robustmim.errors import InputError
from robustmim.evaluate.verdict import broken, share

Records = dict[tuple[str, str, str], dict[int, dict[str, Any]]]
"""Records by cell, then by id."""


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

    Raises:
        InputError: no cell, or no image, in common.
    """
    rows = []
    for cell, own in first.items():
        other = second.get(cell, {})
        pairs = [
            (own[number], other[number])
            for number in own
            if number in other and not own[number].get("skipped") and not other[number].get("skipped")
        ]
        if not pairs:
            continue
        n = len(pairs)
        differences = [share(b) - share(a) for a, b in pairs]
        mean = sum(differences) / n
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n)
        only_first = sum(not broken(a) and broken(b) for a, b in pairs)
        only_second = sum(broken(a) and not broken(b) for a, b in pairs)
        rows.append(
            {
                "attack": cell[0],
                "radius": cell[1],
                "defence": cell[2],
                "n": n,
                "first": sum(share(a) for a, _ in pairs) / n,
                "second": sum(share(b) for _, b in pairs) / n,
                "difference": mean,
                "low": mean - 1.96 * spread,
                "high": mean + 1.96 * spread,
                "only_first": only_first,
                "only_second": only_second,
                "p": exact_mcnemar(only_first, only_second),
            }
        )
    if not rows:
        raise InputError(
            "the two runs have no attack, budget and image in common; compare runs of one recipe and data set"
        )
    return rows
