"""kill -9 at any moment loses nothing but the time since the last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustmim.runs import read_json, read_lines
from tests.tiny import TINY_EVALUATION, TINY_PRETRAIN

pytest.importorskip("foolbox")

PRETRAIN = [*TINY_PRETRAIN, "--run.epochs", "40", "--run.checkpoint_minutes", "0", "--run.evaluate_every", "20"]


def robustmim(*words: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robustmim.cli.main", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


def test_training_resumes_bit_for_bit_after_kill_nine(tmp_path):
    whole = robustmim(*PRETRAIN, "--out", str(tmp_path / "whole"))
    killed = robustmim(*PRETRAIN, "--out", str(tmp_path / "killed"))
    wait_for(tmp_path / "killed" / "last.safetensors")
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert whole.wait(timeout=120) == 0
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert read_json(tmp_path / "killed" / "run.json")["status"] == "running"

    assert robustmim(*PRETRAIN, "--out", str(tmp_path / "killed")).wait(timeout=120) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_control_c_saves_and_says_how_to_go_on(tmp_path):
    running = robustmim(*PRETRAIN, "--out", str(tmp_path / "run"), "--run.checkpoint_minutes", "60")
    wait_for(tmp_path / "run" / "log.jsonl")
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "To go on: robustmim pretrain masked-conv-cifar10" in told
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped"
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_evaluation_resumes_to_the_same_records_after_kill_nine(tmp_path):
    words = [*TINY_EVALUATION, "--batch_size", "2", "--limit", "8", "--purifier", "recommended-cifar10"]
    whole = robustmim(*words, "--out", str(tmp_path / "whole"))
    killed = robustmim(*words, "--out", str(tmp_path / "killed"))
    wait_for(tmp_path / "killed" / "records.jsonl")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with (tmp_path / "killed" / "records.jsonl").open("a") as file:
        file.write('{"id": 7, "lab')  # the line that the kill cut short
    assert whole.wait(timeout=180) in (0, 4)  # so few images may look suspicious
    again = robustmim(*words, "--out", str(tmp_path / "killed"))
    assert again.wait(timeout=180) in (0, 4), again.stderr.read()
    first, second = (read_lines(tmp_path / name / "records.jsonl") for name in ("whole", "killed"))
    assert first == second
    assert len(first) == 8 * 5  # samples × cells
