"""Two processes by torchrun (gloo, CPU) measure: the same records and claims as one, also of a run that two began and one ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustmim.cli.main import main
from robustmim.runs import read_json
from robustmim.train import distributed
from tests.tiny import TINY_EVALUATION

pytest.importorskip("foolbox")
pytestmark = pytest.mark.usefixtures("unchecked")  # the two processes run without, and norms are then folded

DATA = ["--device", "cpu", "--data.name", "samples-cifar10", "--data.skip", "0", "--purifier", "none"]
KEEP = ["--keep_images", "true"]
COMMANDS = {
    "evaluate": [*TINY_EVALUATION, "--batch_size", "2", "--limit", "6", "--purifier", "jpeg", *KEEP],
    "certify": ["certify", *DATA, "--limit", "5", "--selection_draws", "4", "--draws", "10", "--batch_size", "10"],
    "corruptions": ["corruptions", *DATA, "--limit", "4", "--names", "contrast,gaussian_noise", "--severities", "1,5"],
}
TIMES = ("milliseconds_per_image", "environment", "report")


def claim(folder: Path) -> dict:
    found = read_json(folder / "claim.json")
    for cell in found.get("cells", []):
        cell.pop("cost", None)  # that of the process that leads, from which the rest is estimated
    return {key: value for key, value in found.items() if key not in TIMES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    running = [
        subprocess.Popen(
            [*launcher, "-m", "robustmim.cli.main", *words, "--out", str(folder / f"{name}-two")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, words in COMMANDS.items()
    ]
    for process in running:
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_measure_what_one_does(folder, name):
    one, two = folder / f"{name}-one", folder / f"{name}-two"
    assert main([*COMMANDS[name], "--out", str(one)]) in (0, 4)
    assert (one / "records.jsonl").read_bytes() == (two / "records.jsonl").read_bytes()
    assert not list(two.glob("records.*.jsonl"))
    assert read_json(two / "run.json")["status"] == "finished"
    assert claim(one) == claim(two)
    kept = sorted((one / "adversarial").glob("*"))
    assert bool(kept) == (name == "evaluate")
    assert [file.name for file in kept] == sorted(file.name for file in (two / "adversarial").glob("*"))
    for file in kept:
        other = load_file(two / "adversarial" / file.name)
        assert all(torch.equal(value, other[key]) for key, value in load_file(file).items())


@pytest.mark.parametrize("name", COMMANDS)
def test_one_process_ends_what_two_began(folder, tmp_path, name):
    """The files of two processes as a kill leaves them: one of them cut in the middle of a line."""
    whole = (folder / f"{name}-two" / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.0.jsonl").write_text("\n".join(whole[:3:2])[:-9])
    (tmp_path / "records.1.jsonl").write_text("\n".join(whole[1:4:2]) + "\n")
    (tmp_path / "adversarial").mkdir()  # of clean images nothing is kept
    assert main([*COMMANDS[name], "--out", str(tmp_path)]) in (0, 4)
    assert (tmp_path / "records.jsonl").read_text().splitlines() == whole
    assert not list(tmp_path.glob("records.*.jsonl"))


def test_each_process_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    assert str(distributed.choose_device("auto")) == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(distributed.choose_device("auto")) == "cuda:1"
    assert str(distributed.choose_device("cpu")) == "cpu"
