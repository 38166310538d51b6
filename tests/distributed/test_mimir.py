"""MIMIR by two processes whose penalty is over the batch of both: what they say to each other, and exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_adversarial import COUNTING, DYING, finished, start
from tests.distributed.test_processes import MIMIR

pytest.importorskip("foolbox")

STEPS = 10 * (20 // 8)
WORDS = [
    *MIMIR,
    "--run.epochs",
    "10",
    "--run.evaluate_every",
    "10",
    "--run.checkpoint_minutes",
    "0",
    "--run.ema",
    "0.9",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "counting.py").write_text(COUNTING)
    (folder / "dying.py").write_text(DYING)
    whole = start(2, [str(folder / "counting.py"), str(folder / "said"), *WORDS, "--out", str(folder / "whole")])
    part = start(2, [str(folder / "dying.py"), *WORDS, "--out", str(folder / "part")])
    finished(whole)
    part.communicate(timeout=240)
    assert part.returncode != 0
    return folder


def test_a_step_makes_one_reduction_and_gathers_images_and_encodings_once(runs):
    assert (runs / "said").read_text().splitlines() == [f"{STEPS} {2 * STEPS} 0"] * 2


def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(runs):
    assert (runs / "part" / "last.safetensors").exists()
    assert not (runs / "part" / "model.safetensors").exists()
    finished(start(2, ["-m", "robustmim.cli.main", *WORDS, "--out", str(runs / "part")]))
    whole, part = (load_file(runs / name / "model.safetensors") for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
