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

SHORT = ("--run.epochs", "4", "--run.ema", "0", "--run.evaluate_every", "4", "--optimizer.clip", "0")
SIZES = "patch_size: 8, width: 16, depth: 1, heads: 2, decoder_width: 16, decoder_depth: 1, decoder_heads: 2"
MIMIR = [
    *("pretrain", "mimir-micro-cifar10", "--device", "cpu", "--model.options", f"{{{SIZES}, target: normalised}}"),
    *("--data.name", "samples-cifar10", "--data.split", "test", "--validation.name", "samples-cifar10"),
    *("--run.batch_size", "8", "--information.weight", "1"),
]


def run(processes: int, out: str, *more: str) -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "robustmim.cli.main", *more, *SHORT, "--out", out],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        print(done.stderr)
    return done.returncode


@pytest.mark.parametrize("words", [TINY_PRETRAIN, MIMIR], ids=["masked", "mimir"])
def test_two_processes_train_as_one_does(tmp_path, words):
    """MIMIR's penalty is over the batch of both: the second process holds the partners of the first one's images."""
    assert run(2, str(tmp_path / "two"), *words) == 0
    assert run(1, str(tmp_path / "one"), *words) == 0
    rows = [read_lines(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    first = [{key: r[0][key] for key in ("loss", "information") if key in r[0]} for r in rows]
    assert first[0] == pytest.approx(first[1], abs=1e-6)
    evaluations = [next(row for row in r if row.get("evaluation"))["masked_loss"] for r in rows]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=2e-3, rtol=1e-2)
    assert len({row["step"] for row in rows[1]}) == len(rows[1]) - 1  # one process writes; the last step has two lines
