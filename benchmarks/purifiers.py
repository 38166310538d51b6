"""Every purifier that runs with what is here, on the same 32 images of CIFAR-10's size, interleaved in one run, processor seconds.

    OMP_NUM_THREADS=1 python benchmarks/purifiers.py [--record] [--rounds 3] [NAME …]

Beside each that takes gradients or walks back through noise stands the same as one would first write it (`reference.py`):
attention and its softmax written out, `backward()` through every parameter, diffusion in DDPM's variables, torch's Adam. It is
given its masks and its noise before the clock starts; ours draws them. Both must find the same images, up to `TOLERANCE`. For
filters, and for what predicts in a pass or two without gradients, no plain form differs from ours ("the same").

"forward" and "backward" are images through the masked model or the denoiser, for each image purified; "classifier_…" through a
classifier that the purifier asks. What lacks its weights is listed under "left_out". `--record` writes the figures to
benchmarks/records/<date>-purifiers/record.json, and tools/results_page.py makes a table of them, with Table 5 of AMRM-Pure.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reference
from passes import Passes
from robustmim.config import PurifyRecipe
from robustmim.data.sources import load
from robustmim.errors import RobustmimError
from robustmim.models.edm import noise_grid
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import with_draws
from robustmim.models.vit import explicit_attention
from robustmim.models.zoo import open_classifier
from robustmim.purify.amrm import AMRMPure, mask_schedule, step_sizes
from robustmim.purify.baselines.coup import COUP
from robustmim.purify.baselines.scoreopt import ScoreOpt
from robustmim.purify.baselines.soap import Consistency, Soap
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.load import describe, make_purifier
from robustmim.purify.traits import Purifier
from robustmim.recipe import load_recipe, recipe_names
from robustmim.rng import Keys, keys
from robustmim.runs import environment

BATCH = 32
DEFENDED = "fast-cnn-cifar10"
TOLERANCE = 0.01
"""Share of the pixel values that may lie more than a quarter of a grey level apart: where a gradient is all but zero, rounding
decides its sign."""
TABLE_5 = {
    "hardware": "one NVIDIA A40",
    "batch": 32,
    "seconds": {
        "DiffPure": {"CIFAR-10": 12.39, "ImageNet": 81.54},
        "AMRM-Pure, MAE": {"CIFAR-10": 18.25, "ImageNet": 31.51},
        "AMRM-Pure, MaskDiT": {"CIFAR-10": 32.85, "ImageNet": 79.27},
        "RAMRM-Pure, MAE": {"CIFAR-10": 11.77, "ImageNet": 27.38},
        "RAMRM-Pure, MaskDiT": {"CIFAR-10": 29.73, "ImageNet": 62.52},
    },
}
"""AMRM-Pure's inference times; for how many images is not said. Its networks are up to a hundred times as large as the zoo's."""

Job = Callable[[], Tensor]


def trainable(network: nn.Module) -> nn.Module:
    """Return a copy of which every parameter asks for a gradient, as in a script that froze nothing."""
    return copy.deepcopy(network).requires_grad_(True)


def plain_descent(purifier: AMRMPure, x: Tensor, drawn: Keys) -> Job:
    config = purifier.config
    if (config.norm, config.output, config.start_noise) != ("linf", "last", 0) or config.gradient == "input":
        raise NotImplementedError(
            "the plain descent is of l∞, through both paths or the target, from image to last iterate"
        )
    model: Any = trainable(purifier.model)  # type: ignore[arg-type]
    target_only = config.gradient == "target"
    if target_only and isinstance(model, MaskedAutoencoder):
        raise NotImplementedError("the plain loss of an MAE is through both paths")
    grid, schedule = model.grid(*x.shape[-2:]), mask_schedule(config)
    masks = [schedule.masks(drawn, grid, step) for step in range(config.steps)]

    def loss(x: Tensor, step: int) -> Tensor:
        if isinstance(model, MaskedAutoencoder):
            losses = [reference.loss(model, x, mask) for mask in masks[step]]
        else:
            progress, first = step / max(1, config.steps - 1), step * config.mask_average
            losses = [
                with_draws(model, drawn, draw=first + number, progress=progress)
                .reconstruct(x.detach() if target_only else x, mask, target=x)
                .loss
                for number, mask in enumerate(masks[step])
            ]
        return torch.stack(losses).mean(dim=0)

    def run() -> Tensor:
        with explicit_attention(model):
            return reference.descent(loss, x, step_sizes(config), config.radius, config.momentum)

    return run


def plain_diffusion(
    purifier: DiffusionPurifier, x: Tensor, drawn: Keys, denoise: reference.Denoise | None = None
) -> Job:
    config, shape = purifier.config, x.shape[1:]
    walks = {"ancestral": reference.ancestral, "euler": reference.ddim, "vp-sde": reference.reverse_sde}
    if config.solver not in walks:
        raise NotImplementedError(f"there is no plain form of the solver {config.solver}")
    walk, model = walks[config.solver], purifier.model
    levels = noise_grid(config.steps, config.sigma, config.final_sigma, spacing=config.spacing)
    noise = [drawn.fold("diffuse").normal(*shape)]
    noise += [drawn.fold("reverse", step).normal(*shape) for step in range(config.steps)]
    kept = [1 / (1 + level**2) for level in levels]
    return lambda: walk(denoise or model.denoise, x, kept, noise)


def plain_coup(purifier: COUP, x: Tensor, drawn: Keys) -> Job:
    guide: Any = purifier._diffusion.model
    if guide._through != "noised":
        raise NotImplementedError("the plain guide sees the noised image")
    denoise = reference.guided(guide._model.denoise, trainable(guide._classifier), guide._guidance)
    return plain_diffusion(purifier._diffusion, x, drawn, denoise)


def plain_scoreopt(purifier: ScoreOpt, x: Tensor, drawn: Keys) -> Job:
    model: Any = trainable(purifier.model)  # type: ignore[arg-type]
    steps, rate, sigma = purifier.steps, purifier.learning_rate, purifier.sigma
    if purifier.form == "noised":
        start = drawn.fold("noise").normal(*x.shape[1:])
        return lambda: reference.scoreopt_noised(model.denoise, x, steps, rate, sigma, start)
    of_steps = [drawn.fold("step", step) for step in range(steps)]
    sigmas = [sigma + purifier.spread * (2 * own.fold("level").uniform(1)[:, 0] - 1) for own in of_steps]
    noise = [own.fold("noise").normal(*x.shape[1:]) for own in of_steps]
    return lambda: reference.scoreopt_image(model.denoise, x, steps, rate, sigmas, noise)


def plain_soap(purifier: Soap, x: Tensor) -> Job:
    if purifier.auxiliary != "consistency":
        raise NotImplementedError("the plain form of SOAP is that of label consistency")
    loss = Consistency(trainable(purifier.network))
    radii = [number * purifier.radius for number in range(1, purifier.radii + 1)]
    return lambda: reference.soap(loss, x, radii, [purifier.step_size] * purifier.steps)


def plain(purifier: Purifier, x: Tensor, drawn: Keys) -> Job | None:
    """Return the same purifier as one would first write it; None where that is ours."""
    if isinstance(purifier, AMRMPure):
        return plain_descent(purifier, x, drawn)
    if isinstance(purifier, DiffusionPurifier):
        return plain_diffusion(purifier, x, drawn)
    if isinstance(purifier, COUP):
        return plain_coup(purifier, x, drawn)
    if isinstance(purifier, ScoreOpt):
        return plain_scoreopt(purifier, x, drawn)
    return plain_soap(purifier, x) if isinstance(purifier, Soap) else None


def counted(purifier: Purifier, x: Tensor, drawn: Keys) -> dict[str, float]:
    """Return the passes for each image."""
    with Passes(purifier) as passes:
        purifier(x, keys=drawn)
    row = {"forward": passes.network.forward, "backward": passes.network.backward}
    row |= {"classifier_forward": passes.classifier.forward, "classifier_backward": passes.classifier.backward}
    return {name: count / len(x) for name, count in row.items()}


def agreement(name: str, ours: Tensor, plain: Tensor) -> dict[str, float]:
    """Return how far apart two results are; stop at more than the tolerance."""
    gap = (ours - plain).abs()
    apart = float((gap > 0.25 / 255).float().mean())
    if not apart <= TOLERANCE:
        raise SystemExit(f"{name}: {apart:.2%} of the pixel values are not those of the plain reference")
    return {"largest_difference": float(gap.max()), "values_apart": round(apart, 6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="purify recipes; default: all at 32 pixels but the paper's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = load("samples-cifar10", "test").fetch(torch.arange(20)).float() / 255
    x = torch.cat([x, x.flip(3)])[:BATCH]
    drawn = keys(0, "purify", torch.arange(BATCH))
    classifier = open_classifier(DEFENDED)
    ours = {
        name
        for name, path in recipe_names().items()
        if path.parent.name == "purify" and not name.startswith("paper-") and "photos" not in name
    }

    jobs: dict[str, Job] = {}
    rows: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name in options.names or sorted(ours):
        recipe = load_recipe(PurifyRecipe, name)
        try:
            purifier = make_purifier(recipe, classifier=classifier)
        except RobustmimError as error:
            left_out[name] = str(error)
            print(f"{name}: left out, {error}")
            continue
        rows[name] = {"what": describe(recipe)} | counted(purifier, x, drawn)
        jobs[name] = partial(purifier, x, keys=drawn)
        other = plain(purifier, x, drawn)
        if other is None:
            rows[name]["plain"] = "the same"
        else:
            jobs[f"{name}, plain"] = other
            rows[name] |= agreement(name, jobs[name](), other())

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
        if row["classifier_forward"]:
            text += f", {row['classifier_forward']:g} + {row['classifier_backward']:g} of the classifier"
        if f"{name}, plain" in middle:
            row["plain_ms_an_image"] = round(middle[f"{name}, plain"], 3)
            row["ratio"] = round(middle[f"{name}, plain"] / middle[name], 2)
            text += (
                f"; plain {row['plain_ms_an_image']} ms, {row['ratio']}×, {row['values_apart']:.2%} of the values apart"
            )
        print(text)
    if options.record:
        folder = Path(__file__).parent / "records" / f"{datetime.date.today()}-purifiers"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"results": rows, "left_out": left_out, "batch": BATCH, "rounds": options.rounds, "defended": DEFENDED}
        record |= {"paper_table_5": TABLE_5, "environment": environment()}
        (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
