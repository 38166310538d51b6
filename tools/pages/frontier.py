"""The frontier: accuracy without an attack against the worst case, over every evaluation that took several kinds of attack."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import robustmim.report
from pages.words import ROOT, claims, percent
from robustmim.report.figures import Line, LinePlot, Tone, draw, legend

PICTURE = ROOT / "docs" / "images" / "frontier.svg"
GROUPS = ("holds-*", "adaptive-*", "gradient-modes-*", "table/*")
"""Evaluations through the purifier by more than the identity; the others' worst cases are no worst cases."""
THIRD_PARTY, ROBUST = "resnet56-4bfd9763.th (resnet56)", "fast-cnn-adversarial-cifar10"
FRONTS: dict[str, tuple[str, Tone]] = {
    THIRD_PARTY: ("the third-party ResNet-56", "blue"),
    "fast-cnn-cifar10": ("our classifier", "vermillion"),
    ROBUST: ("our adversarially trained classifier", "teal"),
}
GUIDE: tuple[str, Tone] = ("a guide alone", "purple")
GUIDES = (
    "fast-cnn-adversarial-small-cifar10",
    "fast-cnn-trades-cifar10",
    "fast-cnn-pair-cifar10",
    "fast-cnn-pair-long-cifar10",
)
"""Classifiers that tell a purifier what they believe: what it holds, it holds by them."""
FRONTS |= dict.fromkeys(GUIDES, GUIDE)
ASKED: tuple[str, Tone] = ("what was asked for", "neutral")
SHORT: tuple[str, Tone] = ("short attacks only", "gold")
WIDTH, LEGEND, TITLE = 440, 26, 30


@dataclass(frozen=True)
class Point:
    """A defence at a budget."""

    front: str
    radius: str
    purifier: str | None
    clean: dict
    worst: dict
    attacks: int
    folder: str


def points() -> list[Point]:
    """Return all of them: budget by budget, classifier by classifier, the worst case that is highest first."""
    found = []
    for folder, claim in (one for group in GROUPS for one in claims(group)):
        defence = "purified" if claim["purifier"] else "bare"
        clean = next(row for row in claim["cells"] if (row["attack"], row["defence"]) == ("none", defence))
        attacks = len({row["attack"] for row in claim["cells"]} - {"none"})
        where = str(folder.relative_to(ROOT))
        found += [
            Point(claim["classifier"], row["radius"], claim["purifier"], clean, row, attacks, where)
            for row in claim["worst_cases"]
            if claim["norm"] == "linf" and claim["classifier"] in FRONTS
        ]
    order = list(FRONTS)
    return sorted(
        found,
        key=lambda p: (float(p.radius.split("/")[0]), order.index(p.front), -p.worst["accuracy"], p.folder),
    )


def by_suites(known: list[Point]) -> list[Point]:
    """Return those that a suite has judged: the rows of the table took three short attacks."""
    return [p for p in known if not p.folder.startswith("results/table/")]


def asked(radius: str, known: list[Point]) -> tuple[str, float, float] | None:
    """Return the mark that was set at a budget: before which classifier, accuracy without an attack, worst case; or None."""
    if radius == "2/255":
        return THIRD_PARTY, 0.9, 0.5
    alone = [p for p in by_suites(known) if (p.front, p.radius) == (ROBUST, radius) and p.purifier is None]
    if radius == "8/255" and alone:
        return ROBUST, alone[0].clean["accuracy"], alone[0].worst["accuracy"] + 0.03
    return None


def panel(radius: str, known: list[Point]) -> LinePlot:
    """Return the chart of a budget; points go by their place in the list of all."""
    lines, judged = [], by_suites(known)
    for front, (label, tone) in FRONTS.items():
        own = [(number, p) for number, p in enumerate(judged, 1) if (p.front, p.radius) == (front, radius)]
        if own:
            columns = ([row[key] for _, p in own for row in (p.worst,)] for key in ("accuracy", "low", "high"))
            y, low, high = map(tuple, columns)
            x, names = tuple(p.clean["accuracy"] for _, p in own), tuple(str(number) for number, _ in own)
            lines.append(Line(label, tone, x, y, low, high, joined=False, names=names))
    rest = [p for p in known if p.radius == radius and p not in judged]
    if rest:
        x, y = tuple(p.clean["accuracy"] for p in rest), tuple(p.worst["accuracy"] for p in rest)
        lines.insert(0, Line(*SHORT, x, y, joined=False))
    goal = asked(radius, known)
    if goal is not None:
        lines.append(Line(*ASKED, goal[1:2], goal[2:], joined=False))
    lowest = min(5, *(int(10 * p.clean["accuracy"]) for p in known if p.radius == radius))
    return LinePlot(
        "worst case",
        "accuracy without an attack",
        tuple(lines),
        f"Worst case over accuracy without an attack at {radius}, {sum(len(line.x) for line in lines)} points",
        x_ticks=tuple((tenth / 10, f"{tenth * 10}%") for tenth in range(lowest, 11)),
        unit="percent",
    )


def stylesheet() -> str:
    """Return what the report's style sheet says of charts, in its light colours."""
    text = (Path(robustmim.report.__file__).parent / "template.html.j2").read_text()
    colours = text[text.index(":root {") : text.index("}", text.index(":root {")) + 1]
    rules = re.search(r"\.chart text \{.*?(?=\.fill \{)", text, re.DOTALL)
    assert rules is not None
    return " ".join(f"{colours} {rules[0]}".split())


def picture(known: list[Point]) -> str:
    """Return the panels side by side as one SVG file, with a legend."""
    radii = list(dict.fromkeys(p.radius for p in known))
    plots = [panel(radius, known) for radius in radii]
    charts = [draw(plot, WIDTH) for plot in plots]
    sizes = [re.search(r'viewBox="0 0 (\d+) (\d+)"', chart) for chart in charts]
    height = LEGEND + TITLE + max(int(size[2]) for size in sizes if size)
    entries = sorted(
        dict.fromkeys(entry for plot in plots for entry in legend(plot)),
        key=lambda entry: (entry[1] == ASKED[0], entry[1] == SHORT[0]),
    )
    parts = [f'<rect width="{WIDTH * len(plots)}" height="{height}" fill="#fafaf8"/>']
    across = 12.0
    for swatch, label in entries:
        parts.append(f'<g transform="translate({across:.0f} 6)">{swatch}</g>')
        parts.append(f'<text x="{across + 34:.0f}" y="18">{escape(label)}</text>')
        across += 60 + 7 * len(label)
    for place, (radius, chart, size) in enumerate(zip(radii, charts, sizes, strict=True)):
        assert size is not None
        inner = chart.replace("<svg ", f'<svg width="{size[1]}" height="{size[2]}" ', 1)
        parts.append(f'<text x="{place * WIDTH + 60}" y="{LEGEND + 18}" class="name">worst case at ε = {radius}</text>')
        parts.append(f'<g transform="translate({place * WIDTH} {LEGEND + TITLE})">{inner}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH * len(plots)} {height}" role="img" '
        f'aria-label="Accuracy without an attack against the worst case">\n<style>{stylesheet()}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def reached(known: list[Point]) -> str:
    """Say of each mark whether a suite has found a purifier that meets it, and what the best of them has."""
    said = []
    for radius in dict.fromkeys(p.radius for p in known):
        goal = asked(radius, known)
        judged = [p for p in by_suites(known) if goal and (p.front, p.radius) == (goal[0], radius) and p.purifier]
        if goal is None or not judged:
            continue
        # Before the robust classifier nothing was asked without an attack.
        enough = [p for p in judged if goal[0] == ROBUST or p.clean["accuracy"] >= goal[1]]
        met = [p for p in enough if p.worst["accuracy"] >= goal[2]]
        best = max(met or judged, key=lambda p: p.worst["accuracy"])
        numbers = f"{best.worst['accuracy']:.1%}, with {best.clean['accuracy']:.1%} without an attack"
        said.append(f"at {radius} it is {'' if met else 'not '}reached: the best has {numbers} (`{best.folder}`)")
    return "; ".join(said) + "."


def frontier(known: list[Point]) -> str:
    """Return the picture, and what each number in it stands for."""
    lines = [
        "![Three charts of the worst case over the accuracy without an attack, one a budget](images/frontier.svg)",
        "",
        "Every evaluation that is more than a gray box and the identity, failures included; the worst case image by image over so many "
        "attacks, on fresh draws by their mean, with its 95 % interval (by majority, and for an attacker who knows the draws, it is "
        "lower: [every evaluation](evaluations.md)). Without a number: the rows of the table of purifiers (`results/table`), which took "
        "two or three short attacks and would fall further under a suite. Squares: what was asked for, before the ResNet-56 half in the worst case "
        "at 2/255 and nine in ten without an attack, and before the adversarially trained classifier "
        f"three points more than it has alone at 8/255. By the suites, {reached(known)}",
        "",
        "| | ε | before | purifier | no attack | worst case | attacks | |",
        "|---" * 8 + "|",
    ]
    for number, p in enumerate(by_suites(known), 1):
        before = FRONTS[p.front][0] + (f" ({p.front})" if p.front in GUIDES else "")
        found = [str(number), p.radius, before, p.purifier or "none", percent(p.clean), percent(p.worst)]
        lines.append("| " + " | ".join([*found, f"{p.attacks}, n = {p.worst['n']}", f"`{p.folder}`"]) + " |")
    return "\n".join(lines)
