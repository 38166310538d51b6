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


def row_of(path: Path, *, controls: list[Path]) -> list[str]:
    """Return clean, PGD-20 and worst case of a claim, and by how much more stands than after each control."""
    claim = json.loads((path / "claim.json").read_text())
    cells = {row["attack"]: row for row in claim["cells"]}
    compared = [difference(path, control) if path != control and control.exists() else "" for control in controls]
    return [percent(cells["none"]), percent(cells["PGD-20"]), percent(claim["worst_case"]), *compared]


def made_with(paths: list[Path]) -> tuple[int, str]:
    """Return how many images the claims are of, and the hardware."""
    claims = [json.loads((path / "claim.json").read_text()) for path in paths]
    return claims[0]["images"], ", ".join(sorted({claim["environment"]["hardware"] for claim in claims}))


def smallest(method: str, suffix: str) -> list[str]:
    """Return the lines of the table of a ViT of 64 × 3, fine-tuned by `method`; none if nothing has been measured."""
    folder = ROOT / "results" / "mimir"
    penalties = json.loads((folder / "penalties.json").read_text())
    lines, paths = [], []
    for name, (title, passes) in CHAIN.items():
        for path in sorted(folder.glob(f"{name}{suffix}-seed?")):
            seed = path.name[-1]
            pull = penalties.get(f"{name}-seed{seed}")
            found = [
                title,
                seed,
                f"{passes} + {passes}" if passes else "",
                f"{pull['gradient_ratio']:.2g}" if pull else "",
            ]
            found += row_of(path, controls=[folder / f"adversarial-mae{suffix}-seed{seed}"])
            lines.append("| " + " | ".join(found) + " |")
            paths.append(path)
    if not paths:
        return []
    images, hardware = made_with(paths)
    return [
        f"Fine-tuned by {method} (the first {images} test images; {hardware}, one thread):",
        "",
        "| pre-training | seed | passes | pull | clean | PGD-20 | worst case | worst case, less adversarial MAE of that seed |",
        "|---" * 8 + "|",
        *lines,
        "",
    ]


def longer() -> list[str]:
    """Return the lines of the table of a ViT of 96 × 4, trained for longer; none if nothing has been measured."""
    folder = ROOT / "results" / "vit-micro"
    titles = {
        "none": "none",
        "mae": "MAE",
        "adversarial-mae": "adversarial MAE",
        "mimir": "MIMIR, ours (mimir-micro-cifar10)",
    }
    lines, paths = [], []
    for method, written in (("pgd-at", "PGD-AT"), ("trades", "TRADES")):
        for name, title in titles.items():
            path = folder / f"{name}-{method}"
            if not (path / "claim.json").exists():
                continue
            controls = [folder / f"none-{method}", folder / f"adversarial-mae-{method}"]
            lines.append("| " + " | ".join([title, written, *row_of(path, controls=controls)]) + " |")
            paths.append(path)
    if not paths:
        return []
    images, hardware = made_with(paths)
    return [
        "A ViT of 96 × 4, patch 4 (0.46 M parameters), pre-trained for twelve passes, then fine-tuned for three (781 steps of 64 images "
        f"each, two steps of attack), all rows alike, seed 0. l∞ 8/255, the first {images} test images; worst case: PGD-20, APGD-CE "
        f"(50 steps), APGD-T (30 steps, 4 targets) and Square (300 questions). {hardware}, one thread. `results/vit-micro.sh`",
        "",
        "| pre-training | fine-tuning | clean | PGD-20 | worst case | worst case, less no pre-training | less adversarial MAE |",
        "|---" * 7 + "|",
        *lines,
        "",
        *both_ways(folder / "mimir-pure"),
    ]


def both_ways(path: Path) -> list[str]:
    """Return the lines of MIMIR-Pure's table, bare and purified; none if it has not been measured."""
    if not (path / "claim.json").exists():
        return []
    claim = json.loads((path / "claim.json").read_text())
    attacks = ("none", "gray-box", "full gradient", "smooth gradient")
    cells = {(row["attack"], row["defence"]): row for row in claim["cells"]}
    rows = [
        "| "
        + " | ".join([title, *(percent(cells.get((attack, defence))) for attack in attacks), percent(worst)])
        + " |"
        for title, defence, worst in (
            ("alone", "bare", None),
            ("behind its own autoencoder", "purified", claim["worst_cases"][-1]),
        )
    ]
    return [
        f"*MIMIR-Pure*: the PGD-AT row of MIMIR behind AMRM-Pure with the decoder of the same pre-training, l∞ "
        f"{claim['worst_cases'][-1]['radius']}, {claim['data']}, n = {claim['images']}; attacks as in *Purifiers compared*.",
        "",
        "| classifier | no attack | gray box | gradient as published | smooth gradient | worst case |",
        "|---" * 6 + "|",
        *rows,
        "",
    ]


def chain() -> str:
    """Return the tables of pre-training before the same adversarial fine-tuning."""
    head = [
        "A ViT of 64 × 3, patch 4 (0.16 M parameters), CIFAR-10: pre-trained for one pass (390 steps of 128 images), then "
        "fine-tuned against 8/255 for 0.6 passes (937 steps of 32), all rows alike; minutes of a core, so far from what "
        "the papers train. l∞ 8/255; worst case: PGD-20 and APGD-T (20 steps, 3 targets). "
        "*Pull*: length of the penalty's gradient over the reconstruction's, at the end of pre-training. *Passes*: forward + "
        "backward, a step of pre-training. `results/mimir.sh`",
        "",
    ]
    lines = smallest("N-FGSM", "") + smallest("TRADES, two steps of attack", "-trades") + longer()
    return "\n".join(head + lines[:-1])
