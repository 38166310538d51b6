"""An evaluation that is killed at fifty random moments and more ends with what one that nobody disturbed has written.

A process that starts from nothing takes seconds to import torch. So one process imports it once, and forks: each child is
killed by SIGKILL at a moment drawn over the whole length of a run, from making the folder to writing the claim; the next one
goes on in the same folder. A run that has come to its end is compared, and a new one begun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

KILLS = 50

DRIVER = textwrap.dedent(
    """
    import json, os, random, signal, sys, time
    from pathlib import Path

    import torch

    torch.set_num_threads(1)
    from robustmim.config import AttackConfig, ChecksConfig, DataConfig, EvaluateRecipe
    from robustmim.evaluate.claims import conclude
    from robustmim.evaluate.run import Evaluator
    from robustmim.purify.traits import Traits
    from robustmim.radius import Radius
    from robustmim.runs import RunFolder

    folder, kills, CPU = Path(sys.argv[1]), int(sys.argv[2]), torch.device("cpu")


    class Halves(torch.nn.Module):
        def forward(self, x):
            score = 10 * (x[..., :4].mean((1, 2, 3)) - x[..., 4:].mean((1, 2, 3)))
            return torch.stack([-score, score], 1)


    class Noise:
        traits = Traits(randomised=True, optimises_at_test_time=False, steps=1)

        def __call__(self, x, *, keys, callback=None):
            return (x + 0.05 * keys.normal(*x.shape[1:])).clamp(0, 1)


    class Source:
        name, classes = "halves", ("darker", "lighter")
        ids, labels = torch.arange(16) + 100, torch.arange(16) % 2
        images = torch.full((16, 3, 8, 8), 128)
        images[..., :4] += ((torch.arange(16) + 1) * (2 * labels - 1)).view(-1, 1, 1, 1)

        def __len__(self):
            return 16

        def fetch(self, indices):
            return self.images[indices].to(torch.uint8)


    attacks = (
        AttackConfig(name="gray", against="classifier", options={"steps": 4}),
        AttackConfig(name="white", eot=2, options={"steps": 8}, images=12),
        AttackConfig(name="square", attack="square", options={"queries": 10}),
        AttackConfig(name="known", randomness="known", options={"steps": 4}),
    )
    recipe = EvaluateRecipe(
        data=DataConfig(name="halves"), radii=(Radius("2/255"), Radius("8/255")), attacks=attacks, batch_size=4,
        draws=3, cascade=True, checks=ChecksConfig(images=2),
    )


    def forked(path):
        child = os.fork()
        if child:
            return child
        try:
            evaluator = Evaluator(Halves(), Noise(), recipe)
            run = RunFolder(path, recipe={"evaluate": recipe}, kind="evaluate")
            assert evaluator.run(Source(), run, device=CPU)
            conclude(evaluator, Source(), run, classifier="halves", purify=None, device=CPU)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)


    def ended(path):
        records = (path / "records.jsonl").read_bytes()
        claim = json.loads((path / "claim.json").read_text())
        # Of times nothing is promised, and a kill may take the line that says what a batch has cost.
        for row in [claim, *claim["cells"]]:
            row.pop("milliseconds_per_image", None)
            row.pop("cost", None)
        return records, claim, (path / "checks.json").read_bytes(), (path / "examples.safetensors").read_bytes()


    began = time.monotonic()
    assert os.waitpid(forked(folder / "whole"), 0)[1] == 0
    length, whole = time.monotonic() - began, ended(folder / "whole")
    assert len(whole[0].splitlines()) == 16 * 12
    moments, landed, finished = random.Random(0), [], 0
    while len(landed) < kills or not finished:
        path = folder / f"killed{finished}"
        child = forked(path)
        time.sleep(moments.uniform(0, length))
        os.kill(child, signal.SIGKILL)  # of a child that has ended but was not waited for, nothing
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            text = (path / "records.jsonl").read_bytes() if (path / "records.jsonl").exists() else b""
            landed.append(len(text) / len(whole[0]))
            continue
        assert os.WEXITSTATUS(status) == 0
        assert ended(path) == whole, path
        assert json.loads((path / "run.json").read_text())["status"] == "finished"
        finished += 1
    # The last one may end in peace.
    path = folder / f"killed{finished}"
    assert os.waitpid(forked(path), 0)[1] == 0
    assert ended(path) == whole, path
    print(json.dumps({"length": length, "finished": finished + 1, "landed": landed}))
    """
)


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path), str(KILLS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["landed"]) >= KILLS
    # They fell among the records, and after the last one, while the checks ran.
    assert sum(share < 1 for share in told["landed"]) >= 10
    assert max(told["landed"]) == 1
