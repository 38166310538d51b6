"""`robustmim certify`: the claim, stopping and going on, and mistakes."""

from __future__ import annotations

import json

import pytest

from robustmim.cli.main import main
from robustmim.report.measures import certificate_sections
from robustmim.runs import read_json, read_lines

pytest.importorskip("foolbox")
BASE = ["certify", "cifar10-sigma-0.12", "--device", "cpu", "--data.name", "samples-cifar10", "--data.skip", "0"]
FEW = [*BASE, "--limit", "4", "--selection_draws", "6", "--draws", "20", "--batch_size", "20", "--alpha", "0.05"]
TIMES = ("milliseconds_per_image", "environment")


def numbers(path):
    return {key: value for key, value in read_json(path / "claim.json").items() if key not in TIMES}


def test_a_run_writes_records_and_a_claim(tmp_path, capsys):
    words = [*FEW, "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    claim = json.loads(told.out)
    assert claim == read_json(tmp_path / "claim.json")
    assert "certified, l2 0.25" in told.err
    records = read_lines(tmp_path / "records.jsonl")
    assert [record["id"] for record in records] == [0, 1, 2, 3]
    assert all(record["count"] <= 20 for record in records)
    at = [row["correct"] for row in claim["certified"]]
    assert at == sorted(at, reverse=True)
    assert at[0] == len(claim["curve"]) == sum(record["predicted"] == record["label"] for record in records)
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["n"] == 4 for row in claim["certified"])
    assert claim["mean_radius"] == pytest.approx(sum(claim["curve"]) / 4, abs=1e-5)
    assert claim["largest_radius"] >= max(claim["curve"], default=0)
    assert (claim["sigma"], claim["selection_draws"], claim["draws"], claim["alpha"]) == (0.12, 6, 20, 0.05)
    assert claim["milliseconds_per_image"] > 0
    assert "masked reconstruction" in claim["purifier"]
    assert read_json(tmp_path / "run.json")["status"] == "finished"
    assert main([*words, "--seed", "4"]) == 2
    assert "another run" in capsys.readouterr().err


def test_a_run_goes_on_where_it_stopped(tmp_path, capsys):
    words = [*FEW, "--purifier", "none"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    part = tmp_path / "part"
    assert main([*words, "--out", str(part), "--max-time", "0"]) == 130
    assert "to go on" in capsys.readouterr().err
    assert read_json(part / "run.json")["status"] == "stopped"
    # As if it had been killed while it wrote the third line.
    lines = (tmp_path / "whole" / "records.jsonl").read_text().splitlines()
    (part / "records.jsonl").write_text("\n".join([*lines[:2], lines[2][:17]]))
    assert main([*words, "--out", str(part), "--batch_size", "7"]) == 0
    assert read_lines(part / "records.jsonl") == read_lines(tmp_path / "whole" / "records.jsonl")
    assert numbers(part) == numbers(tmp_path / "whole")
    assert numbers(part)["purifier"] is None
    # Once more: nothing is left to do, and the claim stays.
    assert main([*words, "--out", str(part)]) == 0
    assert numbers(part) == numbers(tmp_path / "whole")


def test_a_dry_run_writes_nothing_and_the_folder_has_the_whole_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*FEW, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draws"] == 26
    assert not list(tmp_path.iterdir())
    words = ["--purifier", "none", "--draws", "1", "--selection_draws", "1", "--limit", "1"]
    assert main([*FEW, *words]) == 0
    assert (tmp_path / "runs" / "certify-cifar10-sigma-0.12-fast-cnn-cifar10-bare" / "claim.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sigma", "0"], "sigma"),
        (["--sigma", "-0.1"], "sigma"),
        (["--alpha", "0"], "alpha"),
        (["--alpha", "1.5"], "alpha"),
        (["--draws", "0"], "draws"),
        (["--selection-draws", "0"], "selection_draws"),
        (["--batch-size", "0"], "batch_size"),
        (["--draws", "many"], "draws"),
        (["--sigm", "0.1"], "Did you mean 'sigma'"),
        (["--purifier", "reconstruction-cifar"], "Did you mean 'reconstruction-cifar10'"),
    ],
)
def test_mistakes_are_answered(tmp_path, capsys, words, says):
    assert main([*FEW, "--purifier", "none", "--out", str(tmp_path / "none"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("kind", "name"), [("certify", "cifar10-sigma-0.25"), ("corruptions", "corruptions-cifar10")])
def test_a_copied_recipe_comes_with_the_command_that_runs_it(tmp_path, capsys, kind, name):
    target = tmp_path / "own.yaml"
    assert main(["init", name, str(target)]) == 0
    assert f"robustmim {kind} {target}" in capsys.readouterr().out


def test_a_run_has_a_page_with_what_attacks_have_left_beside_the_certificates(tmp_path, capsys):
    few = [
        "--purifier",
        "none",
        "--draws",
        "9",
        "--selection_draws",
        "1",
        "--limit",
        "3",
        "--out",
        str(tmp_path / "run"),
    ]
    attack = "[{name: pgd, options: {steps: 2}}]"
    data = ["--device", "cpu", "--data.name", "samples-cifar10", "--data.skip", "0", "--limit", "3"]
    words = ["evaluate", "cifar10-l2", *data, "--radii", "[127.5/255]", "--attacks", attack, "--purifier", "none"]
    assert main([*words, "--out", str(tmp_path / "attacked")]) in (0, 4)
    assert main([*FEW, *few]) == 0
    assert "Certified accuracy over the radius" in (tmp_path / "run" / "report.html").read_text()
    assert main([*FEW, *few, "--empirical", str(tmp_path / "attacked")]) == 0
    (found,) = read_json(tmp_path / "run" / "claim.json")["empirical"]["accuracies"]
    assert found == read_json(tmp_path / "attacked" / "claim.json")["worst_case"]
    charts, table, *_ = certificate_sections(tmp_path / "run")[1:]
    (plot,) = charts.plots
    certified, left = plot.lines
    # The steps of the curve are the certified radii of the images that are right.
    curve = read_json(tmp_path / "run" / "claim.json")["curve"]
    assert list(certified.x[1:-1:2]) == curve
    assert certified.y[0] == len(curve) / 3
    assert certified.y[-1] == 0
    assert left.x == (0.5,)
    row = dict(table.rows)["0.5"]
    assert row[1].accuracy == found["accuracy"]
    capsys.readouterr()
    assert main([*FEW, *few, "--empirical", str(tmp_path / "run")]) == 1
    assert "name another evaluation" in capsys.readouterr().err


def test_the_purifier_of_one_pass_works_elsewhere_too(tmp_path, capsys):
    from tests.tiny import TINY_EVALUATION

    words = [*TINY_EVALUATION, "--limit", "2", "--purifier", "reconstruction-cifar10", "--out", str(tmp_path / "run")]
    assert main(words) in (0, 4)
    assert "masked reconstruction" in read_json(tmp_path / "run" / "claim.json")["purifier"]
