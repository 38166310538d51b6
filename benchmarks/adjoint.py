"""Gradients through a purification: time against purifying alone, memory against the full graph, in one run.

    OMP_NUM_THREADS=1 python benchmarks/adjoint.py [--record]

Time is that of purifying and pulling a gradient back, over purifying alone (processor seconds, medians, interleaved).
Memory is the most that autograd holds at any moment. `--record` writes benchmarks/records/<date>-adjoint/record.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustmim.adjoint import smooth_sign
from robustmim.config import GradientConfig, PurifyRecipe
from robustmim.descent import advance
from robustmim.geometry import Ball
from robustmim.purify.amrm import AMRMPure, ReconstructionObjective, step_sizes
from robustmim.purify.load import make_purifier
from robustmim.recipe import load_recipe
from robustmim.rng import Keys, keys
from robustmim.runs import environment

PURIFIERS = ("recommended-cifar10", "amrm-mae-patch4-cifar10")
STEPS = (8, 24)
BATCH = 8


class Held:
    """A tensor that autograd keeps; counts the bytes while it lives."""

    live = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.live += self.size
        Held.peak = max(Held.peak, Held.live)

    def __del__(self) -> None:
        Held.live -= self.size


def full_graph(purifier: AMRMPure, x: Tensor, drawn: Keys, gradient: GradientConfig) -> Tensor:
    """Purify by plain autograd through every step, as one would write it first."""
    config, smooth = purifier.config, smooth_sign(gradient)
    ball = Ball(norm=config.norm, eps=config.radius)
    objective = ReconstructionObjective(purifier.model, config, drawn, purifier.model.grid(*x.shape[-2:]), twice=True)
    current, velocity = x, torch.zeros_like(x) if config.momentum else None
    for step, length in enumerate(step_sizes(config)):
        (slope,) = torch.autograd.grad(objective.between(current, current, step).sum(), current, create_graph=True)
        current, velocity = advance(
            current,
            velocity,
            slope,
            x,
            length=-length,
            momentum=config.momentum,
            direction=lambda v: v.sign() + (smooth(v) - smooth(v).detach()),
            project=lambda point, center: ball.project(point, center).detach() + (point - point.detach()),
        )
    return current


def measure(name: str, steps: int, rounds: int) -> dict[str, Any]:
    recipe = load_recipe(PurifyRecipe, name)
    recipe = dataclasses.replace(recipe, amrm=dataclasses.replace(recipe.amrm, steps=steps))
    purifier = make_purifier(recipe)
    assert isinstance(purifier, AMRMPure)
    drawn = keys(0, "bench", torch.arange(BATCH))
    x = drawn.fold("image").uniform(3, 32, 32)
    upstream = drawn.fold("upstream").normal(3, 32, 32)

    def pulled(purify: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad((purify(leaf) * upstream).sum(), leaf)[0]

    def adjoint(product: str) -> Callable[[], Tensor]:
        gradient = GradientConfig(mode="tanh", product=product)  # type: ignore[arg-type]
        return lambda: pulled(lambda leaf: purifier.differentiable(leaf, keys=drawn, gradient=gradient))

    jobs: dict[str, Callable[[], Tensor]] = {
        "purify alone": lambda: purifier(x, keys=drawn),
        "forward-difference": adjoint("forward-difference"),
        "central-difference": adjoint("central-difference"),
        "hessian": adjoint("hessian"),
        "full graph": lambda: pulled(lambda leaf: full_graph(purifier, leaf, drawn, GradientConfig(mode="tanh"))),
    }
    spent: dict[str, list[float]] = {job: [] for job in jobs}
    for number in range(rounds + 1):  # the first round warms up
        for job, run in jobs.items():
            began = time.process_time()
            run()
            if number:
                spent[job].append(time.process_time() - began)
    middle = {job: statistics.median(values) for job, values in spent.items()}
    exact = jobs["full graph"]()
    rows = {}
    for job, run in jobs.items():
        Held.peak = before = Held.live
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            result = run()
        rows[job] = {
            "ms_an_image": round(middle[job] / BATCH * 1000, 2),
            "over_purifying": round(middle[job] / middle["purify alone"], 2),
            "held_mib": round((Held.peak - before) / 2**20, 1),
        }
        if job != "purify alone":
            rows[job]["off_the_full_graph"] = float(f"{float((result - exact).norm() / exact.norm()):.2g}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {f"{name}, S {steps}": measure(name, steps, options.rounds) for name in PURIFIERS for steps in STEPS}
    for name, rows in results.items():
        print(name)
        for job, row in rows.items():
            off = f", off the full graph by {row['off_the_full_graph']:.0e}" if "off_the_full_graph" in row else ""
            print(
                f"  {job:20} {row['ms_an_image']:8.2f} ms an image, {row['over_purifying']:.2f}×, {row['held_mib']:7.1f} MiB{off}"
            )
    if options.record:
        folder = Path(__file__).parent / "records" / f"{datetime.date.today().isoformat()}-adjoint"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"results": results, "batch": BATCH, "rounds": options.rounds, "environment": environment()}
        (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
