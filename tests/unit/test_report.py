"""Pages of run folders: complete, self-contained, honest about what is not finished, and clear about what is broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustmim.errors import InputError
from robustmim.evaluate.statistics import wilson_interval
from robustmim.report.figures import BarPlot, Bars, Line, LinePlot, draw
from robustmim.report.page import Prose, evaluation_sections, write_page, write_report
from robustmim.report.pictures import data_uri, difference, overlay
from robustmim.report.sections import AccuracyTable, ImageGrid, Verdict

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
VOID = {"meta", "link", "img", "br", "path", "rect"}


def write_run(folder: Path, *, kind: str, status: str = "finished", recipe: dict[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "kind": kind,
        "recipe": recipe or {"radii": ["2/255", "8/255"], "norm": "linf", "note": "λ <b>"},
        "command": f"robustmim {kind} --out runs/x",
        "environment": {"robustmim": "0.1.0", "commit": "abc", "python": "3.11", "torch": "2.9", "hardware": "CPU"},
        "status": status,
        "started": "2026-11-23T06:48:36+0000",
    }
    (folder / "run.json").write_text(json.dumps(about))


def cell(attack: str, radius: str, defence: str, correct: int, n: int = 512) -> dict[str, Any]:
    low, high = wilson_interval(correct, n)
    about = {"attack": attack, "radius": radius, "defence": defence, "n": n, "correct": correct}
    return about | {"accuracy": correct / n, "low": low, "high": high}


def write_claim(folder: Path, *, purified: bool = True, **changes: Any) -> None:
    rows = [cell("none", "0", "bare", 482)]
    rows += [cell("gray-box", radius, "bare", n) for radius, n in (("2/255", 96), ("4/255", 6), ("8/255", 0))]
    if purified:
        rows += [cell("none", "0", "purified", 470)]
        rows += [cell("gray-box", r, "purified", n) for r, n in (("2/255", 440), ("4/255", 410), ("8/255", 352))]
        rows += [cell("white-box", r, "purified", n, 128) for r, n in (("2/255", 96), ("4/255", 71), ("8/255", 38))]
    low, high = wilson_interval(36, 128)
    steps = range(12)
    content: dict[str, Any] = {
        "classifier": "resnet56 (file)",
        "purifier": "AMRM-Pure, masked-conv-cifar10, S 12, λ 4/255, η 16/255" if purified else None,
        "data": "cifar10 test",
        "norm": "linf",
        "seed": 0,
        "images": 512,
        "cells": rows,
        "protocol": {
            "gray-box": "PGD-20 on the bare classifier, step 0.25 ε, random start",
            "white-box": "PGD-20, EOT 2, identity gradient through the purifier (BPDA), verdict on fresh draws",
        },
        "worst_case": {"radius": "8/255", "accuracy": 36 / 128, "low": low, "high": high, "n": 128, "correct": 36},
        "findings": [
            {"level": "amber", "sentence": "The white-box attack uses the identity gradient only."},
            {"level": "red", "sentence": "At 2/255 purification makes the attacked images worse & <i>more</i>."},
            {"level": "green", "sentence": "The attack brings the bare classifier down to zero."},
        ],
        "milliseconds_per_image": {"classify": 1.2, "purify": 30.1} if purified else {"classify": 1.2},
        "per_class": [
            {"class": name, "clean": 0.9 + i / 100, "attacked_bare": i / 300, "attacked_purified": 0.55 + 0.03 * i}
            for i, name in enumerate(CLASSES)
        ],
        "trace": {
            which: {
                "loss": [base * (0.4 + 0.6 * 0.75**s) for s in steps],
                "distance": [min(16, 4 * s) / 255 for s in steps],
                "saturation": [min(shift + 0.02 * s * s, 0.6) if s > 3 else 0.0 for s in steps],
                "amv": [shift * 4 * 0.9**s + 0.1 for s in steps],
            }
            for which, base, shift in (("clean", 0.01, 0.05), ("attacked", 0.016, 0.1))
        }
        if purified
        else None,
    }
    (folder / "claim.json").write_text(json.dumps(content | changes))


def write_examples(
    folder: Path, *, images: np.ndarray | None = None, purified: bool = True, attention: bool = False
) -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((3, 3, 32, 32), dtype=np.float32) if images is None else images
    n = len(clean)
    noise = np.sign(rng.standard_normal(clean.shape)).astype(np.float32) * (8 / 255)
    tensors = {"clean": clean, "attacked": np.clip(clean + noise, 0, 1)}
    labels = np.arange(n, dtype=np.int64) % 10
    answers = {"clean": labels, "attacked": (labels + 3) % 10}
    if purified:
        tensors |= {"purified": np.clip(clean + noise / 3, 0, 1), "purified_clean": np.clip(clean - noise / 4, 0, 1)}
        answers |= {"purified": np.where(labels == 2, 5, labels), "purified_clean": labels}
    tensors |= {f"predicted_{name}": value.astype(np.int64) for name, value in answers.items()} | {"label": labels}
    if attention:
        tensors |= {f"attention_{name}": rng.random((n, 8, 8), dtype=np.float32) for name in ("clean", "attacked")}
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(tensors, folder / "examples.safetensors", metadata={"classes": json.dumps(CLASSES), "radius": "8/255"})


def write_log(folder: Path, rows: int = 40) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(rows):
        about = {"step": step + 1, "epoch": (step + 1) / 8, "total": rows}
        lines.append(
            about | {"loss": 2.3 * 0.93**step, "learning_rate": 0.1, "images_per_second": 300.0, "seconds": 1.0}
        )
        if step % 8 == 7:
            found = {
                "accuracy": 0.4 + step / 100 * (40 / rows),
                "masked_loss": 0.02,
                "sees 8/255": 1.4,
                "purified 8/255": 0.5,
            }
            lines.append(about | {"evaluation": True} | found)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_run(folder, kind="evaluate")
    write_claim(folder)
    write_examples(folder)
    return folder


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID or self.get_starttag_text() is None or tag in {"path", "rect"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def test_evaluation_says_what_was_measured_and_what_it_means(evaluation: Path) -> None:
    text = " ".join(read(evaluation).text.split())
    for expected in (
        "resnet56 (file)",
        "AMRM-Pure, masked-conv-cifar10",
        "Gray box: the attacker does not know of the purifier.",
        "an upper bound, not a claim of robustness",
        "352/512",
        "36 of 128",
        "✕ Problem",
        "robustmim evaluate --out runs/x",
        "25 classifications",
        "radii: - 2/255 - 8/255",
    ):
        assert expected in text


def test_page_is_self_contained_and_texts_are_escaped(evaluation: Path) -> None:
    text = write_report(evaluation).read_text()
    page = Page(text)
    assert all(image["src"] is None or image["src"].startswith("data:") for image in page.all("img") if "src" in image)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "worse & <i>more</i>" in page.text and "<i>more" not in text
    assert "λ <b>" in page.text and page.all("b") == []


def test_every_picture_and_chart_has_words(evaluation: Path) -> None:
    page = read(evaluation)
    pictures = [image for image in page.all("img") if image.get("src")]
    assert len(pictures) == 3 * 6
    assert all(image["alt"] for image in pictures)
    charts = [drawing for drawing in page.all("svg") if drawing.get("class") == "chart"]
    assert len(charts) == 2 * (1 + 1 + 4)  # each for desk and phone: accuracy, classes, four traces
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_right_and_wrong_answers_differ_by_sign_and_text(evaluation: Path) -> None:
    sections = evaluation_sections(evaluation)
    grid = next(section for section in sections if isinstance(section, ImageGrid))
    assert grid.pixelated
    clean, attacked, *_ = grid.rows[0].pictures
    assert (clean.answer, clean.right) == ("airplane", True)
    assert (attacked.answer, attacked.right) == ("cat", False)
    assert attacked.text == "airplane, attacked: classified as cat, wrong"
    text = write_report(evaluation).read_text()
    assert "M3 8.5l3.4 3.5L13 4.5" in text and "M4 4l8 8M12 4l-8 8" in text


def test_table_has_a_row_a_budget_and_a_column_a_defence(evaluation: Path) -> None:
    table = next(section for section in evaluation_sections(evaluation) if isinstance(section, AccuracyTable))
    assert table.columns == ("No purifier", "Purified, gray box", "Purified, white box")
    assert [name for name, _ in table.rows] == ["0 (clean)", "2/255", "4/255", "8/255"]
    clean, *_, last = (shares for _, shares in table.rows)
    assert clean[2] is None
    assert [share.correct for share in last if share] == [0, 352, 38]


def test_an_image_that_is_right_in_some_draws_counts_in_part(tmp_path: Path) -> None:
    write_run(tmp_path, kind="evaluate")
    low, high = wilson_interval(3.25, 8)
    part = {"n": 8, "correct": 3.25, "accuracy": 0.4062, "low": low, "high": high}
    cells = [cell("none", "0", defence, 8, 8) for defence in ("bare", "purified")]
    cells.append({"attack": "gray-box", "radius": "8/255", "defence": "purified"} | part)
    write_claim(tmp_path, cells=cells, worst_case={"radius": "8/255"} | part, per_class=None, images=8)
    write_examples(tmp_path)
    text = " ".join(read(tmp_path).text.split())
    assert "3.25 of 8" in text and "3.25/8" in text and "8 of 8" in text


def test_a_command_is_whole_and_its_options_are_not_torn(evaluation: Path) -> None:
    page = read(evaluation)
    assert "robustmim evaluate --out runs/x" in page.text
    assert {"class": "option"} in page.all("span")
    assert '<span class="option">--out runs/x</span>' in (evaluation / "report.html").read_text()


def test_bare_classifier_has_no_purified_numbers(tmp_path: Path) -> None:
    write_run(tmp_path, kind="evaluate")
    write_claim(tmp_path, purified=False, per_class=None)
    write_examples(tmp_path, purified=False)
    sections = evaluation_sections(tmp_path)
    verdict = next(section for section in sections if isinstance(section, Verdict))
    assert [headline.label for headline in verdict.headlines] == ["Clean images", "Gray-box attack, ε 8/255"]
    assert verdict.headlines[1].share.correct == 0
    assert "Purified" not in read(tmp_path).text


def test_evaluation_without_attacks(tmp_path: Path) -> None:
    write_run(tmp_path, kind="evaluate")
    write_claim(tmp_path, cells=[cell("none", "0", "bare", 482)], worst_case=None, per_class=None, trace=None)
    write_examples(tmp_path)
    assert "482 of 512" not in read(tmp_path).text  # the purified system was not measured, and the bare one is not it
    assert "Every accuracy" not in read(tmp_path).text


def test_attention_is_laid_over_the_pictures(tmp_path: Path) -> None:
    write_run(tmp_path, kind="evaluate")
    write_claim(tmp_path)
    write_examples(tmp_path, attention=True)
    grids = [section for section in evaluation_sections(tmp_path) if isinstance(section, ImageGrid)]
    assert [len(grid.rows[0].pictures) for grid in grids] == [6, 2]
    assert grids[1].rows[0].pictures[0].right is None


def test_training_shows_loss_and_last_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path, kind="train")
    write_log(tmp_path)
    page = read(tmp_path)
    text = " ".join(page.text.split())
    assert "40 of 40" in text and "79.0 %" in text and "1.4 ×" in text
    assert any("Loss over the epochs" in (chart.get("aria-label") or "") for chart in page.all("svg"))


def test_a_single_step_makes_no_chart(tmp_path: Path) -> None:
    write_run(tmp_path, kind="train", status="running")
    write_log(tmp_path, rows=2)
    page = read(tmp_path)
    assert "2 of 2" in page.text
    assert page.all("svg") == []


@pytest.mark.parametrize("kind", ["evaluate", "train", "pretrain", "purify"])
def test_run_that_is_going_says_so(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, kind=kind, status="running")
    assert "This run is not finished" in read(tmp_path).text


@pytest.mark.parametrize(
    ("status", "words"), [("stopped", "stopped before its end"), ("failed", "failed"), ("diverged", "diverged")]
)
def test_run_that_did_not_end_well_says_so(tmp_path: Path, status: str, words: str) -> None:
    write_run(tmp_path, kind="train", status=status)
    write_log(tmp_path)
    assert words in read(tmp_path).text


@pytest.mark.parametrize("missing", ["run.json", "claim.json"])
def test_missing_file_is_named(evaluation: Path, missing: str) -> None:
    (evaluation / missing).unlink()
    with pytest.raises(InputError, match=missing):
        write_report(evaluation)


def test_results_published_without_their_pictures_have_a_page(evaluation: Path) -> None:
    (evaluation / "examples.safetensors").unlink()
    page = read(evaluation)
    assert not [image for image in page.all("img") if image.get("src")]
    assert "Every accuracy" in page.text and "Class by class" in page.text


@pytest.mark.parametrize("damaged", ["run.json", "claim.json", "examples.safetensors"])
def test_damaged_file_is_named(evaluation: Path, damaged: str) -> None:
    path = evaluation / damaged
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=damaged):
        write_report(evaluation)


@pytest.mark.parametrize(
    "harm",
    [
        lambda claim: claim.pop("cells"),
        lambda claim: claim.update(cells=[{"attack": "none"}]),
        lambda claim: claim.update(cells=3),
        lambda claim: claim.update(findings=[{"level": "blue", "sentence": "?"}]),
        lambda claim: claim.update(trace={"clean": {"loss": ["a"]}}),
    ],
)
def test_claim_of_the_wrong_shape_is_named(evaluation: Path, harm: Callable[[dict[str, Any]], None]) -> None:
    claim = json.loads((evaluation / "claim.json").read_text())
    harm(claim)
    (evaluation / "claim.json").write_text(json.dumps(claim))
    with pytest.raises(InputError, match=r"claim\.json"):
        write_report(evaluation)


def test_missing_or_empty_log_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, kind="train")
    with pytest.raises(InputError, match=r"log\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "log.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"log\.jsonl"):
        write_report(tmp_path)


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, kind="bake")
    with pytest.raises(InputError, match="bake"):
        write_report(tmp_path)


def test_two_evaluations_share_a_page_with_nested_headings(evaluation: Path, tmp_path: Path) -> None:
    parts = [section for name in ("One", "Two") for section in (Prose(name, ""), *evaluation_sections(evaluation))]
    path = tmp_path / "deep" / "demo.html"
    write_page(path, title="demo", sections=parts)
    page = Page(path.read_text())
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == 2 and len(page.all("h3")) > 10


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        write_page(tmp_path / "file" / "page.html", title="x", sections=[])


def numbers(svg: str, axis: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<text [^>]*?{axis}="(-?[\d.]+)"', svg)]


@pytest.mark.parametrize("width", [340, 500, 1040])
@pytest.mark.parametrize(
    "values",
    [(0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1e-5, 3e-3, 2.0), (-1.0, 0.0, 5.0), (1.0, 9.9e6, 3.0)],
)
def test_charts_stay_inside_their_box(width: int, values: tuple[float, ...]) -> None:
    plot = LinePlot("y", "x", (Line("curve", "blue", (0.0, 1.0, 2.0), values),), "words")
    svg = draw(plot, width)
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', svg)[1])  # type: ignore[index]
    points = [float(n) for n in re.findall(r"-?[\d.]+", re.search(r'd="M([^"]*)" class="line', svg)[1])]  # type: ignore[index]
    assert all(0 <= x <= width for x in points[::2]) and all(0 <= y <= height for y in points[1::2])
    assert all(0 <= x <= width for x in numbers(svg, "x")) and all(0 <= y <= height for y in numbers(svg, "y"))


def test_percent_axis_reaches_zero_and_one() -> None:
    line = Line("curve", "blue", (0.0, 1.0), (0.6, 0.7), (0.5, 0.6), (0.7, 0.8))
    svg = draw(LinePlot("Accuracy", "ε", (line,), "words", unit="percent"), 340)
    assert ">0 %<" in svg and ">100 %<" in svg and svg.count("whisker") == 2


def test_steps_are_marked_at_whole_numbers_only() -> None:
    line = Line("curve", "blue", tuple(map(float, range(12))), tuple(map(float, range(12))))
    svg = draw(LinePlot("loss", "step", (line,), "words"), 500)
    assert ">3<" in svg and not re.search(r'text-anchor="middle">\d+\.', svg)


def test_points_alone_are_not_joined_stand_where_they_are_and_have_names() -> None:
    """Whiskers of curves dodge each other; those of points do not, and a name goes left where another stands on the right."""
    points = Line(
        "points", "blue", (0.5, 0.52, 0.9), (0.2, 0.2, 0.6), (0.1,) * 3, (0.7,) * 3, joined=False, names=("1", "2", "3")
    )
    other = Line("asked for", "neutral", (0.5,), (0.9,), joined=False)
    drawn = draw(LinePlot("y", "x", (points, other), "d", unit="percent"), 440)
    assert 'class="line' not in drawn
    markers = [float(x) for x in re.findall(r'<path d="M([\d.]+) [^"]*" class="marker', drawn)]
    whiskers = [float(x) for x in re.findall(r'<path d="M([\d.]+) [^"]*" class="whisker', drawn)]
    assert [x + 4.2 for x in markers[:3]] == pytest.approx(whiskers, abs=0.11)
    assert markers[3] + 3.6 == pytest.approx(whiskers[0], abs=0.11)
    names = {
        n: float(x) - w
        for (x, n), w in zip(re.findall(r'<text x="([\d.]+)"[^>]*>([123])<', drawn), whiskers, strict=True)
    }
    assert names["1"] < 0 < min(names["2"], names["3"])


def test_chart_texts_are_escaped() -> None:
    svg = draw(BarPlot("t", ("<a>",), (Bars('"b"', "blue", (0.5,)),), '<"'), 340)
    assert "<a>" not in svg and 'aria-label="&lt;&quot;"' in svg


def test_difference_is_grey_where_nothing_changed() -> None:
    image = np.full((3, 4, 4), 0.5, dtype=np.float32)
    changed = image.copy()
    changed[:, 0, 0] += 0.02
    found = difference(changed, image)
    assert found[:, 1, 1] == pytest.approx(0.5) and found[:, 0, 0] == pytest.approx(0.7)


def test_small_images_are_kept_exactly_and_photographs_are_compressed() -> None:
    assert data_uri(np.zeros((3, 32, 32), dtype=np.float32)).startswith("data:image/png")
    assert data_uri(np.zeros((3, 224, 224), dtype=np.float32)).startswith("data:image/jpeg")


def test_overlay_of_even_attention_is_a_picture() -> None:
    found = overlay(np.full((3, 32, 32), 0.5, dtype=np.float32), np.ones((8, 8), dtype=np.float32))
    assert found.shape == (3, 192, 192) and np.isfinite(found).all() and 0 <= found.min() <= found.max() <= 1
