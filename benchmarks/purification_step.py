"""One purification step: ours against the plain reference, interleaved in one run, processor seconds.

    make bench            or: OMP_NUM_THREADS=1 python benchmarks/purification_step.py [--record]

Prints the ratio of medians, the agreement of the results, and the memory a step takes. `--record` writes the figures to
benchmarks/records/<date>-purification-step/record.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import reference
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import freeze
from robustmim.models.masking import random_mask
from robustmim.rng import keys
from robustmim.runs import environment

CASES = {
    "encoder 192 × 6, decoder 128 × 2, patch 4, batch 8": ({"width": 192, "depth": 6, "heads": 3}, 8),
    "encoder 128 × 8, decoder 96 × 2, patch 2, batch 8": (
        {"width": 128, "depth": 8, "heads": 4, "decoder_width": 96, "patch_size": 2},
        8,
    ),
}
STEP = 1 / 255


def ours(model: MaskedAutoencoder, x: Tensor, mask: Tensor) -> Tensor:
    point = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.reconstruct(point, mask).loss.sum(), point)
    with torch.no_grad():
        return (x - STEP * gradient.sign()).clamp(0, 1)


def saved_bytes(step: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass of a step, each storage counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def measure(sizes: dict[str, int], batch: int, rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = MaskedAutoencoder(**sizes)  # type: ignore[arg-type]
    plain = MaskedAutoencoder(**sizes)  # type: ignore[arg-type]
    plain.load_state_dict(model.state_dict())
    freeze(model)
    plain.eval()
    x = torch.rand(batch, 3, 32, 32)
    mask = random_mask(keys(0, "bench", torch.arange(batch)), model.grid(32, 32), 0.25)
    jobs = {
        "reference": lambda: reference.purification_step(plain, x, mask, STEP),
        "ours": lambda: ours(model, x, mask),
    }
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):  # the first round warms up
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if number:
                spent[name].append(time.process_time() - began)
    middle = {name: statistics.median(values) * 1000 for name, values in spent.items()}
    apart = jobs["ours"]() != jobs["reference"]()
    loss_gap = (model.reconstruct(x, mask).loss - reference.loss(plain, x, mask)).abs().max()
    return {
        "reference_ms": round(middle["reference"], 2),
        "ours_ms": round(middle["ours"], 2),
        "ratio": round(middle["reference"] / middle["ours"], 2),
        "largest_loss_difference": float(loss_gap.detach()),
        "pixels_that_step_another_way": round(float(apart.float().mean()), 6),
        "reference_saved_mib": round(saved_bytes(jobs["reference"]) / 2**20, 1),
        "ours_saved_mib": round(saved_bytes(jobs["ours"]) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: measure(sizes, batch, options.rounds) for name, (sizes, batch) in CASES.items()}
    for name, row in results.items():
        print(f"{name}: {row['reference_ms']} → {row['ours_ms']} ms a step, {row['ratio']}×")
        print(
            f"  loss differs by {row['largest_loss_difference']:.1e}, {row['pixels_that_step_another_way']:.2%} of pixels step another way"
        )
        print(f"  kept for the backward pass: {row['reference_saved_mib']} → {row['ours_saved_mib']} MiB")
    if options.record:
        date = datetime.date.today().isoformat()
        folder = Path(__file__).parent / "records" / f"{date}-purification-step"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"results": results, "rounds": options.rounds, "environment": environment()}
        (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
