"""A claim in the field names of RobustBench's model_info files, as far as a run can know them.

Accuracies there are strings in per cent, budgets strings such as "8/255". What only the authors know (link, authors, venue,
additional_data) is left for them to add. A number is called `autoattack_acc` only if it is AutoAttack's, in the standard version
and on the very images that the clean accuracy is of; the worst case over all attacks is `reported`, and `external` as well where
it is lower than AutoAttack's. RobustBench takes no random and no test-time-optimising defences: a purifier's entry is for
comparison, and its footnote says so.
"""

from __future__ import annotations

from typing import Any

from robustmim.config import EvaluateRecipe
from robustmim.purify.traits import Traits


def _percent(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.2f}"


def _auto_attack(content: dict[str, Any], recipe: EvaluateRecipe, radius: str, defence: str) -> dict[str, Any] | None:
    standard = {a.name for a in recipe.attacks if a.attack == "auto-attack" and a.options.get("version") == "standard"}
    if content["draws"] > 1:
        return None  # of a random defence it takes a single lucky draw for a break
    for row in content["cells"]:
        if row["attack"] in standard and (row["radius"], row["defence"], row["n"]) == (
            radius,
            defence,
            content["images"],
        ):
            found: dict[str, Any] = row
            return found
    return None


def robustbench_entry(
    content: dict[str, Any], recipe: EvaluateRecipe, *, architecture: str, traits: Traits | None
) -> dict[str, Any]:
    """Return what RobustBench would print of a claim, at its largest budget.

    Args:
        content: the claim.
        recipe: what was run.
        architecture: of the classifier.
        traits: of the purifier, or None.
    """
    defence, worst = "bare" if traits is None else "purified", content["worst_case"]
    clean = next(row for row in content["cells"] if (row["attack"], row["defence"]) == ("none", defence))
    entry: dict[str, Any] = {
        "name": content["classifier"] + ("" if traits is None else f", {content['purifier']}"),
        "dataset": recipe.data.name,
        "architecture": architecture,
        "number_forward_passes": 1 if traits is None else 1 + traits.steps,
        "clean_acc": _percent(clean),
        "unreliable": any(finding["level"] == "red" for finding in content["findings"]),
    }
    notes = [f"{recipe.norm}, {content['images']} images of {content['data']}, seed {content['seed']}."]
    if worst is not None:
        entry |= {"eps": worst["radius"], "reported": _percent(worst)}
        notes.append(
            f"Reported is the worst case over the attacks {', '.join(content['protocol'])}, image by image, of {worst['n']} "
            f"images; 95 % interval {100 * worst['low']:.1f} to {100 * worst['high']:.1f}."
        )
        automatic = _auto_attack(content, recipe, worst["radius"], defence)
        if automatic is not None:
            entry["autoattack_acc"] = _percent(automatic)
            if worst["accuracy"] < automatic["accuracy"]:
                entry["external"] = _percent(worst)
    if traits is not None and (traits.randomised or traits.optimises_at_test_time):
        what = " and ".join(["random"] * traits.randomised + ["optimises at test time"] * traits.optimises_at_test_time)
        notes.append(f"The defence is {what}, which RobustBench does not admit: no rank is claimed.")
    return entry | {"footnote": " ".join(notes)}
