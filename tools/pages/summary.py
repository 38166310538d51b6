"""The README's table."""

from __future__ import annotations

import json

from pages.words import ROOT, claims, percent

SHORT = {
    "cifar10-resnet56-masked-conv": "ResNet-56 (third-party), masked convolution",
    "cifar10-resnet56-mae-patch2": "ResNet-56 (third-party), MAE patch 2",
    "cifar10-resnet56-mae-patch4": "ResNet-56 (third-party), MAE patch 4",
    "cifar10-fast-cnn-masked-conv": "our classifier, masked convolution",
    "cifar10-fast-cnn-mae-patch2": "our classifier, MAE patch 2",
    "cifar10-fast-cnn-mae-patch4": "our classifier, MAE patch 4",
    "photographs-efficientnet-lite0": "EfficientNet-Lite0, photographs, masked convolution",
}


def short_table() -> str:
    """Return the README's table: at 2/255, what each classifier and purifier keeps."""
    lines = [
        "| accuracy in % at ε = 2/255, l∞ | clean: bare → purified | attacked, bare | gray box, purified | white box | ms an image |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in SHORT.items():
        path = ROOT / "results" / name / "claim.json"
        if not path.exists():
            continue
        claim = json.loads(path.read_text())
        cells = {(row["attack"], row["radius"], row["defence"]): row["accuracy"] * 100 for row in claim["cells"]}
        counts = {row["attack"]: row["n"] for row in claim["cells"]}
        white = cells.get(("white-box", "2/255", "purified"))
        found = [
            f"{title} (n = {claim['images']})",
            f"{cells['none', '0', 'bare']:.0f} → {cells['none', '0', 'purified']:.0f}",
            f"{cells['gray-box', '2/255', 'bare']:.0f}",
            f"**{cells['gray-box', '2/255', 'purified']:.0f}**",
            "" if white is None else f"{white:.0f} (n = {counts['white-box']})",
            f"{claim['milliseconds_per_image']['purify']:.0f}",
        ]
        lines.append("| " + " | ".join(found) + " |")
    return "\n".join([*lines, "", what_holds()])


def what_holds() -> str:
    """Return what the best purifiers hold by their whole suites, and their guides alone."""
    known = {folder.name.removeprefix("holds-"): claim for folder, claim in claims("holds-*")}

    def found(name: str) -> tuple[str, str]:
        claim = known[name]
        defence = "purified" if claim["purifier"] else "bare"
        clean = next(row for row in claim["cells"] if (row["attack"], row["defence"]) == ("none", defence))
        return f"{percent(clean)} % without an attack", f"{percent(claim['worst_case'])} %"

    (clean, worst), (guide, guide_worst) = found("resnet56-guided"), found("guide-alone")
    (steps, steps_worst), (pair, pair_worst) = found("fast-cnn-adversarial-anti-adversary"), found("pair-long-alone")
    alone, alone_worst = found("fast-cnn-adversarial-alone")
    return (
        f"What holds against whole suites of attacks that know everything (n = {known['resnet56-guided']['images']}, the same for all). "
        f"At ε = 2/255 before that ResNet-56: `guided-cifar10`, {clean} and **{worst}** in the worst case. It is told what a robust classifier of ours believes, which alone has {guide} and "
        f"{guide_worst}. At 8/255 before our adversarially trained classifier, which has {alone} and {alone_worst}: "
        f"`anti-adversary-robust-cifar10`, {steps} and **{steps_worst}** in the worst case. That is what its guide holds alone, two such "
        f"classifiers trained together: {pair} and {pair_worst}."
    )
