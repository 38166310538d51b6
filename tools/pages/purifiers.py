"""The table purifier × attack: the same short attacks on every purifier, one section for each classifier."""

from __future__ import annotations

from pages.words import claims, newest_record, percent

CLASSIFIERS = {
    "fast-cnn-cifar10": "our classifier (fast-cnn-cifar10)",
    "resnet56": "the third-party ResNet-56",
    "fast-cnn-adversarial-cifar10": "our adversarially trained classifier (fast-cnn-adversarial-cifar10)",
}
WEAK = ("transfer-wins", "loss-not-rising")
"""Checks by which the attacks through the purifier are seen not to work, so that less holds than is written."""
ATTACKS = {"gray-box": "gray box", "full gradient": "gradient as published", "smooth gradient": "smooth gradient"}


def counted() -> dict[str, dict]:
    """Return the newest record of what each purifier costs, by the name of its recipe."""
    found = newest_record("purifiers")
    return found[1]["results"] if found else {}


def failed(claim: dict) -> list[str]:
    """Return the checks by which a row's attacks do not work, as links."""
    red = [finding for finding in claim["findings"] if finding["level"] == "red" and finding["check"] in WEAK]
    return list(dict.fromkeys(f"[{one['check']}]({one['link'].removeprefix('docs/')})" for one in red))


def row_of(name: str, claim: dict, cost: dict | None) -> tuple[tuple[bool, float], list[str]]:
    """Return what rows are ordered by, the shorter attacks last and the higher worst case first, and the cells of a row."""
    defence = "purified" if claim["purifier"] else "bare"
    cells = {(row["attack"], row["defence"]): row for row in claim["cells"]}
    passes = f"{cost['forward']:g} + {cost['backward']:g}" if cost else ""
    if cost and cost["classifier_forward"]:
        passes += f", classifier {cost['classifier_forward']:g} + {cost['classifier_backward']:g}"
    worst = claim["worst_cases"][-1]
    # The claim's own times are of runs beside other work.
    spent = f"{cost['ms_an_image']:.1f}" if cost else ""
    shorter = "steps 5" in claim["protocol"]["full gradient"]
    found = [name + " ‡" * shorter, claim["purifier"] or "", percent(cells["none", defence])]
    found += [percent(cells.get((attack, defence))) for attack in ATTACKS]
    found += [f"**{'≤ ' if failed(claim) else ''}{percent(worst)}**", spent, passes]
    return (shorter, -worst["accuracy"]), found


def purifier_table() -> str:
    """Return all sections; "" if nothing has been measured."""
    costs, sections = counted(), []
    for short, title in CLASSIFIERS.items():
        found = [(folder.name.removeprefix(f"{short}--"), claim) for folder, claim in claims(f"table/{short}--*")]
        if not found:
            continue
        first = found[0][1]
        radius = first["worst_cases"][-1]["radius"]
        rows = sorted((row_of(name, claim, costs.get(name)) for name, claim in found), key=lambda row: row[0])
        draws = max(claim["draws"] for _, claim in found)
        hardware = ", ".join(sorted({claim["environment"]["hardware"] for _, claim in found}))
        sections += [
            f"### In front of {title}, ε = {radius}",
            "",
            "| recipe | | no attack | " + " | ".join(ATTACKS.values()) + " | worst case | ms an image | passes |",
            "|---" * 9 + "|",
            *("| " + " | ".join(cells) + " |" for _, cells in rows),
            "",
            f"{first['data']}, n = {first['images']}, l∞, seed {first['seed']}, two sets of {draws} fresh draws where anything is "
            f"drawn (mean); {hardware}, one thread.",
            "",
        ]
        weak = [f"{name} ({', '.join(failed(claim))})" for name, claim in found if failed(claim)]
        if weak:
            sections += [f"*≤*: {'; '.join(weak)}.", ""]
    if not sections:
        return ""
    head = [
        "The same short attacks on each. *Gray box*: PGD-20 on the bare classifier. *Gradient as published*: PGD-10 through the "
        "purifier, two draws a step, by the exact gradient of what is computed: AMRM-Pure's protocol with fewer steps and draws "
        "(there 200 and 20); for a descent by signs that is the identity but for its clips, and JPEG's rounding, whose own is zero, is "
        "passed straight through. *Smooth gradient*: the same by tanh in the place of a sign, by a cubic in that of JPEG's rounding; "
        "where nothing is flat it is the same gradient. *Worst case*: image by "
        "image, the worst of what is there, chosen on one set of draws and scored on the other, so that luck does not count: "
        "where draws are few it can lie a little above a single column. *‡*: many passes, so PGD-5 and one draw a step, and no "
        "smooth gradient where nothing is flat; not to be ranked with the others. *≤*: the checks see that attacks by gradient do "
        "not work there, so what stands there is an upper bound, and by how much is not known. Short attacks compare purifiers; they are no verdict, which the suites above give. "
        "Generators and masked models are small ones of our own, trained for minutes: rows are methods on those, not the papers' "
        "numbers. *ms*: of purifying, at batch 32 before our classifier, one thread of a calm machine (`benchmarks/purifiers.py`). "
        "*Passes*: of the network, forward + backward, for each image. `results/table.sh`",
        "",
    ]
    return "\n".join(head + sections)
