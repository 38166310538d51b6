"""How hard the penalty of a pre-training pulls: the length of its gradient over that of the reconstruction's.

python tools/penalty_share.py RUN [RUN …] --out FILE    RUN: a finished folder of `robustmim pretrain`

Measured at the weights the run ended with, on four batches of its own size; the mean is written. A penalty whose share is
far below one percent cannot have done anything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from robustmim.cli.training import open_loader, open_source
from robustmim.config import PretrainRecipe
from robustmim.models.zoo import load_model
from robustmim.recipe import load_recipe
from robustmim.rng import keys
from robustmim.runs import read_json
from robustmim.train.distributed import World
from robustmim.train.pretraining import pretraining_objective

BATCHES = 4


def share(run: Path) -> dict[str, float] | None:
    """Return weight · estimate, reconstruction loss and the ratio of their gradients; None without a penalty."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(read_json(run / "run.json")["recipe"], file)
        file.flush()
        recipe = load_recipe(PretrainRecipe, file.name)
    if recipe.information is None:
        return None
    model = load_model(run, kind="masked-model").train().requires_grad_(True)
    learning = [parameter for name, parameter in model.named_parameters() if "pos_embed" not in name]
    here = World(0, 1, torch.device("cpu"))
    batches = open_loader(recipe.data, recipe.run, here, open_source(recipe.data, here.device))
    objective = pretraining_objective(recipe, model)

    def length(loss: Tensor) -> float:
        found = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
        return float(torch.stack([part.square().sum() for part in found if part is not None]).sum().sqrt())

    total = dict.fromkeys(("penalty", "reconstruction", "gradient_ratio"), 0.0)
    for step in range(BATCHES):
        batch = batches.batch(step)
        values = objective(model, batch, keys(recipe.run.seed, "share", batch.ids, step), step)
        penalty = recipe.information.weight * values["information"]
        row = {
            "penalty": float(penalty.detach()),
            "reconstruction": float(values["reconstruction"].detach()),
            "gradient_ratio": length(penalty) / length(values["reconstruction"]),
        }
        total = {name: total[name] + row[name] / BATCHES for name in total}
    return {name: float(f"{value:.4g}") for name, value in total.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    found = {run.parent.name: row for run in options.runs if (row := share(run)) is not None}
    for name, row in found.items():
        print(f"{name}: gradient of the penalty / of the reconstruction = {row['gradient_ratio']:.3g}")
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
