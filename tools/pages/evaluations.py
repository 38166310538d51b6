"""docs/evaluations.md: a table for each evaluation and each certification."""

from __future__ import annotations

from pathlib import Path

from pages.words import budget, claims, hardware, percent

HEAD = """# Every evaluation

One table for each folder of `results/`, which is named at its end and holds the claim, the records of every sample and the command that
makes them again. What is to be learnt from them is in [results](results.md); this page is written by `python tools/results_page.py`.
Accuracies in percent, 95 % Wilson intervals in brackets.

*Bare*: the attacked classifier alone. *Gray box*: images attacked on the bare classifier, then purified; the attacker does
not know of the purifier. *White box*: PGD + EOT through the purifier with the identity as its gradient, verdict on fresh
draws: the weakest attack that knows it, so an upper bound. Nothing here is a claim of robustness.
"""


def evaluations() -> str:
    """Return the page: data set by data set, the tables in the order of their folders' names."""
    parts: dict[str, list[str]] = {}
    for folder, claim in claims("*"):
        if "score" in claim:  # a detector, which results.md has
            continue
        write = certificate if "certified" in claim else table
        parts.setdefault(claim["data"], []).append(write(claim, folder))
    sections = (f"## {data}\n\n" + "\n\n".join(tables) for data, tables in parts.items())
    return HEAD + "\n" + "\n\n".join(sections) + "\n"


def suite(claim: dict, folder: Path) -> str:
    """Return the table of a suite: attacks by budgets, the worst case at the bottom."""
    defence = "purified" if claim["purifier"] else "bare"
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    radii = list(dict.fromkeys(row["radius"] for row in claim["cells"] if row["attack"] != "none"))
    lines = [
        f"### {claim['classifier']}, {claim['purifier'] or 'no purifier'}",
        "",
        "| attack | clean | "
        + " | ".join(f"ε = {budget(claim, radius)}" for radius in radii)
        + " | passes forward + backward, seconds |",
        "|---" * (len(radii) + 3) + "|",
    ]
    for where in ("bare", "purified")[: 2 if claim["purifier"] else 1]:
        clean = cells["none", "0", where]
        lines.append(
            "| " + " | ".join([f"none, {where} (n = {clean['n']})", percent(clean), *("" for _ in radii), ""]) + " |"
        )
    for attack in dict.fromkeys(row["attack"] for row in claim["cells"] if row["attack"] != "none"):
        found = [cells.get((attack, radius, defence)) for radius in radii]
        counts = sorted({row["n"] for row in found if row})
        cost = next((row["cost"] for row in found if row and "cost" in row), None)
        cost = cost or next((r["cost"] for r in claim["cells"] if r["attack"] == attack and "cost" in r), None)
        spent = f"{cost['forward']:.0f} + {cost['backward']:.0f}, {cost['seconds']:.2f} s" if cost else ""
        of = ", ".join(map(str, counts))
        named = f"{attack} (n = {of})" if counts[-1] == claim["images"] else f"{attack} (of the {of} left standing)"
        lines.append("| " + " | ".join([named, "", *map(percent, found), spent]) + " |")
    worst = {row["radius"]: row for row in claim["worst_cases"]}
    lines.append(
        "| " + " | ".join(["**worst case**", "", *(percent(worst.get(radius)) for radius in radii), ""]) + " |"
    )
    rules = [row for row in claim["worst_cases"] if "rules" in row and claim["draws"] > 1]
    if rules:
        said = "; ".join(
            f"{row['radius']}: mean {row['rules']['mean']:.1%}, majority {row['rules']['majority']:.1%}, every draw "
            f"{row['rules']['worst']:.1%}"
            for row in rules
        )
        lines += ["", f"Worst case under the three rules, two sets of {claim['draws']} fresh draws: {said}."]
    lines += ["", f"{claim['norm']}, seed {claim['seed']}, {hardware(claim)}; costs per image that faced the attack. "]
    lines[-1] += "; ".join(f"{name}: {text}" for name, text in claim["protocol"].items()) + f". `results/{folder.name}`"
    for finding in claim["findings"]:
        lines += ["", f"*{finding['level']}*: {finding['sentence']}"]
    return "\n".join(lines)


def table(claim: dict, folder: Path) -> str:
    if {row["attack"] for row in claim["cells"]} - {"none", "gray-box", "white-box"}:
        return suite(claim, folder)
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    radii = [row["radius"] for row in claim["cells"] if row["attack"] == "gray-box" and row["defence"] == "bare"]
    lines = [
        f"### {claim['classifier']}, {claim['purifier'] or 'no purifier'}",
        "",
        "| " + " | ".join(["", "clean", *(f"ε = {budget(claim, radius)}" for radius in radii)]) + " |",
        "|---" * (len(radii) + 2) + "|",
    ]
    rows = [("bare", "gray-box", "bare"), ("gray box, purified", "gray-box", "purified")]
    rows += [("white box, identity gradient", "white-box", "purified")]
    for title, attack, defence in rows:
        found = [cells.get((attack, radius, defence)) for radius in radii]
        if not any(found):
            continue
        clean = cells.get(("none", "0", defence)) if attack == "gray-box" else None
        count = {row["n"] for row in found if row}
        lines.append("| " + " | ".join([f"{title} (n = {max(count)})", percent(clean), *map(percent, found)]) + " |")
    cost = claim["milliseconds_per_image"]
    speed = ", ".join(f"{what} {value:.1f} ms" for what, value in cost.items())
    lines += ["", f"An image: {speed} ({hardware(claim)}). Attacks, {claim['norm']}, seed {claim['seed']}: "]
    lines[-1] += "; ".join(f"{name}: {text}" for name, text in claim["protocol"].items()) + f". `results/{folder.name}`"
    return "\n".join(lines)


def certificate(claim: dict, folder: Path) -> str:
    """Return the table of a certification: no attack can lower these numbers."""
    rows = claim["certified"]
    lines = [
        f"### Certified: {claim['classifier']}, {claim['purifier'] or 'no purifier'}, σ = {claim['sigma']:g}",
        "",
        "| most frequent class is right | abstained | "
        + " | ".join(f"certified beyond l2 {row['radius']:g}" for row in rows)
        + " | mean radius |",
        "|---" * (len(rows) + 3) + "|",
        "| "
        + " | ".join([percent(claim["smoothed"]), percent(claim["abstained"]), *map(percent, rows)])
        + f" | {claim['mean_radius']:.3f} |",
        "",
        f"n = {claim['images']}, {claim['selection_draws']} + {claim['draws']} draws, α = {claim['alpha']:g}, seed "
        f"{claim['seed']}, {claim['milliseconds_per_image']:.0f} ms an image ({claim['environment']['hardware']}). "
        f"{claim['guarantee']} `results/{folder.name}`",
    ]
    for finding in claim["findings"]:
        lines += ["", f"*{finding['level']}*: {finding['sentence']}"]
    return "\n".join(lines)
