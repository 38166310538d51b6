"""The verdict on an image: right or wrong on draws that no attack has seen, under three rules.

A random defence has no single answer. *Mean*: the share of fresh draws that are right. *Majority*: right if more than
half of n draws are. *Worst*: right only if all n are, since an attacker may try n times. A break under the majority
counts only when a second set of draws, independent of the first, confirms it: the worst of several attacks, chosen on
the draws it is scored on, would else be a choice of luck (docs/honesty).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from robustmim.attacks.objectives import Logits
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample

Answer = Callable[[Images, Keys], Logits]
"""(images, keys of the defence's draws) → logits, without gradients."""


@dataclass(frozen=True)
class Judged:
    """How a batch fared on fresh draws.

    Attributes:
        right: draws of the first set that were right, `[B]`.
        again: the same of the second set; None if there is none.
        draws: in each set.
        predicted: most frequent answer over all draws, the lower class on a tie; -1 where it was not a number.
    """

    right: PerSample
    again: PerSample | None
    draws: int
    predicted: Labels


def judge(answer: Answer, x: Images, y: Labels, drawn: Keys, *, draws: int, known: bool = False) -> Judged:
    """Classify images on fresh draws of the defence.

    Args:
        answer: the defence.
        x: `[B, C, H, W]` in [0, 1].
        y: true classes.
        drawn: the verdict's keys, or the known ones.
        draws: in each of two sets; 1 for a single set of a single draw.
        known: use the keys as they are, for a single draw: those of an attacker who knows them.
    """
    sets = 1 if draws == 1 else 2
    rights: list[PerSample] = []
    votes: torch.Tensor | None = None
    for number in range(sets):
        right = torch.zeros(len(x), device=x.device)
        for draw in range(draws):
            logits = answer(x, drawn if known else drawn.fold(number, draw))
            finite = logits.isfinite().all(1)
            predicted = torch.where(finite, logits.argmax(1), -1)
            right += predicted == y
            own = torch.nn.functional.one_hot(predicted.clamp(min=0), logits.shape[1]) * finite[:, None]
            votes = own if votes is None else votes + own
        rights.append(right)
    assert votes is not None
    predicted = torch.where(votes.sum(1) > 0, votes.argmax(1), -1)
    return Judged(rights[0], rights[1] if sets == 2 else None, draws, predicted)


def share(record: dict[str, Any]) -> float:
    """Return the share of all fresh draws that were right: the mean rule for one attack."""
    again = record.get("again")
    if again is None:
        return record["right"] / record["draws"]
    return (record["right"] + again) / (2 * record["draws"])


def broken(record: dict[str, Any]) -> bool:
    """Say whether half or more of the draws miss, in both sets (in the only one, if there is one)."""
    sets = [record["right"], record.get("again")]
    return all(2 * right <= record["draws"] for right in sets if right is not None)


def withstands_every_draw(record: dict[str, Any]) -> bool:
    """Say whether every draw was right."""
    again = record.get("again")
    return record["right"] == record["draws"] and (again is None or again == record["draws"])


@dataclass(frozen=True)
class Worst:
    """A sample against all the attacks it faced at a budget.

    Attributes:
        share: of draws that were right under the worst attack. It is chosen on one set and scored on the other, both
            ways round, and averaged: chosen and scored on the same draws, the worst of many would be the unluckiest.
        standing: no attack broke it, by majority and confirmed.
        every_draw: no attack found a single draw that was wrong.
    """

    share: float
    standing: bool
    every_draw: bool


def worst_of_each(samples: Mapping[int, list[dict[str, Any]]]) -> dict[int, Worst]:
    """Combine the records of each sample at one budget; records of attacks it was spared (skipped) are left out.

    The worst attack of a sample is chosen as an attacker would who has seen few draws: half by its own draws and half by
    how the attack does on all samples that faced the same attacks. By its own draws alone, a weak attack that was lucky
    in them would often be chosen, and the worst of many attacks would look better than the best one.
    """
    faced = {number: [record for record in rows if not record.get("skipped")] for number, rows in samples.items()}
    alike: dict[tuple[str, ...], list[list[dict[str, Any]]]] = {}
    for rows in faced.values():
        alike.setdefault(_attacks(rows), []).append(rows)
    paired = all(record.get("again") is not None for rows in faced.values() for record in rows)
    # The set to choose on, and the other one to score on.
    ways = [("right", "again"), ("again", "right")] if paired else [("right", "right")]
    overall = {
        (names, choose): [
            sum(rows[at][choose] / rows[at]["draws"] for rows in own) / len(own) for at in range(len(names))
        ]
        for names, own in alike.items()
        for choose, _ in ways
    }

    def scored(rows: list[dict[str, Any]], choose: str, score: str) -> float:
        general = overall[_attacks(rows), choose]
        chosen = min(range(len(rows)), key=lambda at: rows[at][choose] / rows[at]["draws"] + general[at])
        return float(rows[chosen][score] / rows[chosen]["draws"])

    return {
        number: Worst(
            share=sum(scored(rows, *way) for way in ways) / len(ways),
            standing=not any(broken(record) for record in rows),
            every_draw=all(withstands_every_draw(record) for record in rows),
        )
        for number, rows in faced.items()
    }


def _attacks(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(record["attack"] for record in rows)
