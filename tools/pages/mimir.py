"""MIMIR's chain: pre-training before the same fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

from pages.words import ROOT, percent

CHAIN = {
    "none": ("none", 0),
    "none-longer": ("none; fine-tuned for as long as the others are pre-trained and fine-tuned", 0),
    "mae": ("MAE", 1),
    "adversarial-mae": ("adversarial MAE", 2),
    "text": ("MIMIR as in its text: pixels as target, HSIC (Eq. 29), λ = 1e-5", 2),
    "code": ("MIMIR as in its code: attack on its own image, HSIC-CCA, λ = 1e-5", 2),
    "unbiased-hsic": ("adversarial MAE + unbiased HSIC, λ = 2.5", 2),
    "cka": ("adversarial MAE + unbiased kernel CKA, λ = 0.03", 2),
    "spread-only": ("control: adversarial MAE + HSIC-CCA of *other* images' encodings, λ = 0.0012", 2),
}
"""What pre-trained, and the forward and backward passes of a step of it."""


def standing(folder: Path) -> dict[int, bool]:
    """Return by id whether an image withstood every attack; one that was wrong from the start is not attacked again."""
    found: dict[int, bool] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["attack"] != "none":
            found[row["id"]] = found.get(row["id"], True) and not row.get("skipped") and bool(row["right"])
    return found


def difference(folder: Path, other: Path) -> str:
    """Return by how many points more of the same images stand, with a 95 % interval of the paired difference."""
    one, two = standing(folder), standing(other)
    apart = [one[number] - two[number] for number in sorted(one.keys() & two.keys())]
    mean = sum(apart) / len(apart)
    deviation = (sum((value - mean) ** 2 for value in apart) / len(apart)) ** 0.5
    half = 1.96 * deviation / len(apart) ** 0.5
    return f"{100 * mean:+.1f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"


def chain() -> str:
    """Return the table of pre-training before the same adversarial fine-tuning."""
    folder = ROOT / "results" / "mimir"
    penalties = json.loads((folder / "penalties.json").read_text())
    lines, images, hardware = [], 0, ""
    for name, (title, passes) in CHAIN.items():
        for path in sorted(folder.glob(f"{name}-seed?")):
            claim = json.loads((path / "claim.json").read_text())
            images, hardware = claim["images"], claim["environment"]["hardware"]
            cells = {row["attack"]: row for row in claim["cells"]}
            seed = path.name[-1]
            pull = penalties.get(path.name)
            control = folder / f"adversarial-mae-seed{seed}"
            found = [
                title,
                seed,
                f"{passes} + {passes}" if passes else "",
                f"{pull['gradient_ratio']:.2g}" if pull else "",
                percent(cells["none"]),
                percent(cells["PGD-20"]),
                percent(claim["worst_case"]),
                difference(path, control) if path != control and control.exists() else "",
            ]
            lines.append("| " + " | ".join(found) + " |")
    head = [
        "## MIMIR: pre-training before the same adversarial fine-tuning",
        "",
        "A ViT of 64 × 3, patch 4 (0.16 M parameters), CIFAR-10: pre-trained for one pass (390 steps of 128 images), then "
        "fine-tuned by N-FGSM at 8/255 for 0.6 passes (937 steps of 32), all rows alike; minutes of a core, so far from what "
        f"the papers train. l∞ 8/255, the first {images} test images; worst case: PGD-20 and APGD-T (20 steps, 3 targets). "
        "*Pull*: length of the penalty's gradient over the reconstruction's, at the end of pre-training. *Passes*: forward + "
        f"backward, a step of pre-training. {hardware}, one thread. `results/mimir.sh`",
        "",
        "| pre-training | seed | passes | pull | clean | PGD-20 | worst case | worst case, less adversarial MAE of that seed |",
        "|---" * 8 + "|",
    ]
    return "\n".join(head + lines) + "\n"
