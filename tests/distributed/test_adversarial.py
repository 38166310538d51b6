"""Adversarial training by two processes (gloo, CPU): the first loss of one, a reduction a step, exact resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from robustmim.runs import read_lines

pytest.importorskip("foolbox")

TRAIN = textwrap.dedent(
    """
    # Small enough for a test.
    model: {name: vit, options: {patch_size: 8, width: 16, depth: 2, heads: 2, drop_path: 0.2}}
    data: {name: samples-cifar10, split: test, padding: 2, flip: random,
           augment: {rand_augment: 1, mixup: 0.8, cutmix: 1.0, erasing: 0.5}}
    validation: {name: samples-cifar10, split: test, limit: 4}
    adversarial: {method: trades, steps: 2, validation_steps: 1}
    optimizer: {learning_rate: 1.0e-2, warmup: 0}
    run: {epochs: 10, batch_size: 8, ema: 0.9, evaluate_every: 10, checkpoint_minutes: 0, accumulate: 2}
    """
)

COUNTING = """
import os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from robustmim.cli.main import main
from robustmim.train import engine

class Counted(DistributedDataParallel):
    reductions = gathers = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_comm_hook(None, Counted.reduce)

    @staticmethod
    def reduce(state, bucket):
        Counted.reductions += bucket.is_last()
        return torch.distributed.all_reduce(
            bucket.buffer().div_(2), async_op=True
        ).get_future().then(lambda done: done.value()[0])

gather = torch.distributed.all_gather

def all_gather(*args):
    Counted.gathers += 1
    return gather(*args)

torch.distributed.all_gather = all_gather
engine.DistributedDataParallel = Counted
if main(sys.argv[2:]):
    raise SystemExit(1)
tasks = "/proc/self/task"  # of Linux
threads = [open(f"{tasks}/{task}/comm").read() for task in os.listdir(tasks)] if os.path.isdir(tasks) else []
with open(sys.argv[1], "a") as file:
    file.write(f"{Counted.reductions} {Counted.gathers} {sum('gloo' in name for name in threads)}\\n")
"""

DYING = """
import os, signal, sys
from robustmim.cli.main import main
from robustmim.data.loader import Loader

whole = Loader.batch

def batch(loader, step):
    if step == 15:  # the last checkpoint is of step 10
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(loader, step)

Loader.batch = batch
main(sys.argv[1:])
"""


def start(processes: int, program: list[str]) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> None:
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "r.yaml").write_text(TRAIN)
    (folder / "counting.py").write_text(COUNTING)
    words = ["train", str(folder / "r.yaml"), "--device", "cpu", "--out"]
    one = start(1, ["-m", "robustmim.cli.main", *words, str(folder / "one")])
    two = start(2, [str(folder / "counting.py"), str(folder / "reductions"), *words, str(folder / "two")])
    (folder / "dying.py").write_text(DYING)
    part = start(2, [str(folder / "dying.py"), *words, str(folder / "part")])
    for process in (one, two):
        finished(process)
    part.communicate(timeout=240)
    assert part.returncode != 0
    return folder


def test_the_first_loss_does_not_depend_on_the_number_of_processes(runs):
    one, two = (read_lines(runs / name / "log.jsonl")[0] for name in ("one", "two"))
    assert one["step"] == two["step"] == 1
    halves = json.loads((runs / "two" / "run.json").read_text())["arithmetic"]
    assert halves | {"processes": 2, "parts": 2, "images_per_part": 2} == halves
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)


def test_a_step_makes_one_reduction_and_no_thread_of_gloo_is_left_to_abort_the_end(runs):
    steps = 10 * (20 // 8)
    assert (runs / "reductions").read_text().splitlines() == [f"{steps} 0 0"] * 2


def test_weights_agree_across_numbers_of_processes(runs):
    one, two = (load_file(runs / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=5e-3, rtol=5e-2)


def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(runs):
    words = ["train", str(runs / "r.yaml"), "--device", "cpu", "--out", str(runs / "part")]
    assert (runs / "part" / "last.safetensors").exists()
    assert not (runs / "part" / "model.safetensors").exists()
    finished(start(2, ["-m", "robustmim.cli.main", *words]))
    two, part = (load_file(runs / name / "model.safetensors") for name in ("two", "part"))
    assert all(torch.equal(two[name], part[name]) for name in two)
