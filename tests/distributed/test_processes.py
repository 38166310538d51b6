"""Two processes by torchrun (gloo, CPU): the same run as one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from robustmim.runs import read_lines
from tests.tiny import TINY_PRETRAIN

pytest.importorskip("foolbox")

WORDS = [
    *TINY_PRETRAIN,
    *("--run.epochs", "4", "--run.ema", "0", "--run.evaluate_every", "4", "--optimizer.clip", "0"),
]


def run(processes: int, out: str, *more: str) -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "robustmim.cli.main", *WORDS, "--out", out, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        print(done.stderr)
    return done.returncode


def test_two_processes_train_as_one_does(tmp_path):
    assert run(2, str(tmp_path / "two")) == 0
    assert run(1, str(tmp_path / "one")) == 0
    rows = [read_lines(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    evaluations = [next(row for row in r if row.get("evaluation"))["masked_loss"] for r in rows]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=2e-3, rtol=1e-2)
    assert len({row["step"] for row in rows[1]}) == len(rows[1]) - 1  # one process writes; the last step has two lines
