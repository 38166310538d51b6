"""The sections of an evaluation: verdict, pictures, curves, table, and how to read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from robustmim.radius import Radius
from robustmim.report.figures import BarPlot, Bars, Line, LinePlot, Tone, percent
from robustmim.report.pictures import picture_sections
from robustmim.report.reading import read_examples, read_record, reading
from robustmim.report.sections import (
    AccuracyTable,
    Charts,
    Facts,
    Finding,
    Headline,
    Level,
    Prose,
    Section,
    Share,
    Verdict,
)

REMEDY = "run the evaluation again"
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}
# (attack, defence) → what the reader is told; the order is that of the table's columns and of the legend.
CURVES: dict[tuple[str, str], tuple[str, Tone]] = {
    ("gray-box", "bare"): ("No purifier", "neutral"),
    ("gray-box", "purified"): ("Purified, gray box", "blue"),
    ("white-box", "purified"): ("Purified, white box", "vermillion"),
}
GRAY_BOX = (
    "Gray box: the attack is made on the bare classifier, and its result is then purified. The attacker knows the "
    "classifier but not the purifier, so these accuracies say nothing about an attacker who does."
)
WHITE_BOX = (
    "White box: the attacker knows the purifier, but attacks through it with the identity as its gradient. That is an "
    "approximation, and a weak one: the accuracy found is an upper bound, not a claim of robustness. Stronger attacks "
    "(exact gradients, more steps, more draws) can only lower it."
)


def evaluation_sections(folder: Path) -> list[Section]:
    """Return the sections of a finished evaluation; several can share a page.

    Args:
        folder: holds claim.json; and examples.safetensors, without which (published results leave it out) there are no
            pictures.

    Raises:
        InputError: a file is missing or damaged.
    """
    path = folder / "claim.json"
    claim = read_record(path, REMEDY)
    pictures = folder / "examples.safetensors"
    examples = read_examples(pictures) if pictures.exists() else None
    with reading(path, REMEDY):
        sections: list[Section] = [_verdict(claim)]
    if examples is not None:
        with reading(pictures, REMEDY):
            sections += picture_sections(examples, attack=_shown(claim))
    with reading(path, REMEDY):
        sections += _accuracy(claim)
        sections += _per_class(claim, "" if examples is None else examples.radius)
        sections += _traces(claim)
        sections += _reading(claim)
    return sections


def share_of(row: dict[str, Any]) -> Share:
    """Read an accuracy of a claim."""
    return Share(
        accuracy=float(row["accuracy"]),
        low=float(row["low"]),
        high=float(row["high"]),
        correct=float(row["correct"]),
        n=int(row["n"]),
    )


def finding_of(found: dict[str, str]) -> Finding:
    """Read a finding of a claim.

    Raises:
        ValueError: a level there is not.
    """
    level = found["level"]
    if level not in get_args(Level):
        raise ValueError(f"a finding is red, amber or green, not {level!r}")
    return Finding(cast(Level, level), found["sentence"])


def _cells(claim: dict[str, Any]) -> dict[tuple[str, float, str], Share]:
    return {(row["attack"], float(Radius(row["radius"])), row["defence"]): share_of(row) for row in claim["cells"]}


def _verdict(claim: dict[str, Any]) -> Verdict:
    cells, worst = _cells(claim), claim.get("worst_case")
    purified = claim["purifier"] is not None
    headlines = []

    def add(label: str, attack: str, radius: float) -> None:
        bare = cells.get((attack, radius, "bare"))
        own = cells.get((attack, radius, "purified")) if purified else bare
        if own:
            note = f"{percent(bare.accuracy)} without the purifier" if purified and bare else ""
            headlines.append(Headline(label, own, note))

    add("Clean images", "none", 0.0)
    if worst:
        add(f"Gray-box attack, ε {worst['radius']}", "gray-box", float(Radius(worst["radius"])))
        # Only where attacks were combined does the worst case say more than the gray box has said.
        if any(row["attack"] not in ("none", "gray-box") for row in claim["cells"]):
            counts = {"correct": round(worst["accuracy"] * claim["images"]), "n": claim["images"]} | worst
            headlines.append(
                Headline(
                    f"Worst case, ε {worst['radius']}",
                    share_of(counts),
                    "the worst attack for each image; an upper bound",
                )
            )
    norm = NORMS.get(claim["norm"], claim["norm"])
    return Verdict(
        title="Verdict",
        facts=(
            ("Classifier", claim["classifier"]),
            ("Purifier", claim["purifier"] or "none"),
            ("Data", f"{claim['data']}, {claim['images']} images"),
            ("Attacks", f"{norm}, seed {claim['seed']}"),
        ),
        headlines=tuple(headlines),
        findings=tuple(
            sorted(map(finding_of, claim["findings"]), key=lambda found: get_args(Level).index(found.level))
        ),
        note="Gray box: the attacker does not know of the purifier."
        if purified and any(attack == "gray-box" for attack, _, _ in cells)
        else "",
    )


def _accuracy(claim: dict[str, Any]) -> list[Section]:
    if {row["attack"] for row in claim["cells"]} - {attack for attack, _ in CURVES} - {"none"}:
        return _suite(claim)
    cells = _cells(claim)
    radii = sorted({radius for _, radius, _ in cells})
    names = {float(Radius(row["radius"])): str(row["radius"]) for row in claim["cells"]} | {0.0: "0"}
    lines, columns = [], []
    for (attack, defence), (label, tone) in CURVES.items():
        own = {radius: cells.get((attack if radius else "none", radius, defence)) for radius in radii}
        found = {radius: share for radius, share in own.items() if share}
        if any(found):  # a budget above zero
            x, shares = tuple(found), tuple(found.values())
            low, high = tuple(share.low for share in shares), tuple(share.high for share in shares)
            lines.append(Line(label, tone, x, tuple(share.accuracy for share in shares), low, high))
            columns.append((label, own if attack == "gray-box" else {**own, 0.0: None}))
    if not lines:
        return []
    norm = NORMS.get(claim["norm"], claim["norm"])
    spoken = "; ".join(
        f"{line.label}: " + ", ".join(f"{percent(y)} at {names[x]}" for x, y in zip(line.x, line.y, strict=True))
        for line in lines
    )
    plot = LinePlot(
        title="Accuracy",
        x_label=f"budget ε ({norm})",
        lines=tuple(lines),
        description=f"Accuracy over the attack's budget. {spoken}.",
        x_ticks=tuple((radius, names[radius]) for radius in radii),
        unit="percent",
        wide=True,
    )
    rows = tuple(
        (names[radius] if radius else "0 (clean)", tuple(own.get(radius) for _, own in columns)) for radius in radii
    )
    return [
        Charts(
            title="Accuracy over the budget",
            lead="An attack that works brings accuracy down to zero as ε grows. A curve that levels off above zero may "
            "show a failing attack rather than a strong defence.",
            plots=(plot,),
            caption="Whiskers: 95 % Wilson intervals.",
        ),
        AccuracyTable(
            title="Every accuracy",
            corner="ε",
            columns=tuple(label for label, _ in columns),
            rows=rows,
            lead="Accuracy, its 95 % Wilson interval in percent, and the images behind it; one that is right in some draws counts in part.",
        ),
    ]


def _suite(claim: dict[str, Any]) -> list[Section]:
    """Return the tables of a suite: attacks by budgets, the worst of them at the bottom, and what each one costs."""
    defence = "purified" if claim["purifier"] is not None else "bare"
    cells, worst = _cells(claim), {float(Radius(row["radius"])): row for row in claim.get("worst_cases", [])}
    names = {float(Radius(row["radius"])): str(row["radius"]) for row in claim["cells"] if row["attack"] != "none"}
    radii, about = sorted(names), claim.get("attacks", {})
    attacks = list(dict.fromkeys(row["attack"] for row in claim["cells"] if row["attack"] != "none"))

    def row(title: str, attack: str, where: str) -> tuple[str, tuple[Share | None, ...]]:
        return title, tuple(cells.get((attack, radius, where)) for radius in radii)

    rows = []
    for attack in attacks:
        own = about.get(attack, {})
        if defence == "purified" and own.get("against") == "classifier":
            rows.append(row(f"{attack}, bare classifier", attack, "bare"))
        drawn = own.get("randomness", "fresh")
        rows.append(row(attack if drawn == "fresh" else f"{attack} (draws {drawn})", attack, defence))
    rows.append(("worst case, sample by sample", tuple(share_of(worst[r]) if r in worst else None for r in radii)))
    sections: list[Section] = [
        AccuracyTable(
            title="Every attack",
            corner="attack",
            columns=tuple(f"ε = {names[radius]}" for radius in radii),
            rows=tuple(rows),
            lead="Accuracy on fresh draws, its 95 % Wilson interval in percent, and the images that faced the attack. The worst "
            "case takes for each image the attack that was worst for it.",
        )
    ]
    sections += _nearest(claim)
    rules = [
        (
            f"{where}, ε {found['radius']}",
            ", ".join(f"{name} {percent(value)}" for name, value in found["rules"].items() if name != "draws"),
        )
        for where, listed in (
            ("Clean, purified", [c for c in claim["cells"] if c["attack"] == "none" and c["defence"] == "purified"]),
            ("Worst case", claim.get("worst_cases", [])),
        )
        for found in listed
        if "rules" in found
    ]
    if rules and claim.get("draws", 1) > 1:
        sections.append(
            Facts(
                "Three rules",
                tuple(rules),
                lead="Mean: share of the fresh draws that are right. Majority: right in more than half, broken only if a second "
                "set of draws confirms it. Worst: right in every draw.",
            )
        )
    costs = {(c["attack"], c["radius"]): c["cost"] for c in claim["cells"] if "cost" in c}
    if costs:
        spent = tuple(
            (
                f"{attack}, ε {radius}",
                f"{c['forward']:.0f} forward, {c['backward']:.0f} backward, {c['seconds']:.2f} s an image",
            )
            for (attack, radius), c in costs.items()
        )
        sections.append(Facts("What each attack cost", spent))
    return sections


def _nearest(claim: dict[str, Any]) -> list[Section]:
    """Return the chart of attacks that look for the nearest adversarial image: accuracy at every budget, from one run."""
    found = claim.get("nearest") or {}
    tones: tuple[Tone, ...] = ("vermillion", "blue", "teal", "purple", "gold", "neutral")
    lines, spoken = [], []
    for tone, (attack, own) in zip(tones, found.items(), strict=False):
        distances, n, last = own["distances"], own["n"], float(Radius(own["radius"]))
        places = [number * last / 40 for number in range(41)]
        shares = [1 - sum(distance <= place + 1e-9 for distance in distances) / n for place in places]
        lines.append(Line(attack, tone, tuple(255 * place for place in places), tuple(shares)))
        half = next((255 * place for place, share in zip(places, shares, strict=True) if share <= shares[0] / 2), None)
        spoken.append(
            f"{attack}: half of the right answers are gone " + (f"at {half:.2f}/255" if half else "nowhere here")
        )
    if not lines:
        return []
    norm = NORMS.get(claim["norm"], claim["norm"])
    return [
        Charts(
            title="How near the nearest adversarial image is",
            lead="; ".join(spoken) + ".",
            plots=(
                LinePlot(
                    title="Accuracy",
                    x_label=f"budget, grey levels of 255 ({norm})",
                    lines=tuple(lines),
                    description=f"Accuracy at every budget, by the distance of the nearest adversarial image. {'; '.join(spoken)}.",
                    unit="percent",
                    wide=True,
                ),
            ),
            caption=f"Of {max(own['n'] for own in found.values())} images. An upper bound, as with every attack.",
        )
    ]


def _shown(claim: dict[str, Any]) -> str:
    """Name the attack that pictures and classes are shown for."""
    attacks = list(dict.fromkeys(row["attack"] for row in claim["cells"] if row["attack"] != "none"))
    return "Gray-box attack" if not attacks or "gray-box" in attacks else f"Attack {attacks[0]}"


def _per_class(claim: dict[str, Any], radius: str) -> list[Section]:
    rows = claim.get("per_class")
    if not rows:
        return []
    kinds: tuple[tuple[str, str, Tone], ...] = (
        ("attacked_bare", "Attacked, no purifier", "neutral"),
        ("attacked_purified", "Attacked, purified", "blue"),
    )
    # Without a purifier nothing was purified, and the tally of nothing is not an accuracy of zero.
    kinds = kinds if claim["purifier"] is not None else kinds[:1]
    bars = tuple(Bars(label, tone, tuple(float(row[key]) for row in rows)) for key, label, tone in kinds)
    spoken = "; ".join(f"{row['class']} {percent(row[kinds[-1][0]])}" for row in rows)
    plot = BarPlot(
        title="Accuracy, %",
        categories=tuple(str(row["class"]) for row in rows),
        bars=bars,
        mark=Bars("Clean, no purifier", "neutral", tuple(float(row["clean"]) for row in rows)),
        description=f"Accuracy by class. {kinds[-1][1]}: {spoken}.",
    )
    return [
        Charts(
            title="Class by class",
            lead=f"{_shown(claim)} at ε {radius}." if radius else f"{_shown(claim)}, at the middle budget.",
            plots=(plot,),
            caption="Each class has a part of the images only: differences of several points may be chance.",
        )
    ]


def _traces(claim: dict[str, Any]) -> list[Section]:
    trace = claim.get("trace") or {}
    fine = claim["norm"] == "linf"
    curves = (
        ("loss", "Reconstruction loss", 1.0, False),
        ("distance", f"Distance moved, {'grey levels of 255' if fine else 'ℓ2'}", 255.0 if fine else 1.0, True),
        ("saturation", "Share at the edge of the η-ball", 1.0, True),
        ("amv", "Attention matrix variation", 1.0, True),
    )
    images: tuple[tuple[str, str, Tone], ...] = (
        ("clean", "Clean image", "neutral"),
        ("attacked", "Attacked image", "blue"),
    )
    plots = []
    for name, title, scale, from_zero in curves:
        lines = tuple(
            Line(label, tone, tuple(map(float, range(len(values)))), tuple(scale * float(value) for value in values))
            for which, label, tone in images
            if (values := (trace.get(which) or {}).get(name))
        )
        if not lines:
            continue
        spoken = "; ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
        unit, description = "percent" if name == "saturation" else "number", f"{title} over the steps. {spoken}."
        plots.append(
            LinePlot(
                title,
                "purification step",
                lines,
                description,
                unit="percent" if unit == "percent" else "number",
                from_zero=from_zero,
            )
        )
    if not plots:
        return []
    return [
        Charts(
            title="Inside the purification",
            lead="Averages over the first images of the data set, before each step, for clean and gray-box attacked images.",
            plots=tuple(plots),
        )
    ]


def _reading(claim: dict[str, Any]) -> list[Section]:
    purified = claim["purifier"] is not None
    attacks = {row["attack"] for row in claim["cells"]}
    texts = []
    if purified:
        texts.append(GRAY_BOX)
        if "white-box" in attacks:
            texts.append(WHITE_BOX)
    texts.append(
        "Intervals are 95 % Wilson intervals: they hold what the choice of images can change, not what other attacks, "
        "seeds or data would."
    )
    times = claim.get("milliseconds_per_image") or {}
    names = {"classify": "Classify", "purify": "Purify"}
    items = [(names.get(what, what), f"{value:,.1f} ms an image") for what, value in times.items()]
    if times.get("classify") and times.get("purify"):
        items.append(("Purification costs", f"{times['purify'] / times['classify']:,.0f} classifications"))
    protocol = tuple((name.replace("-", " ").capitalize(), str(text)) for name, text in claim["protocol"].items())
    left_out = claim.get("left_out") or {}
    protocol += tuple((name.replace("-", " ").capitalize(), f"left out: {why}") for name, why in left_out.items())
    sections: list[Section] = [Prose("How to read these numbers", "\n\n".join(texts))]
    if items:
        sections.append(Facts("Cost", tuple(items), tiles=True))
    if protocol:
        sections.append(Facts("Protocol", protocol))
    return sections
