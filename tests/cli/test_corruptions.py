"""`robustmim corruptions`: the table, the claim, stopping and going on, and mistakes."""

from __future__ import annotations

import json

import pytest

from robustmim.cli.main import main
from robustmim.report.measures import corruption_sections
from robustmim.runs import read_json, read_lines

pytest.importorskip("foolbox")
BASE = ["corruptions", "--device", "cpu", "--data.name", "samples-cifar10", "--data.skip", "0", "--limit", "6"]
FEW = [*BASE, "--names", "contrast,gaussian_noise", "--severities", "1,5", "--purifier", "none"]


def test_a_run_writes_records_and_a_claim(tmp_path, capsys):
    words = [*FEW, "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    claim = json.loads(capsys.readouterr().out)
    assert claim == read_json(tmp_path / "claim.json")
    cells = {(row["corruption"], row["severity"]): row for row in claim["cells"]}
    assert list(cells) == [("none", 0), *((n, s) for n in ("gaussian_noise", "contrast") for s in (1, 5))]
    assert all(row["low"] <= row["accuracy"] <= row["high"] and row["n"] == 6 for row in claim["cells"])
    errors = [1 - row["correct"] / 6 for key, row in cells.items() if key != ("none", 0)]
    clean = 1 - cells["none", 0]["correct"] / 6
    found = claim["summary"]["bare"]
    assert found["mean_corruption_error"] == pytest.approx(sum(errors) / 4, abs=1e-4)
    assert found["relative_mean_corruption_error"] == pytest.approx(sum(errors) / 4 - clean, abs=1e-4)
    assert read_json(tmp_path / "run.json")["status"] == "finished"
    assert main([*words, "--seed", "4"]) == 2
    assert "another run" in capsys.readouterr().err


def test_a_run_goes_on_where_it_stopped(tmp_path, capsys):
    assert main([*FEW, "--out", str(tmp_path / "whole")]) == 0
    part = tmp_path / "part"
    assert main([*FEW, "--out", str(part), "--max-time", "0"]) == 130
    assert read_json(part / "run.json")["status"] == "stopped"
    kept = read_lines(tmp_path / "whole" / "records.jsonl")
    # As if it had been killed while it wrote the third line; the second is marked, to see that it is not measured again.
    kept[1]["correct"]["bare"] = 0
    lines = [json.dumps(record) for record in kept[:2]]
    (part / "records.jsonl").write_text("\n".join([*lines, '{"corruption": "contr']))
    assert main([*FEW, "--out", str(part), "--severities", "[1, 5]"]) == 0  # the same, written in another way
    again = read_lines(part / "records.jsonl")
    assert again[:2] == kept[:2]
    assert again[2:] == read_lines(tmp_path / "whole" / "records.jsonl")[2:]
    assert "5/5 cells" in capsys.readouterr().err


def test_a_purifier_is_measured_beside_the_bare_classifier(tmp_path):
    words = [*BASE, "--names", "gaussian_noise", "--severities", "5", "--limit", "4", "--out", str(tmp_path)]
    assert main(words) == 0
    claim = read_json(tmp_path / "claim.json")
    assert list(claim["summary"]) == ["bare", "purified"]
    assert len(claim["cells"]) == 4
    verdict, _, charts, table = corruption_sections(tmp_path)
    assert verdict.headlines[1].label == "Hardest: gaussian noise, severity 5"
    (bars,) = charts.plots  # a single severity makes no curve
    cells = {(row["corruption"], row["defence"]): row["accuracy"] for row in claim["cells"]}
    assert [bar.values for bar in bars.bars] == [(cells["gaussian_noise", d],) for d in ("bare", "purified")]
    assert [name for name, _ in table.rows] == ["clean", "gaussian noise 5"]
    assert "Mean corruption error, purified" in (tmp_path / "report.html").read_text()


def test_errors_are_divided_by_those_of_a_baseline(tmp_path, capsys):
    words = [*BASE, "--names", "gaussian_noise,fog", "--severities", "4,5", "--limit", "12", "--purifier", "none"]
    other = ["--classifier", "fast-cnn-adversarial-cifar10", "--out", str(tmp_path / "other")]
    assert main([*words, *other]) == 0
    assert main([*words, "--out", str(tmp_path / "own"), "--baseline", str(tmp_path / "other")]) == 0
    own, baseline = (read_json(tmp_path / name / "claim.json") for name in ("own", "other"))

    def summed(claim, name):
        return sum(1 - row["correct"] / 12 for row in claim["cells"] if row["corruption"] == name)

    ratios = [summed(own, name) / summed(baseline, name) for name in ("gaussian_noise", "fog")]
    assert own["summary"]["bare"]["mCE"] == pytest.approx(sum(ratios) / 2, abs=1e-4)
    assert own["baseline"] == "fast-cnn-adversarial-cifar10"
    assert "baseline" not in baseline
    assert "mCE" in (tmp_path / "own" / "report.html").read_text()
    assert main([*words, "--limit", "6", "--out", str(tmp_path / "few"), "--baseline", str(tmp_path / "other")]) == 1
    assert "its errors are of other images" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "own"), "--baseline", "alexnet"]) == 1
    assert "all five severities" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "own"), "--baseline", str(tmp_path)]) == 2


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert main([*FEW, "--out", str(tmp_path / "none"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 5
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--names", "fogg"], "Did you mean 'fog'"),
        (["--severities", "1,6"], "Did you mean 5"),
        (["--severities", "one"], "numbers from 1 to 5"),
        (["--names", ","], "at least"),
        (["--data.corruption", "fog"], "--names"),
    ],
)
def test_mistakes_are_answered(tmp_path, capsys, words, says):
    assert main([*BASE, "--purifier", "none", "--out", str(tmp_path), *words]) == 2
    assert says in capsys.readouterr().err
