"""doctor, list, help, and what evaluate says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustmim.cli.main import COMMANDS, main
from robustmim.errors import CheckpointError, InputError
from robustmim.models.zoo import load_model, save_model, zoo_names
from robustmim.runs import RunFolder, read_json
from tests.tiny import TINY_EVALUATION
from tests.unit.test_masked_models import tiny_conv


def test_doctor_finds_this_machine_fit(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert torch.__version__ in told
    assert "broken" not in told
    for name in zoo_names():
        assert name in told


def test_list_shows_what_there_is(capsys):
    assert main(["list"]) == 0
    told = capsys.readouterr().out
    for word in ("masked-conv", "resnet56", "amrm", "pgd", "cifar10", "recommended-cifar10", *zoo_names()):
        assert word in told
    assert main(["list", "zo"]) == 2
    assert "Did you mean 'zoo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["doctor", "all"], "'all'"),
        (["report", "--out", "x"], "--out"),
        (["report"], "name a run folder"),
        (["demo", "photos"], "'photos'"),
        (["init"], "name one recipe"),
        (["init", "nothing-like-it"], "robustmim list recipes"),
    ],
)
def test_words_that_a_command_does_not_know_are_refused(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_one_run_that_cannot_be_reported_stops_no_other(tmp_path, capsys):
    about = {"kind": "train", "status": "failed", "started": "2026-01-01T10:00:00", "recipe": {}, "command": "x"}
    for name, text in (("good", json.dumps(about | {"environment": {}})), ("bad", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "file").touch()
    runs = [str(tmp_path / name) for name in ("bad", "nowhere", "file", "good")]
    assert main(["report", *runs]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert all(f"{run}/run.json" in told for run in runs[:3])
    assert "This run failed" in (tmp_path / "good" / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "a/file"), "a/file: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory; lower the batch size"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(error, says, monkeypatch, capsys):
    def refuse(arguments):
        raise error

    monkeypatch.setattr("robustmim.cli.list.main", refuse)
    assert main(["list"]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    try:
        code = main([command, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0
    assert f"robustmim {command}" in capsys.readouterr().out


def test_evaluate_writes_claim_records_and_report(tmp_path, capsys):
    pytest.importorskip("foolbox")
    words = [*TINY_EVALUATION, "--limit", "6"]
    code = main([*words, "--out", str(tmp_path / "run"), "--json"])
    claim = json.loads(capsys.readouterr().out)
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    assert code == (4 if any(one["level"] == "red" for one in claim["findings"]) else 0)
    sections = (Path(__file__).parents[2] / "docs" / "honesty.md").read_text()
    assert all(f"## {one['check']}\n" in sections for one in claim["findings"])
    assert cells["none", "0", "bare"]["n"] == 6
    assert cells["gray-box", "4/255", "bare"]["correct"] < cells["none", "0", "bare"]["correct"]
    assert cells["white-box", "4/255", "purified"]["n"] == 2
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in claim["cells"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert read_json(tmp_path / "run" / "run.json")["status"] == "finished"
    assert main([*words, "--out", str(tmp_path / "run"), "--fail_under", "1.1"]) == 3  # resumes: nothing is left to do
    assert main([*words, "--out", str(tmp_path / "run"), "--seed", "5"]) == 2
    assert "another run" in capsys.readouterr().err


def test_evaluate_of_a_bare_classifier_in_l2(tmp_path):
    pytest.importorskip("foolbox")
    words = ["evaluate", "cifar10-l2", "--data.name", "samples-cifar10", "--data.skip", "0", "--limit", "4"]
    words += ["--attacks", "[{name: pgd, options: {steps: 20}}]", "--radii", "[0.5]", "--purifier", "none"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    claim = read_json(tmp_path / "claim.json")
    assert claim["purifier"] is None
    assert {row["defence"] for row in claim["cells"]} == {"bare"}


def test_a_classifier_that_does_not_fit_is_refused(tmp_path, capsys):
    pytest.importorskip("foolbox")
    options = {"classes": 7, "widths": [8, 8, 8]}
    from robustmim.models.fast_cnn import FastCNN

    model = FastCNN(classes=7, widths=(8, 8, 8))
    save_model(tmp_path / "seven", model, {"kind": "classifier", "name": "fast-cnn", "options": options})
    words = [
        "evaluate",
        "cifar10-linf",
        "--data.name",
        "samples-cifar10",
        "--data.skip",
        "0",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*words, "--classifier", str(tmp_path / "seven")]) == 1
    told = capsys.readouterr().err
    assert "7" in told
    assert "10" in told
    assert main([*words, "--classifier", "masked-conv-cifar10"]) == 1
    assert "but a classifier is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate", "cifar10-linf", "--batch_size", "0"], "batch_size is at least 1, not 0"),
        (["train", "fast-cnn-cifar10", "--run.batch_size", "0"], "batch_size is at least 1, not 0"),
        (["train", "fast-cnn-cifar10", "--run.epochs", "-1"], "epochs are above 0"),
        (["train", "fast-cnn-cifar10", "--optimizer.learning_rate", "0"], "optimizer.learning_rate is above 0, not 0"),
    ],
)
def test_nothing_at_a_time_is_refused(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_a_folder_that_does_not_say_what_was_run_is_refused(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match="does not say what was run"):
        RunFolder(tmp_path, recipe={"a": 1}, kind="train")


class TestSavedModels:
    config = {  # noqa: RUF012
        "kind": "masked-model",
        "name": "masked-conv",
        "options": {"patch_size": 1, "widths": [8, 16], "blocks": [1, 1]},
    }

    def test_a_saved_model_is_the_same_model(self, tmp_path):
        model = tiny_conv()
        save_model(tmp_path, model, self.config)
        again = load_model(tmp_path, kind="masked-model")
        assert not again.training
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())

    def test_half_precision_halves_the_file_and_computes_in_single(self, tmp_path):
        save_model(tmp_path / "whole", tiny_conv(), self.config)
        save_model(tmp_path / "half", tiny_conv(), self.config, half=True)
        whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
        assert half < 0.7 * whole
        assert next(load_model(tmp_path / "half").parameters()).dtype == torch.float32

    @pytest.mark.parametrize(
        "text", ['{"kind": "classifier"}', "[]", '{"kind": "toaster", "name": "fast-cnn", "options": {}}']
    )
    def test_a_config_that_does_not_say_what_to_build_is_refused(self, text, tmp_path):
        (tmp_path / "config.json").write_text(text)
        for kind in (None, "classifier"):
            with pytest.raises(CheckpointError, match="not the config of a saved model"):
                load_model(tmp_path, kind=kind)

    def test_damaged_and_foreign_folders_are_named(self, tmp_path):
        save_model(tmp_path, tiny_conv(), self.config)
        path = tmp_path / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(tmp_path)
        save_file({"other": torch.zeros(2)}, path)
        with pytest.raises(CheckpointError, match="does not fit"):
            load_model(tmp_path)
        with pytest.raises(CheckpointError, match=r"is a file, .*--arch"):
            load_model(path)
        path.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            load_model(tmp_path)
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            load_model(tmp_path.parent)
        with pytest.raises(CheckpointError, match=r"zzz.*robustmim list zoo"):
            load_model("zzz")
        with pytest.raises(CheckpointError, match="there is no folder runs/never-trained"):
            load_model("runs/never-trained")
