"""One step of MIMIR's pre-training: ours against the plain reference, and against plain MAE, interleaved in one run.

    OMP_NUM_THREADS=1 python benchmarks/mimir_step.py [--record] [--device cuda --batch 512 --peak 989]

Processor seconds on a CPU, seconds between synchronisations on a GPU; medians. `--record` writes the figures to
benchmarks/records/<date>-mimir-step/record.json.
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
from typing import cast

import torch
from torch import nn

import mimir_reference
from robustmim.config import FreeAttackConfig, InformationConfig, MaskedAttackConfig, OptimizerConfig
from robustmim.data.loader import Batch
from robustmim.geometry import Ball
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masking import random_mask
from robustmim.models.vit import Block
from robustmim.rng import keys
from robustmim.runs import environment
from robustmim.train.objectives import Objective
from robustmim.train.pretraining import FreeMaskedPretraining, InformationTerm, MaskedPretraining
from robustmim.train.schedule import make_optimizer

RATIO = 0.75
VIT_T = {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_depth": 2, "decoder_heads": 16}
CASES: dict[str, tuple[dict[str, int], int]] = {
    "micro: encoder 96 × 4, decoder 64 × 1, patch 4": (
        {"width": 96, "depth": 4, "heads": 3, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2},
        128,
    ),
    "ViT-T, patch 4": (VIT_T, 32),
    "ViT-T, patch 2": ({**VIT_T, "patch_size": 2}, 4),
    "ViT-T of 6 layers, patch 2": ({**VIT_T, "depth": 6, "patch_size": 2}, 4),
}
CODE = MaskedAttackConfig(target="attacked", mask="fresh", mask_ratio=RATIO, support="all", reduction="mean")
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, second_momentum=0.95)


def objectives() -> dict[str, Objective]:
    code = InformationTerm(InformationConfig(weight=1e-5, estimator="hsic-cca"))
    own = InformationTerm(InformationConfig(weight=0.01, estimator="kernel-cka", options={"unbiased": True}))
    return {
        "mae": MaskedPretraining((RATIO,)),
        "mimir_as_the_code": MaskedPretraining((RATIO,), attack=CODE, information=code),
        "mimir": MaskedPretraining((RATIO,), attack=MaskedAttackConfig(), information=own),
        "free": FreeMaskedPretraining((RATIO,), FreeAttackConfig(replays=4), information=own),
    }


def our_step(model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> None:
    values = objective(model, batch, keys(0, "step", batch.ids, step), step)
    optimizer.zero_grad(set_to_none=True)
    values["loss"].backward()
    # The engine's look at the gradient, before it steps.
    if nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).isfinite():
        optimizer.step()


def agreement(model: MaskedAutoencoder, batch: Batch) -> dict[str, float]:
    """Take one step of each from the same weights with the same draws; return how far apart they end."""
    drawn = keys(0, "step", batch.ids, 0)
    grid = model.grid(*batch.images.shape[-2:])
    draws = (
        Ball(eps=mimir_reference.EPS).random(batch.images, drawn.fold("attack start")),
        random_mask(drawn.fold("attack mask", 0), grid, RATIO).flatten(1),
        random_mask(drawn.fold("mask"), grid, RATIO).flatten(1),
    )
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    found = objectives()["mimir_as_the_code"](ours, batch, drawn, 0)["loss"]
    found.backward()
    loss = mimir_reference.step(plain, torch.optim.SGD(plain.parameters(), lr=0.0), batch.images, RATIO, draws)
    pairs = [(p.grad, q.grad) for p, q in zip(ours.parameters(), plain.parameters(), strict=True) if q.grad is not None]
    apart = torch.stack([(p - q).square().sum() for p, q in pairs if p is not None]).sum().sqrt()
    length = torch.stack([q.square().sum() for _, q in pairs]).sum().sqrt()
    return {
        "loss_difference": abs(found.item() - loss),
        "gradient_difference_relative": float(apart / length),
    }


def operations(model: MaskedAutoencoder, batch: int, attacked: bool) -> float:
    """Count floating-point operations of a step in multiples of tokens and widths: forward, and backward through both."""
    cells = model.pos_embed.shape[1] - 1
    visible = cells - round(RATIO * cells) + 1
    total = 0.0
    for blocks, tokens in ((model.blocks, visible), (model.decoder_blocks, cells + 1)):
        width = cast(Block, blocks[0]).norm1.normalized_shape[0]
        linear, attention = 24 * tokens * width**2, 4 * tokens**2 * width
        total += len(blocks) * (3 * (linear + attention) + (2 * linear + 3 * attention if attacked else 0))
    return batch * total


def measure(sizes: dict[str, int], batch_size: int, rounds: int, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    model = MaskedAutoencoder(target="normalised", **sizes).to(device).train()  # type: ignore[arg-type]
    images = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    batch = Batch(
        images, torch.zeros(batch_size, dtype=torch.int64, device=device), torch.arange(batch_size, device=device)
    )
    jobs: dict[str, Callable[[int], float | None]] = {}

    def add(name: str, objective: Objective) -> None:
        own = copy.deepcopy(model)
        optimizer = make_optimizer(own, OPTIMIZER)
        jobs[name] = lambda step: our_step(own, objective, optimizer, batch, step)

    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    jobs["reference"] = lambda step: mimir_reference.step(plain, optimizer, images, RATIO)
    for name, objective in objectives().items():
        add(name, objective)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 2):  # the first two warm up
        for name, job in jobs.items():
            began = now()
            job(number)
            if number >= 2:
                spent[name].append(now() - began)
    middle = {name: statistics.median(values) for name, values in spent.items()}
    row = {f"{name}_ms": round(1000 * value, 2) for name, value in middle.items()}
    row |= {
        "batch": batch_size,
        "reference_over_the_same_algorithm": round(middle["reference"] / middle["mimir_as_the_code"], 2),
        "reference_over_ours": round(middle["reference"] / middle["mimir"], 2),
        "mimir_over_mae": round(middle["mimir"] / middle["mae"], 2),
        "free_over_mae": round(middle["free"] / middle["mae"], 2),
        "mimir_images_per_second": round(batch_size / middle["mimir"], 1),
        "mimir_gigaflops_per_second": round(operations(model, batch_size, True) / middle["mimir"] / 1e9, 1),
    }
    return row | agreement(model, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="instead of the cases' own")
    parser.add_argument("--peak", type=float, help="of the device in TFLOP/s, to give a fraction of it")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    results = {}
    for name, (sizes, batch) in CASES.items():
        row = measure(sizes, options.batch or batch, options.rounds, device)
        if options.peak:
            row["fraction_of_peak"] = round(row["mimir_gigaflops_per_second"] / 1000 / options.peak, 4)
        results[name] = row
        print(f"{name}, batch {row['batch']}: reference {row['reference_ms']} ms, ours {row['mimir_ms']} ms")
        print(f"  the same algorithm {row['reference_over_the_same_algorithm']}×, ours {row['reference_over_ours']}×")
        print(f"  MIMIR / MAE {row['mimir_over_mae']}, free / MAE {row['free_over_mae']}")
        print(
            f"  {row['mimir_images_per_second']} images/s, {row['mimir_gigaflops_per_second']} GFLOP/s; from the same draws, "
            f"losses {row['loss_difference']:.1e} apart, gradients {row['gradient_difference_relative']:.1e}"
        )
    if options.record:
        date = datetime.date.today().isoformat()
        folder = Path(__file__).parent / "records" / f"{date}-mimir-step"
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "yardstick": mimir_reference.__doc__,
            "results": results,
            "rounds": options.rounds,
            "device": options.device,
            "environment": environment(),
        }
        (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
