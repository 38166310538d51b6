"""The published tables are what the committed result files say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import beta, mannwhitneyu, norm

from robustmim.evaluate.statistics import wilson_interval
from robustmim.models.zoo import ZOO, about_model, find, zoo_names
from robustmim.recipe import load_recipe

ROOT = Path(__file__).parents[2]
CLAIMS = sorted((ROOT / "results").glob("**/claim.json"))


def test_results_page_is_what_the_files_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "results_page.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check_cells(claim, records):
    keys = [(row["attack"], row["radius"], row["defence"], row["id"]) for row in records]
    assert len(set(keys)) == len(keys)
    for row in claim["cells"]:
        own = [
            r for r in records if all(r[k] == row[k] for k in ("attack", "radius", "defence")) and "skipped" not in r
        ]
        assert row["n"] == len(own)
        shares = [(r["right"] + r.get("again", r["right"])) / (2 * r["draws"]) for r in own]
        assert row["correct"] == pytest.approx(sum(shares), abs=0.01)
        assert (row["low"], row["high"]) == pytest.approx(wilson_interval(sum(shares), len(own)), abs=1e-4)
    assert len({number for *_, number in keys}) == claim["images"]


def check_certificates(claim, records):
    """Cohen et al. 2019, Algorithm 1: from the counts alone, by SciPy."""
    assert len({row["id"] for row in records}) == len(records) == claim["images"]
    for row in records:
        lower = beta.ppf(claim["alpha"], row["count"], claim["draws"] - row["count"] + 1)
        radius = claim["sigma"] * norm.ppf(lower) if lower > 0.5 else 0.0
        assert row["radius"] == pytest.approx(radius, abs=1e-5)
        assert row["predicted"] == (row["most"] if lower > 0.5 else None)
    for row in claim["certified"]:
        assert row["n"] == len(records)
        right = [r["radius"] for r in records if r["predicted"] == r["label"]]
        assert row["correct"] == sum(radius >= row["radius"] for radius in right)


def check_detection(claim, records):
    """Threshold, AUROC (by SciPy) and counts, from the scores alone; calibration and attacked images are apart."""
    cells = {(line["cell"], line["radius"]): {row["id"]: row for row in line["samples"]} for line in records}
    assert len(cells) == len(records) == 2 + len(claim["attacks"])
    calibration, clean = cells["calibration", "0"], cells["clean", "0"]
    assert (len(calibration), len(clean)) == (claim["calibration"], claim["images"])
    assert not calibration.keys() & clean.keys()
    scores = sorted(row["score"] for row in calibration.values())
    assert sum(score > claim["threshold"] for score in scores) <= claim["false_positive_rate"] * (len(scores) + 1)
    assert claim["threshold"] in scores

    def check(row, hits):
        assert (row["count"], row["n"]) == (sum(hits), len(hits))
        assert (row["low"], row["high"]) == pytest.approx(wilson_interval(row["count"], row["n"]), abs=1e-4)

    def seen(row):
        return row["score"] > claim["threshold"]

    check(claim["false_positives"], [seen(row) for row in clean.values()])
    check(claim["clean"]["wrong"], [not row["right"] for row in clean.values()])
    check(claim["clean"]["wrong_and_undetected"], [not row["right"] and not seen(row) for row in clean.values()])
    for row in claim["attacks"]:
        found = cells[row["attack"], row["radius"]]
        assert found.keys() == clean.keys()
        pairs = mannwhitneyu([r["score"] for r in found.values()], [r["score"] for r in clean.values()]).statistic
        assert row["auroc"]["value"] == pytest.approx(pairs / len(clean) ** 2, abs=1e-4)
        before = [r for number, r in found.items() if clean[number]["right"]]
        check(row["detected"], [seen(r) for r in found.values()])
        check(row["fooled"], [not r["right"] for r in before])
        check(row["fooled_and_detected"], [seen(r) for r in before if not r["right"]])
        check(row["fooled_and_undetected"], [not r["right"] and not seen(r) for r in before])
        check(row["wrong_and_undetected"], [not r["right"] and not seen(r) for r in found.values()])


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.parent.name)
def test_a_claim_is_its_records(path):
    claim = json.loads(path.read_text())
    records = [json.loads(line) for line in (path.parent / "records.jsonl").read_text().splitlines()]
    if "certified" in claim:
        check_certificates(claim, records)
        return
    if "score" in claim:
        check_detection(claim, records)
        return
    if not isinstance(records[0]["predicted"], dict):
        check_cells(claim, records)
        return
    # Made before evaluations had a record for each cell.
    assert len(records) == claim["images"]
    assert len({record["id"] for record in records}) == len(records)
    for row in claim["cells"]:
        key = f"{row['attack']} {row['radius']} {row['defence']}"
        judged = [record for record in records if key in record["predicted"]]
        assert row["n"] == len(judged)
        assert row["correct"] == sum(record["predicted"][key] == record["label"] for record in judged)
        assert (row["low"], row["high"]) == tuple(
            round(bound, 4) for bound in wilson_interval(row["correct"], row["n"])
        )


@pytest.mark.parametrize("name", zoo_names())
def test_every_model_of_the_zoo_has_a_claim(name):
    claim = json.loads((find(name) / "claim.json").read_text())
    assert claim["measured"]["images"] >= 100
    assert claim["training"]["commit"]
    recipe = claim["recipe"]  # what is fine-tuned has the sizes of what it starts from
    began = recipe["model"] if "model" in recipe else about_model(recipe["masked_model"])
    made = about_model(name)
    if recipe.get("guide"):  # which makes one architecture of two
        assert began["name"] in ("masked-conv", "guided-conv")
        assert made["name"] == "guided-conv"
        guide = about_model(recipe["guide"])
        assert made["options"]["guide"] == {"name": guide["name"], "options": guide["options"]}
    else:
        assert began["name"] == made["name"]


def test_the_zoo_is_small_enough_for_the_wheel():
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 12e6


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, Table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_against_published_values(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_recommended_recipes_name_models_of_the_zoo():
    from robustmim.config import PurifyRecipe
    from robustmim.recipe import recipe_names

    for name in recipe_names():
        if name.startswith(("recommended", "amrm-")):
            model = load_recipe(PurifyRecipe, name).masked_model
            # What is not in the zoo is what a recipe of that name trains.
            assert model in zoo_names() or Path(model).name in recipe_names(), name
