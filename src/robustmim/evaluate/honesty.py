"""Can the numbers be believed? Checks that turn a verdict amber or red, each with a sentence and a place in docs/honesty.

After Carlini et al. 2019 ("On Evaluating Adversarial Robustness"), Tramèr et al. 2020 and Croce et al. 2022. Passive
checks read the records; active ones run a few more attacks on a few images, only to see whether they find more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from robustmim.attacks.parts import KnowingAttack
from robustmim.attacks.transfer import Transfer
from robustmim.config import AttackConfig
from robustmim.evaluate.active_checks import by_gradient, through
from robustmim.evaluate.run import Evaluator
from robustmim.evaluate.table import Cell, radii_of
from robustmim.evaluate.verdict import broken, share
from robustmim.radius import radius_text

if TYPE_CHECKING:
    from robustmim.evaluate.claims import Records

Level = Literal["red", "amber"]
POINT = 0.01
"""What may be luck or rounding: one point of accuracy."""
FEW = 500
"""Below so many images a few points are within the intervals."""
DEAD = 0.05
"""Share of exactly zero gradient elements from which on gradients are suspect."""
STUCK = 0.05
"""Share of samples whose loss may end lower than it began."""
LARGE_BUDGET = 0.05
"""Accuracy that may be left at a budget at which nothing can hold."""
FOUND = 0.95
"""Share of planted adversarial examples that an attack must find."""
SATURATED = 0.3
"""Share of pixels at the edge of the purifier's ball from which on the clip hides gradients."""

DISAGREEING = 0.1
"""Mean cosine between the gradients of two queries from which down they are mostly noise of the draws."""
ALIKE = 0.25
"""Mean cosine between slopes by an attack's gradient and by differences from which down it mostly follows something else."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something a reader must know before quoting a number."""

    check: str
    level: Level
    sentence: str

    def plain(self) -> dict[str, str]:
        """Return what goes into claim.json."""
        link = f"docs/honesty.md#{self.check}"
        return {"check": self.check, "level": self.level, "sentence": self.sentence, "link": link}


def status(found: list[dict[str, str]]) -> str:
    """Return the worst level found: red, amber or green."""
    levels = {one["level"] for one in found}
    return next((level for level in ("red", "amber") if level in levels), "green")


def findings(
    content: dict[str, Any], records: Records, evaluator: Evaluator, checks: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Return what the records and the active checks give cause to say, the gravest first."""
    found = [*_randomness(evaluator), *_gradients(records, evaluator), *_loss(records, evaluator)]
    found += [*_comparisons(content, records, evaluator), *_budgets(content, evaluator), *_harm(content, evaluator)]
    found += [*_active(checks), *_failures(records), *_size(content)]
    return [one.plain() for one in sorted(found, key=lambda one: one.level != "red")]


def _randomness(evaluator: Evaluator) -> Iterator[Finding]:
    faced = through(evaluator)
    if evaluator.randomised and evaluator.recipe.draws == 1 and evaluator.recipe.attacks:
        yield Finding(
            "one-draw",
            "amber",
            "The defence is random, but each image was judged on a single draw: what that draw got wrong counts as broken, and the "
            "worst of several attacks is the unluckiest. Set draws to 2 or more.",
        )
    if not faced:
        yield Finding(
            "no-white-box",
            "red" if evaluator.recipe.attacks and evaluator.purifier is not None else "amber",
            "No attack by gradient on the defence as a whole was run: its accuracy is that against attackers who do not know it.",
        )
        return
    if evaluator.randomised and max(attack.eot for attack in faced) == 1:
        yield Finding(
            "no-eot",
            "red",
            "The defence is random, but no attack averages over its draws (EOT): each step follows the noise of a single draw.",
        )


def _gradients(records: Records, evaluator: Evaluator) -> Iterator[Finding]:
    faced = by_gradient(evaluator)
    blind = {"identity", "blur"}
    if evaluator.purifier is not None and evaluator.purifier.traits.optimises_at_test_time:
        blind.add("exact")
    if evaluator.purifier is not None and faced and all(_mode(a) in blind for a in faced):
        yield Finding(
            "identity-gradient",
            "amber",
            "No attack sees how the purifier responds: all take the identity for its gradient, or the exact one, which for "
            "steps by a sign is the same. Read the accuracies as upper bounds; the suite adaptive-purifier has the others.",
        )
    for attack in faced:
        rows = _rows(records, attack, evaluator)
        zeros = [row["zero_gradient"] for row in rows if "zero_gradient" in row]
        if not zeros:
            continue
        dead, share_of_zeros = sum(zero == 1 for zero in zeros), sum(zeros) / len(zeros)
        if dead > POINT * len(zeros):
            yield Finding(
                "zero-gradient",
                "red",
                f"{attack.name}: the gradient is exactly zero for {dead} of {len(zeros)} images, so the attack has nothing to "
                "follow. Attack the logits (loss dlr or margin), or with another gradient.",
            )
        elif share_of_zeros > DEAD:
            yield Finding(
                "zero-gradient",
                "amber",
                f"{attack.name}: {share_of_zeros:.0%} of the gradient's elements are exactly zero; clips or quantisation may "
                "hide the rest. Try straight-through clips.",
            )


def _mode(attack: AttackConfig) -> str:
    gradient = attack.gradient
    return gradient.replacement if gradient.mode == "replacement" else gradient.mode


def _rows(records: Records, attack: AttackConfig, evaluator: Evaluator) -> list[dict[str, Any]]:
    """All records of an attack against the defence as a whole."""
    defence = "bare" if evaluator.purifier is None else "purified"
    return [
        row
        for radius in radii_of(attack, evaluator.recipe)
        for row in records.get(Cell(attack.name, radius, defence).key, {}).values()  # type: ignore[arg-type]
        if not row.get("skipped")
    ]


def _loss(records: Records, evaluator: Evaluator) -> Iterator[Finding]:
    for attack in by_gradient(evaluator):
        if isinstance(evaluator.attacks[attack.name], KnowingAttack):
            continue  # it climbs something else
        rows = [row for row in _rows(records, attack, evaluator) if "loss_after" in row]
        # What has fallen was left alone wherever that was. Who climbs a ratio of logits may lower the one or the other.
        lower = sum(_lower(row, "loss") and _lower(row, "margin") and not broken(row) for row in rows)
        if rows and lower > STUCK * len(rows):
            yield Finding(
                "loss-not-rising",
                "red",
                f"{attack.name}: for {lower} of {len(rows)} images loss and margin are lower after the attack than before: it does "
                "not climb. Take smaller steps, more draws, or another gradient.",
            )


def _lower(row: dict[str, Any], name: str) -> bool:
    """Tell whether an attack left a sample lower than it was; yes, where a record of old does not say."""
    return f"{name}_after" not in row or row[f"{name}_after"] < row[f"{name}_before"] - 1e-6


def _comparisons(content: dict[str, Any], records: Records, evaluator: Evaluator) -> Iterator[Finding]:
    """Compare attacks that know less with those that know more, on the samples that faced both.

    Under a cascade, what a white-box attack broke is spared those that come after it: there they find no more than it did.
    """
    recipe, purified = evaluator.recipe, evaluator.purifier is not None
    defence: Literal["bare", "purified"] = "purified" if purified else "bare"
    strong = through(evaluator)
    weak = {}
    for attack in recipe.attacks:
        built = evaluator.attacks[attack.name]
        if built.black_box and attack.randomness == "fresh":
            guide = isinstance(built, Transfer) and built.surrogate is None
            weak[attack.name] = (
                ("transfer-wins", "an attack on the purifier's guide alone")
                if guide
                else ("black-box-wins", "an attack that only asks for answers")
            )
    weak |= {
        attack.name: ("transfer-wins", "an attack on the bare classifier")
        for attack in recipe.attacks
        if purified and attack.against == "classifier"
    }
    weak |= {
        attack.name: ("transfer-wins", "an attack on a stand-in for the purifier")
        for attack in recipe.attacks
        if attack.name not in weak and attack.randomness == "fresh" and not evaluator.white_box(attack)
    }
    for radius in recipe.radii:
        own = {a.name: records.get(Cell(a.name, radius, defence).key, {}) for a in recipe.attacks}
        for name, (check, what) in weak.items():
            gains = []
            for number, row in own[name].items():
                theirs = [own[a.name][number] for a in strong if number in own[a.name]]
                theirs = [other for other in theirs if not other.get("skipped")]
                if theirs and not row.get("skipped"):
                    gains.append(min(map(share, theirs)) - share(row))
            if not gains:
                continue
            n = len(own[name]) if recipe.cascade else len(gains)
            more = sum(gains) / n
            if more >= max(2 / n, POINT):
                yield Finding(
                    check,
                    "red",
                    f"At {radius_text(radius)} {name}, {what}, finds {more:.1%} more than the attacks by gradient on the defence: "
                    "these do not work, and their accuracy means nothing.",
                )


def _budgets(content: dict[str, Any], evaluator: Evaluator) -> Iterator[Finding]:
    rows = content["worst_cases"]
    for smaller, larger in pairwise(rows):
        gain = larger["accuracy"] - smaller["accuracy"]
        if gain > 2 * POINT and gain * larger["n"] >= 2:
            yield Finding(
                "budget-not-monotone",
                "red",
                f"Accuracy rises from {smaller['radius']} to {larger['radius']} by {gain:.1%}, though the larger budget allows all "
                "that the smaller does: the attacks fail at the larger one.",
            )


def _harm(content: dict[str, Any], evaluator: Evaluator) -> Iterator[Finding]:
    found = {(row["attack"], row["radius"], row["defence"]): row for row in content["cells"]}
    for (attack, radius, defence), row in found.items():
        bare = found.get((attack, radius, "bare"))
        if defence == "purified" and attack != "none" and bare and row["high"] < bare["low"]:
            yield Finding("purifier-harms", "red", f"At {radius} purification makes the images of {attack} worse.")


def _failures(records: Records) -> Iterator[Finding]:
    failed: dict[str, int] = {}
    for rows in records.values():
        for row in rows.values():
            if row.get("failed"):
                failed[row["attack"]] = failed.get(row["attack"], 0) + 1
    for attack, count in failed.items():
        yield Finding(
            "attack-failed",
            "red",
            f"{attack} left {count} results that are not images within the budget; the clean images stand for them.",
        )


def _size(content: dict[str, Any]) -> Iterator[Finding]:
    if content["images"] < FEW:
        yield Finding(
            "few-images", "amber", f"{content['images']} images: differences of a few points are within the intervals."
        )


def _active(checks: list[dict[str, Any]]) -> Iterator[Finding]:
    for row in checks:
        check, n = row["check"], row.get("n", 0)
        if check == "not-repeatable" and row["different"]:
            yield Finding(
                check,
                "red",
                f"Two identical runs gave different answers for {row['different']} of {n} images: the defence keeps hidden state.",
            )
        elif check == "probabilities" and row["probabilities"]:
            yield Finding(
                check,
                "amber",
                "The classifier's outputs are probabilities. Attacks expect logits: a saturated softmax has no gradient. Return logits.",
            )
        elif check == "saturation" and row["share"] > SATURATED:
            yield Finding(
                check,
                "amber",
                f"{row['share']:.0%} of the pixels end at the edge of the purifier's ball, where exact clips have no gradient. Attack "
                "with straight-through clips, or a wider ball (ball_scale).",
            )
        elif check == "large-budget" and row["accuracy"] > LARGE_BUDGET:
            yield Finding(
                check,
                "red",
                f"At {row['radius']}, where nothing can hold, {row['attack']} still leaves {row['accuracy']:.0%} of {n} images: it "
                "does not work.",
            )
        elif (
            check == "noise-suffices"
            and row["noise"] - row["attacked"] < POINT
            and row["attacked"] < row["clean"] - POINT
        ):
            yield Finding(
                check, "red", f"Random noise at {row['radius']} breaks as many of {n} images as {row['attack']} does."
            )
        elif check == "planted-missed" and row["found"] < FOUND * n:
            yield Finding(
                check,
                "red" if 2 * row["found"] < n else "amber",
                f"{row['attack']} finds {row['found']} of {n} adversarial examples that were planted at {row['radius']}"
                + (f", random points {row['at_random']}" if row["at_random"] else "")
                + ": where it finds none there may be some.",
            )
        elif check == "draws-disagree" and row["cosine"] < DISAGREEING:
            yield Finding(
                check,
                "amber",
                f"{row['attack']}: two gradients, each averaged over {row['draws']} draws, have a cosine of {row['cosine']:.2f}: the "
                "attack follows the noise of its draws. Raise eot.",
            )
        elif check == "slope-differs" and row["cosine"] < ALIKE:
            yield Finding(
                check,
                "amber",
                f"{row['attack']}: along random directions the defence changes otherwise than the gradient says (mean cosine "
                f"{row['cosine']:.2f}): the attack follows the slope of something else. Take another gradient mode.",
            )
        elif check == "rounding" and row["restored"] >= max(2, POINT * n):
            yield Finding(
                check,
                "amber",
                f"Rounded to whole grey levels, as image files hold them, {row['restored']} of {n} images that {row['attack']} breaks "
                f"at {row['radius']} are right again.",
            )
        elif check in ("more-steps", "more-draws", "more-restarts") and row["fallen"] >= 2:
            what = check.removeprefix("more-")
            yield Finding(
                check,
                "amber",
                f"{row['attack']} with {row['factor']} times the {what} breaks {row['fallen']} more of {n} images at {row['radius']}: "
                "it has not converged.",
            )
