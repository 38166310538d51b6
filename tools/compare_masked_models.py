"""Compare the zoo's masked models by what they see of an attack and what their descent undoes; same images, same steps.

python tools/compare_masked_models.py        writes results/masked-models.json (needs CIFAR-10 under ROBUSTMIM_DATA)
"""

from __future__ import annotations

from pathlib import Path

import torch

from robustmim.config import AMRMConfig, ProbeConfig, PurifyRecipe
from robustmim.evaluate.statistics import wilson_interval
from robustmim.models.zoo import load_model
from robustmim.purify.load import describe
from robustmim.radius import Radius
from robustmim.runs import environment, write_json
from robustmim.train.probe import PurificationProbe

MODELS = ("mae-patch4-cifar10", "mae-patch2-cifar10", "masked-conv-cifar10", "masked-conv-noise-cifar10")
DESCENT = AMRMConfig(
    steps=8, step_size=Radius("3/255"), schedule="cosine", momentum=0.7, radius=Radius("16/255"), mask_ratio=0.4
)


def main() -> None:
    torch.set_num_threads(1)
    config = ProbeConfig(classifier="fast-cnn-cifar10", amrm=DESCENT)
    probe = PurificationProbe(config, device=torch.device("cpu"), seed=0)
    rows = []
    for name in MODELS:
        row: dict = {"model": name, "descent": describe(PurifyRecipe(masked_model=name, amrm=DESCENT))}
        for what, value in probe(load_model(name, kind="masked-model")).items():
            if what.startswith("purified"):
                low, high = wilson_interval(round(value * config.images), config.images)
                row[what] = {"accuracy": value, "low": round(low, 4), "high": round(high, 4)}
            else:
                row[what] = round(value, 4)
        print(row)
        rows.append(row)
    content = {
        "images": config.images,
        "classifier": config.classifier,
        "attack": f"PGD-{config.attack_steps} on the bare classifier, l∞",
        "seed": 0,
        "rows": rows,
        "environment": environment(),
    }
    write_json(Path(__file__).parent.parent / "results" / "masked-models.json", content)


if __name__ == "__main__":
    main()
