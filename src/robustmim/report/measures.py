"""The sections of what is measured without an attack suite: certificates, corruptions, and curves over one setting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from robustmim.radius import Radius
from robustmim.report.evaluation import NORMS, finding_of, share_of
from robustmim.report.figures import TONES, BarPlot, Bars, Line, LinePlot, Tone, percent
from robustmim.report.reading import read_record, reading
from robustmim.report.sections import AccuracyTable, Charts, Facts, Finding, Headline, Prose, Section, Share, Verdict

REMEDY = "run the command again, with the same --out"
DEFENCES: dict[str, tuple[str, Tone]] = {"bare": ("No purifier", "neutral"), "purified": ("Purified", "blue")}


def _findings(claim: dict[str, Any]) -> tuple[Finding, ...]:
    return tuple(finding_of(found) for found in claim["findings"])


def _subject(claim: dict[str, Any], *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (
        ("Classifier", claim["classifier"]),
        ("Purifier", claim["purifier"] or "none"),
        ("Data", f"{claim['data']}, {claim['images']} images"),
        *more,
    )


def certificate_sections(folder: Path) -> list[Section]:
    """Return the sections of certificates by randomised smoothing.

    Args:
        folder: holds claim.json.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "claim.json"
    claim = read_record(path, REMEDY)
    with reading(path, REMEDY):
        certified = {row["radius"]: share_of(row) for row in claim["certified"]}
        attacked = {
            float(Radius(row["radius"])): share_of(row) for row in claim.get("empirical", {}).get("accuracies", [])
        }
        smoothed = share_of(claim["smoothed"])
        shown = max((radius for radius, share in certified.items() if radius > 0 and share.correct), default=0.0)
        verdict = Verdict(
            title="Verdict",
            facts=_subject(claim, ("Smoothing", f"σ {claim['sigma']:g}, {claim['draws']} draws, seed {claim['seed']}")),
            headlines=(
                Headline("Most frequent class is right", smoothed, "without any guarantee"),
                Headline("Right and certified", certified[0.0], "for some radius above zero"),
                Headline(f"Certified beyond ℓ2 {shown:g}", certified[shown], "right, and no later attack can lower it"),
            )[: 3 if shown else 2],
            findings=_findings(claim),
            note=claim["guarantee"],
        )
        sections: list[Section] = [verdict, _certified_curve(claim, attacked)]
        columns = ("Certified",) + (("Left by attacks",) if attacked else ())
        radii = sorted(certified.keys() | attacked.keys())
        rows = tuple((f"{radius:g}", (certified.get(radius), attacked.get(radius))[: len(columns)]) for radius in radii)
        sections.append(
            AccuracyTable(
                title="Every radius",
                corner="ℓ2 radius",
                columns=columns,
                rows=rows,
                lead="Share of the images whose class is right and holds beyond the radius, its 95 % Wilson interval in percent, "
                "and the images behind it.",
            )
        )
        milliseconds = claim["milliseconds_per_image"]
        sections += [
            Facts(
                "In figures",
                (
                    ("Mean certified radius", f"{claim['mean_radius']:.3f}"),
                    ("Largest radius these draws allow", f"{claim['largest_radius']:.3f}"),
                    ("Abstained", percent(claim["abstained"]["accuracy"])),
                    ("Time", f"{milliseconds / 1000:.2f} s an image" if milliseconds else "not measured"),
                ),
                tiles=True,
            ),
            Prose("How to read these numbers", _reading_of_certificates(claim)),
        ]
    return sections


def _certified_curve(claim: dict[str, Any], attacked: dict[float, Share]) -> Charts:
    radii, n = claim["curve"], claim["images"]
    x, y = [0.0], [len(radii) / n]
    for place, radius in enumerate(radii):  # ascending: beyond each of them one image less holds
        x += [radius, radius]
        y += [(len(radii) - place) / n, (len(radii) - place - 1) / n]
    end = max([claim["largest_radius"], *x, *attacked])
    lines = [Line("Certified", "blue", (*x, end), (*y, y[-1]))]
    if attacked:
        shares = tuple(attacked.values())
        low, high = tuple(share.low for share in shares), tuple(share.high for share in shares)
        accuracies = tuple(share.accuracy for share in shares)
        lines.append(Line("Left by attacks", "vermillion", tuple(attacked), accuracies, low, high))
    spoken = ", ".join(f"{percent(row['accuracy'])} beyond {row['radius']:g}" for row in claim["certified"])
    return Charts(
        title="Certified accuracy over the radius",
        lead="The curve ends where the number of draws or the noise can certify no more."
        + (" Between it and what attacks have left lies what nobody knows." if attacked else ""),
        plots=(
            LinePlot(
                title="Accuracy",
                x_label="ℓ2 radius, pixels in [0, 1]",
                lines=tuple(lines),
                description=f"Certified accuracy over the radius: {spoken}.",
                unit="percent",
                wide=True,
            ),
        ),
        caption="Whiskers: 95 % Wilson intervals." if attacked else "",
    )


def _reading_of_certificates(claim: dict[str, Any]) -> str:
    texts = [
        "A certificate is about the smoothed classifier: the class most often given to an image with Gaussian noise. It does not "
        "say how the classifier answers without noise, and holds in ℓ2 alone.",
        "Certified accuracy is a lower bound and attacks give an upper one. A low certified accuracy does not mean that an attack "
        "exists, and a high one under attack does not mean that none does.",
    ]
    if "empirical" in claim:
        texts.append(f"Left by attacks: {claim['empirical']['of']}, which answers without noise.")
    return "\n\n".join(texts)


def corruption_sections(folder: Path) -> list[Section]:
    """Return the sections of accuracies under common corruptions.

    Args:
        folder: holds claim.json.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "claim.json"
    claim = read_record(path, REMEDY)
    with reading(path, REMEDY):
        cells = {(row["corruption"], row["severity"], row["defence"]): share_of(row) for row in claim["cells"]}
        names, severities, defences = claim["corruptions"], claim["severities"], list(claim["summary"])
        last = defences[-1]
        hardest = min(names, key=lambda name: cells[name, severities[-1], last].accuracy)
        headlines = []
        for label, cell in (
            ("Clean images", ("none", 0)),
            (f"Hardest: {_words(hardest)}, severity {severities[-1]}", (hardest, severities[-1])),
        ):
            bare = cells[(*cell, "bare")]
            note = f"{percent(bare.accuracy)} without the purifier" if last == "purified" else ""
            headlines.append(Headline(label, cells[(*cell, last)], note))

        def mean(name: str, defence: str) -> float:
            return sum(cells[name, severity, defence].accuracy for severity in severities) / len(severities)

        bars = tuple(Bars(*DEFENCES[defence], tuple(mean(name, defence) for name in names)) for defence in defences)
        spoken = "; ".join(f"{_words(name)} {percent(mean(name, last))}" for name in names)
        plots: list[LinePlot | BarPlot] = []
        if len(severities) > 1:
            plots.append(_over_severities(cells, names, severities, defences))
        plots.append(
            BarPlot(
                title="Accuracy by corruption, %",
                categories=tuple(map(_words, names)),
                bars=bars,
                description=f"Accuracy by corruption, mean over severities. {DEFENCES[last][0]}: {spoken}.",
            )
        )
        tiles = []
        for defence in defences:
            found, what = claim["summary"][defence], f", {DEFENCES[defence][0].lower()}" if len(defences) > 1 else ""
            tiles.append((f"Mean corruption error{what}", percent(found["mean_corruption_error"])))
            tiles.append((f"Above the clean error{what}", percent(found["relative_mean_corruption_error"])))
            if "mCE" in found:
                tiles.append((f"mCE{what}", percent(found["mCE"])))
            if "relative_mCE" in found:
                tiles.append((f"Relative mCE{what}", percent(found["relative_mCE"])))
        lead = (
            f"mCE: errors over those of {claim['baseline']}; above 100 % is worse than it."
            if "baseline" in claim
            else "Not divided by the errors of a baseline."
        )
        columns = tuple(DEFENCES[defence][0] for defence in defences)
        places = [("none", 0), *((name, severity) for name in names for severity in severities)]
        rows = tuple(
            (
                f"{_words(name)} {severity}" if severity else "clean",
                tuple(cells[name, severity, defence] for defence in defences),
            )
            for name, severity in places
        )
        return [
            Verdict(
                "Verdict",
                _subject(claim, ("Severities", f"{', '.join(map(str, severities))}; seed {claim['seed']}")),
                tuple(headlines),
                _findings(claim),
            ),
            Facts("Mean errors", tuple(tiles), lead=lead, tiles=True),
            Charts(
                title="What each corruption costs",
                plots=tuple(plots),
                lead=f"Means over {len(names)} corruptions, and by corruption over the severities.",
            ),
            AccuracyTable(
                title="Every accuracy",
                corner="corruption",
                columns=columns,
                rows=rows,
                lead="Accuracy, its 95 % Wilson interval in percent, and the images behind it.",
            ),
        ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _over_severities(
    cells: dict[tuple[str, int, str], Share], names: list[str], severities: list[int], defences: list[str]
) -> LinePlot:
    def mean(severity: int, defence: str) -> float:
        if severity == 0:
            return cells["none", 0, defence].accuracy
        return sum(cells[name, severity, defence].accuracy for name in names) / len(names)

    places = [0, *severities]
    lines = tuple(
        Line(*DEFENCES[defence], tuple(map(float, places)), tuple(mean(severity, defence) for severity in places))
        for defence in defences
    )
    spoken = "; ".join(
        f"{line.label}: " + ", ".join(f"{percent(y)} at {x:g}" for x, y in zip(line.x, line.y, strict=True))
        for line in lines
    )
    return LinePlot(
        title="Mean accuracy over the corruptions",
        x_label="severity (0: clean)",
        lines=lines,
        description=f"Mean accuracy over the severity. {spoken}.",
        x_ticks=tuple((float(place), str(place)) for place in places),
        unit="percent",
        wide=True,
    )


OVER = {
    "radius": "budget ε",
    "attack-steps": "steps of the attack",
    "eot": "draws the attack averages over (EOT)",
    "purification-steps": "steps of the purifier",
}


def curve_sections(folder: Path) -> list[Section]:
    """Return the sections of a curve: accuracy over the one thing that changes from point to point.

    Args:
        folder: holds curve.json.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "curve.json"
    found = read_record(path, REMEDY)
    with reading(path, REMEDY):
        points = found["points"]
        texts = tuple(str(point["value"]) for point in points)
        budget = found["over"] == "radius"
        # Steps and draws are doubled from point to point: they stand side by side, budgets at their own places.
        places = tuple(float(Radius(text)) if budget else float(i) for i, text in enumerate(texts))
        tables: dict[str, list[Share | None]] = {}
        for number, point in enumerate(points):
            for row in point["cells"]:
                column = tables.setdefault(_column(row, found["purifier"] != "none"), [None] * len(points))
                column[number] = share_of(row)
            if point["worst_case"]:
                tables.setdefault("Worst case", [None] * len(points))[number] = share_of(point["worst_case"])
        if "Worst case" in tables:
            tables = {"Worst case": tables.pop("Worst case")} | tables
        tones: tuple[Tone, ...] = ("vermillion", *(tone for tone in TONES if tone != "vermillion"))
        drawn = {label: shares for label, shares in tables.items() if not label.startswith("Clean")} or tables
        lines: list[Line] = []
        for tone, (label, shares) in zip(tones, drawn.items(), strict=False):
            known = [(x, share) for x, share in zip(places, shares, strict=True) if share]
            line = Line(label, tone, tuple(x for x, _ in known), tuple(share.accuracy for _, share in known))
            if not lines:  # whiskers of all would hide each other
                low, high = tuple(share.low for _, share in known), tuple(share.high for _, share in known)
                line = replace(line, low=low, high=high)
            lines.append(line)
        first = lines[0]
        named = dict(zip(places, texts, strict=True))
        spoken = ", ".join(f"{percent(y)} at {named[x]}" for x, y in zip(first.x, first.y, strict=True))
        norm = NORMS.get(found.get("norm", ""), "")
        label = OVER[found["over"]] + (f" ({norm})" if budget and norm else "")
        left_out = len(drawn) - len(lines)
        return [
            Charts(
                title=f"Accuracy over the {label.partition(' (')[0]}",
                lead=f"{found['classifier']}"
                + (f" behind {found['purifier']}" if found["purifier"] != "none" else ", no purifier")
                + ". "
                + (
                    "A curve that levels off above zero may show a failing attack rather than a strong defence."
                    if budget
                    else "A curve that still falls at its end has not converged: its last point is an upper bound."
                    if found["over"] != "purification-steps"
                    else "Every point is a defence of its own, attacked anew."
                ),
                plots=(
                    LinePlot(
                        title="Accuracy",
                        x_label=label,
                        lines=tuple(lines),
                        description=f"Accuracy over {label}. {first.label}: {spoken}.",
                        x_ticks=tuple(zip(places, texts, strict=True)),
                        unit="percent",
                        wide=True,
                    ),
                ),
                caption=f"Whiskers, {first.label.lower()}: 95 % Wilson intervals."
                + (f" {left_out} more attacks are in the table alone." if left_out else ""),
            ),
            AccuracyTable(
                title="Every accuracy",
                corner="attack",
                columns=texts,
                rows=tuple((label, tuple(shares)) for label, shares in tables.items()),
                lead="Accuracy, its 95 % Wilson interval in percent, and the images behind it. Each point has a page of its own, in "
                "the folder that bears its value.",
            ),
        ]


def _column(row: dict[str, Any], purified: bool) -> str:
    name = "Clean" if row["attack"] == "none" else str(row["attack"])
    return f"{name}, {DEFENCES[row['defence']][0].lower()}" if purified else name
