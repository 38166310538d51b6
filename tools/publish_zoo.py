"""Put a finished run into the zoo: weights in half precision, config, and a claim file.

    python tools/publish_zoo.py runs/masked-conv-cifar10 masked-conv-cifar10 --summary "masked convolution, CIFAR-10"
    python tools/publish_zoo.py runs/fast-cnn-cifar10 fast-cnn-cifar10 --summary "…" --package

The claim is computed here, from the weights as they ship: accuracy on the whole test set for a classifier, masked loss at
ratio 0.25 for a masked model, denoising loss of whole images at EDM's noise levels for a denoiser (masked or not), with recipe,
commit, seed, hardware and seconds. What a purifier built on it achieves is in results/, which this file names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from robustmim.config import DenoisingConfig
from robustmim.data import sources
from robustmim.evaluate.accuracy import classifier_accuracy, denoising_errors, in_order
from robustmim.evaluate.statistics import wilson_interval
from robustmim.models.edm import Denoiser
from robustmim.models.masked import MaskedModel, parameter_count
from robustmim.models.masking import random_mask
from robustmim.models.zoo import REPOSITORY_ZOO, ZOO, load_model, save_model
from robustmim.rng import keys
from robustmim.runs import read_json, read_lines, write_json

CPU = torch.device("cpu")


def measure(model: torch.nn.Module, config: dict, validation: dict) -> dict:
    source = sources.load(
        validation["name"],
        validation["split"],
        limit=10000 if config["kind"] == "classifier" else 1000,
        part=validation["part"],
    )
    if config["kind"] == "classifier":
        accuracy = classifier_accuracy(model, source, device=CPU)
        low, high = wilson_interval(round(accuracy * len(source)), len(source))
        return {"accuracy": accuracy, "low": round(low, 4), "high": round(high, 4), "images": len(source)}
    if isinstance(model, Denoiser):
        name, values = "denoising_loss", denoising_errors(model, source, config=DenoisingConfig(), seed=0, device=CPU)
    else:
        assert isinstance(model, MaskedModel)
        name, losses = "masked_loss_at_0.25", []
        with torch.no_grad():
            for batch in in_order(source, 64, CPU):
                mask = random_mask(keys(0, "claim", batch.ids), model.grid(*batch.images.shape[-2:]), 0.25)
                losses += model.reconstruct(batch.images, mask).loss.tolist()
        values = torch.tensor(losses)
    error = float(values.std() / len(values) ** 0.5)
    mean = float(values.mean())
    return {
        name: mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
        "images": len(source),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--summary", required=True)
    parser.add_argument("--package", action="store_true", help="into the package, which is to stay below 12 MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = read_json(options.run / "run.json")
    if about["status"] != "finished":
        raise SystemExit(f"{options.run} is {about['status']}, not finished")
    config = read_json(options.run / "config.json") | {"summary": options.summary}
    folder = (ZOO if options.package else REPOSITORY_ZOO) / options.name
    save_model(folder, load_model(options.run), config, half=True)
    model = load_model(folder)
    last = read_lines(options.run / "log.jsonl")[-1]
    claim = {
        "name": options.name,
        "summary": options.summary,
        "parameters": parameter_count(model),
        "recipe": about["recipe"],
        "command": about["command"],
        "seed": about["recipe"]["run"]["seed"],
        "training": {"seconds": last["seconds"], "steps": last["step"], **about["environment"]},
        "data": f"{about['recipe']['validation']['name']} {about['recipe']['validation']['split']}",
        "measured": measure(model, config, about["recipe"]["validation"]),
        "purification": "results/ holds what purifiers built on it achieve; docs/results.md sums it up",
    }
    write_json(folder / "claim.json", claim)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 2**20:.2f} MiB, {claim['measured']}")


if __name__ == "__main__":
    main()
