"""Every purifier that runs with what ships, on the same 32 images of CIFAR-10's size, interleaved in one run, processor seconds.

    OMP_NUM_THREADS=1 python benchmarks/purifiers.py [--record] [NAME …]

Beside AMRM-Pure stands the same descent as one would first write it (`reference.py`): gather-based masking, attention and its
softmax written out, `backward()` through every parameter. "passes" are images through the network, forward and backward, for
each image purified. `--record` writes the figures to benchmarks/records/<date>-purifiers/record.json.

For comparison, Table 5 of AMRM-Pure: seconds on an A40 at batch 32, for how many images is not said, with networks a hundred
times larger: DiffPure 12.39, AMRM-Pure 18.25 (MAE) and 32.85 (MaskDiT), RAMRM-Pure 11.77 and 29.73 on CIFAR-10.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import reference
from robustmim.config import PurifyRecipe
from robustmim.data.sources import load
from robustmim.errors import RobustmimError
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masking import random_mask
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.load import describe, make_purifier
from robustmim.recipe import load_recipe, recipe_names
from robustmim.rng import keys
from robustmim.runs import environment

BATCH = 32
TABLE_5 = {
    "hardware": "one NVIDIA A40",
    "batch": 32,
    "seconds": {"DiffPure": 12.39, "AMRM-Pure MAE": 18.25, "AMRM-Pure MaskDiT": 32.85}
    | {"RAMRM-Pure MAE": 11.77, "RAMRM-Pure MaskDiT": 29.73},
}


class Passes:
    """Counts images that pass through a network, forward and backward, at the first layer with weights that runs."""

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self._first: nn.Module | None = None
        self._hook = register_module_forward_hook(self._saw)

    def _saw(self, layer: nn.Module, given: Any, result: Any) -> None:
        if self._first is None and any(True for _ in layer.parameters(recurse=False)):
            self._first = layer
        if layer is not self._first:
            return
        self.forward += len(result)
        if result.requires_grad:
            result.register_hook(self._went_back)

    def _went_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def remove(self) -> None:
        self._hook.remove()


def plain_descent(purifier: AMRMPure, x: Tensor) -> Callable[[], Tensor]:
    """Return the descent as one would first write it, with as many steps; momentum and cosine, which cost nothing, left out."""
    config = purifier.config
    plain = copy.deepcopy(purifier.model)
    for weight in plain.parameters():
        weight.requires_grad_(True)

    def run() -> Tensor:
        now = x
        for step in range(config.steps):
            mask = random_mask(
                keys(0, "bench", torch.arange(len(x)), step), plain.grid(*x.shape[-2:]), config.mask_ratio
            )
            now = reference.purification_step(plain, now, mask, config.step_size)
        return now

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="purify recipes; default: all that run with what ships, at 32 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = load("samples-cifar10", "test").fetch(torch.arange(20)).float() / 255
    x = torch.cat([x, x.flip(3)])[:BATCH]
    drawn = keys(0, "purify", torch.arange(BATCH))

    jobs: dict[str, Callable[[], Tensor]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in options.names or sorted(recipe_names()):
        if "/purify/" not in recipe_names()[name].as_posix() or name.startswith("paper-") or "photos" in name:
            continue
        recipe = load_recipe(PurifyRecipe, name)
        try:
            purifier = make_purifier(recipe)
        except RobustmimError as error:
            print(f"{name}: left out, {error}")
            continue
        jobs[name] = lambda purifier=purifier: purifier(x, keys=drawn)
        passes = Passes()
        jobs[name]()
        passes.remove()
        rows[name] = {
            "what": describe(recipe),
            "forward": passes.forward / BATCH,
            "backward": passes.backward / BATCH,
        }
        if isinstance(purifier, AMRMPure) and isinstance(purifier.model, MaskedAutoencoder):
            jobs[f"{name}, plain"] = plain_descent(purifier, x)

    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if number:
                spent[name].append(time.process_time() - began)
    middle = {name: statistics.median(values) * 1000 / BATCH for name, values in spent.items()}
    for name, row in sorted(rows.items(), key=lambda item: middle[item[0]]):
        row["ms_an_image"] = round(middle[name], 3)
        text = f"{name}: {middle[name]:.2f} ms an image, {row['forward']:g} + {row['backward']:g} passes"
        if f"{name}, plain" in middle:
            row["plain_ms_an_image"] = round(middle[f"{name}, plain"], 3)
            row["ratio"] = round(middle[f"{name}, plain"] / middle[name], 2)
            text += f"; plain {row['plain_ms_an_image']} ms, {row['ratio']}×"
        print(text)
    if options.record:
        folder = Path(__file__).parent / "records" / f"{datetime.date.today()}-purifiers"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"results": rows, "batch": BATCH, "rounds": options.rounds, "paper_table_5": TABLE_5}
        (folder / "record.json").write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
