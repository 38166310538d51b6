"""Our ensemble against AutoAttack standard (pyautoattack) in one run: verdict, images forward, processor seconds.

    OMP_NUM_THREADS=1 python benchmarks/auto_attack.py [--record] [--images 200] [--only digits] [--norm linf]

Classifiers: a small CNN trained adversarially here on scikit-learn's digits, and the zoo's fast-cnn-cifar10 and
fast-cnn-adversarial-cifar10 (ROBUSTMIM_DATA). `--record` writes the table to benchmarks/records/<date>-auto-attack/record.json, case by case.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.attacks.target import Cost, Target
from robustmim.geometry import Ball
from robustmim.models.zoo import load_model
from robustmim.registry import build
from robustmim.rng import content_ids, keys
from robustmim.runs import environment

# Cheap attacks that break most first. In l1 that is FAB: a projection is as sparse as the norm wants it.
_CE, _APGD_T = ("apgd-ce", {"steps": 100}), ("apgd-targeted", {"steps": 50, "patience": 2.0})
_FAB_T, _SQUARE = ("fab-targeted", {"steps": 40, "patience": 2.0}), ("square", {"queries": 1000})
ENSEMBLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "linf": [_CE, _APGD_T, _FAB_T, _SQUARE],
    "l2": [_CE, _APGD_T, _FAB_T],
    "l1": [_CE, ("apgd-targeted", {"steps": 100})],
}
BUDGETS: dict[str, list[tuple[str, float]]] = {
    "digits": [("linf", 0.1), ("l2", 0.75), ("l1", 3.0)],
    "cifar10": [("linf", 1 / 255), ("l2", 0.1), ("l1", 1.5)],
    "cifar10, adversarially trained": [("linf", 8 / 255)],
}


def digits(n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Train a small CNN by PGD for a few seconds; return it and test images."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16, torch.tensor(data.target)[order]
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(8):
        for part in (200 + torch.randperm(len(x) - 200)).split(100):
            shift = (torch.rand_like(x[part]) * 2 - 1) * 0.1
            for _ in range(5):
                shift.requires_grad_(True)
                loss = F.cross_entropy(model((x[part] + shift).clamp(0, 1)), y[part])
                (slope,) = torch.autograd.grad(loss, shift)
                shift = (shift.detach() + 0.04 * slope.sign()).clamp(-0.1, 0.1)
            optimizer.zero_grad()
            F.cross_entropy(model((x[part] + shift.detach()).clamp(0, 1)), y[part]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False), x[:n], y[:n]


def cifar10(n: int, name: str = "fast-cnn-cifar10") -> tuple[nn.Module, Tensor, Tensor]:
    source = build("data", "cifar10", split="test")
    return load_model(name).requires_grad_(False), source.images[:n].float() / 255, source.labels[:n]


def cascade(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ball: Ball, attacks: list[tuple[str, dict[str, Any]]]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return which samples stand after all attacks, each given only what is left, and what each attack did."""
    with torch.no_grad():
        standing = model(x).argmax(1) == y
    rows = []
    for name, options in attacks:
        left = standing.nonzero()[:, 0]
        cost, began = Cost(), time.process_time()
        if len(left):
            drawn = keys(0, "attack", content_ids(x[left]))
            target = Target(scores=lambda z, keys, progress: model(z), keys=drawn, cost=cost)
            found = build("attack", name, **options)(target, x[left], y[left], ball)
            assert (ball.distance(found, x[left]) <= ball.eps * (1 + 1e-5) + 1e-6).all()
            assert found.min() >= 0
            assert found.max() <= 1
            with torch.no_grad():
                standing[left] = model(found).argmax(1) == y[left]
        seconds = round(time.process_time() - began, 1)
        row = {"attack": name, "standing": int(standing.sum()), "forward": cost.forward, "seconds": seconds}
        rows.append(row)
    return standing, rows


def compare(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> dict[str, Any]:
    ours, our_rows = cascade(model, x, y, ball, ENSEMBLES[ball.norm])
    theirs, their_rows = cascade(model, x, y, ball, [("auto-attack", {})])

    def total(rows: list[dict[str, Any]], name: str) -> float:
        return round(sum(row[name] for row in rows), 1)

    forward, seconds = total(their_rows, "forward"), total(their_rows, "seconds")
    return {
        "images": len(x),
        "clean": int((model(x).argmax(1) == y).sum()),
        "standing_ours": int(ours.sum()),
        "standing_theirs": int(theirs.sum()),
        "only_ours_breaks": int((~ours & theirs).sum()),
        "only_theirs_breaks": int((ours & ~theirs).sum()),
        "forward_ours": total(our_rows, "forward"),
        "forward_theirs": forward,
        "forward_ratio": round(forward / total(our_rows, "forward"), 2),
        "seconds_ours": total(our_rows, "seconds"),
        "seconds_theirs": seconds,
        "hardware": environment()["hardware"],
        "attacks": our_rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the figures beside earlier records")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", choices=list(BUDGETS))
    parser.add_argument("--norm", choices=list(ENSEMBLES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(__file__).parent / "records" / f"{datetime.date.today()}-auto-attack"
    results: dict[str, Any] = {}
    robust = functools.partial(cifar10, name="fast-cnn-adversarial-cifar10")
    for name, load in (("digits", digits), ("cifar10", cifar10), ("cifar10, adversarially trained", robust)):
        if arguments.only not in (None, name):
            continue
        model, x, y = load(arguments.images)
        for norm, eps in BUDGETS[name]:
            if arguments.norm not in (None, norm):
                continue
            ball = Ball(norm=norm, eps=eps)  # type: ignore[arg-type]
            case = results[f"{name}, {ball}"] = compare(model, x, y, ball)
            print(f"{name}, {ball}: " + json.dumps(case), flush=True)
            if arguments.record:
                path = folder / "record.json"
                earlier = json.loads(path.read_text())["results"] if path.exists() else {}
                folder.mkdir(parents=True, exist_ok=True)
                written = {"results": earlier | results, "environment": environment()}
                path.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
