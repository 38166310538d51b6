"""compare and curve: two runs of known difference, a curve whose points are runs."""

from __future__ import annotations

import json

import pytest

from robustmim.cli.curve import varied, with_steps
from robustmim.cli.main import main
from robustmim.config import AttackConfig, BaselineConfig, EvaluateRecipe, PurifyRecipe, ReconstructionConfig
from robustmim.errors import RecipeError
from robustmim.evaluate.comparison import compare, compare_worst, exact_mcnemar
from robustmim.evaluate.verdict import Worst
from robustmim.report.measures import curve_sections
from robustmim.runs import read_json
from tests.tiny import TINY_EVALUATION


def records(rights):
    rows = {i: {"id": i, "right": r, "draws": 1} for i, r in enumerate(rights)}
    return {("pgd", "8/255", "bare"): rows}


def test_mcnemar_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((0, 0), (3, 3), (1, 9), (0, 6), (12, 30)):
        expected = stats.binomtest(min(first, second), first + second).pvalue if first + second else 1.0
        assert exact_mcnemar(first, second) == pytest.approx(expected)


def test_pairs_are_compared_not_means():
    first, second = records([1] * 20 + [0] * 20), records([1] * 14 + [0] * 26)
    (row,) = compare(first, second)
    assert row["n"] == 40
    assert row["difference"] == pytest.approx(-6 / 40)
    assert (row["only_first"], row["only_second"]) == (6, 0)
    assert row["p"] == pytest.approx(2 / 2**6)
    assert row["low"] < row["difference"] < row["high"] < 0


def test_worst_cases_are_compared_whatever_is_defended():
    bare = {
        number: Worst(share=float(number < 12), standing=number < 12, every_draw=number < 12) for number in range(40)
    }
    purified = {
        number: Worst(share=0.75 * (number < 18), standing=number < 18, every_draw=False) for number in range(36)
    }
    (row,) = compare_worst({"8/255": ("bare", bare), "4/255": ("bare", bare)}, {"8/255": ("purified", purified)})
    assert (row["attack"], row["defence"], row["n"]) == ("worst case", "bare and purified", 36)
    assert (row["first"], row["second"]) == pytest.approx((12 / 36, 0.75 * 18 / 36))
    assert (row["only_first"], row["only_second"]) == (0, 6)


def test_a_classifier_beside_the_same_purified(tmp_path, capsys):
    """The worst cases are those of the claims, and only what has faced every attack has one."""
    pytest.importorskip("foolbox")
    for purifier in ("none", "jpeg"):
        words = [*TINY_EVALUATION, "--limit", "8", "--purifier", purifier, "--out", str(tmp_path / purifier)]
        assert main(words) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "none"), str(tmp_path / "jpeg"), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["attack"] == "worst case"]
    claims = [read_json(tmp_path / purifier / "claim.json")["worst_cases"] for purifier in ("none", "jpeg")]
    assert [row["radius"] for row in rows] == [worst["radius"] for worst in claims[0]]
    for row, first, second in zip(rows, *claims, strict=True):
        assert (row["n"], row["first"], row["second"]) == pytest.approx(
            (2, first["accuracy"], second["accuracy"]), abs=1e-4
        )
    kept = tmp_path / "jpeg" / "records.jsonl"
    lines = kept.read_text().splitlines()
    missing = [line for line in lines if (json.loads(line)["attack"], json.loads(line)["id"]) == ("white-box", 1)]
    kept.write_text("\n".join(line for line in lines if line not in missing) + "\n")
    assert main(["compare", str(tmp_path / "none"), str(tmp_path / "jpeg"), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["attack"] == "worst case"]
    assert rows[-1]["n"] == 1
    told = read_json(tmp_path / "jpeg" / "run.json")
    told["recipe"]["evaluate"]["of_an_older_version"] = 1
    (tmp_path / "jpeg" / "run.json").write_text(json.dumps(told))
    assert main(["compare", str(tmp_path / "none"), str(tmp_path / "jpeg"), "--json"]) == 0
    captured = capsys.readouterr()
    assert {row["attack"] for row in json.loads(captured.out)} == {"none", "gray-box"}
    assert "was written by another version, whose recipes differ" in captured.err
    (tmp_path / "jpeg" / "run.json").write_text("{}")
    assert main(["compare", str(tmp_path / "none"), str(tmp_path / "jpeg")]) == 1
    assert "run.json is damaged: it has no 'recipe'" in capsys.readouterr().err.replace("\n", " ")


def test_records_of_something_else_are_not_compared(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text('{"id": 0, "label": 1, "predicted": 1, "radius": 0.3}\n')
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    assert "not those of an evaluation" in capsys.readouterr().err


def test_steps_are_varied_where_there_are_any_and_nowhere_else():
    recipe = EvaluateRecipe(attacks=(AttackConfig(name="a"),))

    def steps(**purify):
        return varied(recipe, PurifyRecipe(**purify), "purification-steps", "7")[1]

    assert steps(masked_model="m").amrm.steps == 7
    adp = BaselineConfig(name="adp", model="m", options={"noise": 0.05, "steps": 10})
    assert steps(baseline=adp).baseline.options == {"noise": 0.05, "steps": 7}
    with pytest.raises(RecipeError, match="jpeg has no steps that could be varied; vary radius, attack-steps or eot"):
        steps(baseline=BaselineConfig(name="jpeg"))
    with pytest.raises(RecipeError, match="one pass, without steps"):
        steps(masked_model="m", reconstruction=ReconstructionConfig())


def test_attacks_without_steps_have_none_to_vary(capsys):
    pgd, square = AttackConfig(name="a"), AttackConfig(name="b", attack="square")
    assert with_steps(EvaluateRecipe(attacks=(pgd, square))).attacks == (pgd,)
    assert "left out: b: square has no steps" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="none of the attacks has steps"):
        with_steps(EvaluateRecipe(attacks=(square,)))


def test_commands(tmp_path, capsys):
    pytest.importorskip("foolbox")
    words = ["curve", *TINY_EVALUATION[1:], "--limit", "4", "--purifier", "none", "--out", str(tmp_path)]
    assert main([*words, "--over", "radius", "--values", "0/255,16/255", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["value"] for point in points] == ["0/255", "16/255"]
    cells = [{(c["attack"], c["defence"]): c["correct"] for c in point["cells"]} for point in points]
    assert cells[0]["gray-box", "bare"] == cells[0]["none", "bare"]  # no budget, no attack
    assert cells[1]["gray-box", "bare"] < cells[0]["gray-box", "bare"]
    assert read_json(tmp_path / "curve.json")["over"] == "radius"
    charts, table = curve_sections(tmp_path)
    worst, *_ = charts.plots[0].lines
    assert (worst.label, worst.x) == ("Worst case", (0.0, 16 / 255))
    assert [name for name, _ in table.rows] == ["Worst case", "Clean", "gray-box", "white-box"]
    assert "Accuracy over the budget ε" in (tmp_path / "report.html").read_text()
    assert main(["report", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "0-255"), str(tmp_path / "16-255"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)  # clean images are what the two have in common
    assert row["difference"] == 0
    assert main(["compare", str(tmp_path / "0-255"), str(tmp_path / "nowhere")]) == 1
    assert "holds no records" in capsys.readouterr().err
    assert main([*words, "--over", "eot", "--values", "two"]) == 2
    assert main([*words, "--over", "purification-steps", "--values", "2"]) == 2
    assert "no purifier" in capsys.readouterr().err
