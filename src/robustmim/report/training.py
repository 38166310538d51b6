"""The sections of a training: where it stands, the loss, and what the evaluations found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from robustmim.report.figures import TONES, Line, LinePlot, Tone, Unit, percent
from robustmim.report.reading import read_log, reading
from robustmim.report.sections import Charts, Facts, Section

NOT_MEASURED = {"step", "epoch", "total", "seconds", "evaluation"}


def training_sections(folder: Path) -> list[Section]:
    """Return the sections of a training or pre-training, finished or not.

    Raises:
        InputError: log.jsonl is missing or damaged.
    """
    path = folder / "log.jsonl"
    rows = read_log(path)
    with reading(path, "run the training again"):
        return _sections(rows)


def _sections(rows: list[dict[str, Any]]) -> list[Section]:
    training = [row for row in rows if not row.get("evaluation")]
    evaluations = [row for row in rows if row.get("evaluation")]
    last = rows[-1]
    items = [("Progress", f"{last['epoch']:.3g} epochs"), ("Steps", f"{last['step']:,} of {last['total']:,}")]
    if training:
        items.append(("Loss", f"{training[-1]['loss']:.4g}"))
        speed = training[-1].get("images_per_second")
        items += [("Speed", f"{speed:,.0f} images/s")] if speed else []
    sections: list[Section] = [Facts("Where it stands", tuple(items), tiles=True)]
    if evaluations:
        found = [(name, _text(name, value)) for name, value in evaluations[-1].items() if name not in NOT_MEASURED]
        lead = f"After {evaluations[-1]['epoch']:.3g} epochs, on the validation data."
        sections.append(Facts("The last evaluation", tuple((_title(n), t) for n, t in found), lead=lead, tiles=True))
        sections += _evaluations(evaluations)
    # The first row is the loss before any step: it would squeeze everything else.
    shown = [row for row in training if row["step"] > 1]
    if len(shown) > 1:  # a single point is told above
        plots = [
            _plot("Loss", [("Loss", "loss")], shown),
            _plot("Learning rate", [("Learning rate", "learning_rate")], shown),
        ]
        sections.append(Charts("Training", tuple(plot for plot in plots if plot)))
    return sections


def _is_ratio(name: str) -> bool:
    return name.startswith("sees ")


def _is_share(name: str) -> bool:
    return not _is_ratio(name) and not name.endswith("loss")


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _text(name: str, value: float) -> str:
    if _is_share(name):
        return percent(value)
    return f"{value:.3g} ×" if _is_ratio(name) else f"{value:.4g}"


def _evaluations(rows: list[dict[str, Any]]) -> list[Section]:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_MEASURED))
    groups = (
        ("Accuracy", [name for name in names if _is_share(name)]),
        ("Loss on the validation data", [name for name in names if name.endswith("loss")]),
        ("Loss of attacked over clean images", [name for name in names if _is_ratio(name)]),
    )
    plots = [_plot(title, [(_title(name), name) for name in group], rows) for title, group in groups if group]
    shown = tuple(plot for plot in plots if plot)
    if len(shown) == 1:
        shown = (replace(shown[0], wide=True),)
    return [Charts("Evaluations", shown)] if shown else []


def _plot(title: str, curves: list[tuple[str, str]], rows: list[dict[str, Any]]) -> LinePlot | None:
    lines = []
    for place, (label, name) in enumerate(curves):
        points = [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name) is not None]
        tone: Tone = TONES[place % len(TONES)]
        if points:
            lines.append(Line(label, tone, tuple(x for x, _ in points), tuple(y for _, y in points)))
    if not lines:
        return None
    spoken = "; ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
    description = f"{title} over the epochs. {spoken}."
    unit: Unit = "percent" if title == "Accuracy" else "number"
    return LinePlot(title, "epoch", tuple(lines), description, unit=unit, from_zero=title == "Learning rate")
