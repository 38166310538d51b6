"""Write pages: `write_report` for a run folder, `write_page` for any list of sections."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustmim.errors import InputError
from robustmim.report.evaluation import evaluation_sections
from robustmim.report.figures import BarPlot, LinePlot, draw, legend
from robustmim.report.measures import certificate_sections, corruption_sections, curve_sections
from robustmim.report.reading import read_record, reading
from robustmim.report.sections import Details, Facts, Notice, Prose, Section
from robustmim.report.training import training_sections
from robustmim.runs import atomic

__all__ = ["Prose", "evaluation_sections", "write_page", "write_report"]

TITLES = {
    "evaluate": "Evaluation",
    "train": "Training",
    "pretrain": "Pre-training",
    "robustify": "Fine-tuning through purification",
    "purify": "Purification",
    "corruptions": "Corruptions",
    "certify": "Certification",
    "curve": "Curve",
    "detect": "Detection",
}
MEASURES = {
    "certify": (certificate_sections, "claim.json"),
    "corruptions": (corruption_sections, "claim.json"),
    "curve": (curve_sections, "curve.json"),
}
REMEDY = "name the folder of a run, which holds run.json"
NARROW, HALF, WIDE = 340, 500, 1040  # widths of charts in pixels: a phone, half a page, a page


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, from what the folder holds.

    A run that is still going, was stopped or has failed gives a page that says so.

    Raises:
        InputError: no run folder, or one of its files is missing or damaged.
    """
    about = read_record(folder / "run.json", REMEDY)
    with reading(folder / "run.json", REMEDY):
        kind, status, started = str(about["kind"]), str(about["status"]), str(about["started"])
        details = _details(about)
        if kind not in TITLES:
            raise InputError(f"{folder / 'run.json'} is of a kind that has no report: {kind!r}")
        started = _moment(started)
    notices = _notices(status, started, folder)
    content: list[Section] = []
    if kind == "evaluate" and (status == "finished" or (folder / "claim.json").exists()):
        content = evaluation_sections(folder)
    elif kind in ("train", "pretrain", "robustify") and (status == "finished" or (folder / "log.jsonl").exists()):
        content = training_sections(folder)
    elif kind in MEASURES and (status == "finished" or (folder / MEASURES[kind][1]).exists()):
        content = MEASURES[kind][0](folder)
    path = folder / "report.html"
    write_page(
        path,
        title=f"{TITLES[kind]}: {folder.resolve().name}",
        subtitle=f"Started {started}",
        sections=[*notices, *content, *details],
    )
    return path


def write_page(path: Path, *, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write a self-contained HTML page: no script, style, font or image from elsewhere.

    Args:
        path: the file; its folder is made if needed, and a reader never sees half of it.
        title: of the page.
        sections: in reading order; a Prose without text starts a part of the page.
        subtitle: a line under the title.

    Raises:
        InputError: the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("template.html.j2")
    text = template.render(title=title, subtitle=subtitle, sections=list(sections), draw=_drawn, legend=_legend)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error


def _moment(started: str) -> str:
    when = datetime.fromisoformat(started)
    zone = "" if when.tzinfo is None else " UTC" if not when.utcoffset() else f" UTC{when:%z}"
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def _drawn(plot: LinePlot | BarPlot, narrow: bool) -> Markup:
    # Markup: the drawing functions escape every text they are given.
    return Markup(draw(plot, NARROW if narrow else WIDE if plot.wide else HALF))


def _legend(plot: LinePlot | BarPlot) -> list[tuple[Markup, str]]:
    return [(Markup(swatch), label) for swatch, label in legend(plot)]


def _notices(status: str, started: str, folder: Path) -> list[Section]:
    again = f"robustmim report {folder}"
    texts = {
        "running": Notice(
            "This run is not finished",
            f"It was started {started} and had not ended when this page was written. What follows, if "
            f"anything, is preliminary. For a newer page: {again}",
        ),
        "stopped": Notice(
            "This run was stopped before its end",
            "What follows, if anything, is preliminary. The command below, with the same --out, goes on from there.",
        ),
        "diverged": Notice("This run diverged", "Its loss stopped being a number: do not use its result.", "red"),
        "failed": Notice("This run failed", "It ended with an error: what follows, if anything, is incomplete.", "red"),
    }
    return [texts[status]] if status in texts else []


def _details(about: dict[str, Any]) -> list[Section]:
    import yaml

    recipe = yaml.safe_dump(about["recipe"], sort_keys=False, allow_unicode=True, width=88)
    names = {"robustmim": "robustmim", "commit": "Commit", "python": "Python", "torch": "PyTorch"}
    environment = tuple((names.get(key, key.capitalize()), str(value)) for key, value in about["environment"].items())
    return [
        Details("To do it again", (("Command", str(about["command"])), ("Recipe", recipe))),
        Facts("Environment", environment),
    ]
