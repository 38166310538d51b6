"""Studies of masks and of steps, and what masked models see."""

from __future__ import annotations

import json

from pages.words import ROOT, percent


def seeing() -> str:
    """Return the table of what the zoo's masked models see of an attack, and what they undo."""
    path = ROOT / "results" / "masked-models.json"
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    radii = [key.split(" ", 1)[1] for key in content["rows"][0] if key.startswith("sees")]
    lines = [
        f"{content['classifier']}, the first {content['images']} test images of CIFAR-10 (recipes were chosen on these), "
        f"{content['attack']}, seed {content['seed']}; the same descent for all: "
        f"{content['rows'][0]['descent'].split(', ', 2)[2]}. *Sees*: masked loss attacked / clean. `python "
        "tools/compare_masked_models.py`",
        "",
        "| model | "
        + " | ".join(f"sees {radius}" for radius in radii)
        + " | purified: clean | "
        + " | ".join(f"purified {radius}" for radius in radii)
        + " |",
        "|---" * (2 * len(radii) + 2) + "|",
    ]
    for row in content["rows"]:
        found = [row["model"], *(f"{row[f'sees {radius}']:.3f}" for radius in radii)]
        found += [percent(row["purified clean"]), *(percent(row[f"purified {radius}"]) for radius in radii)]
        lines.append("| " + " | ".join(found) + " |")
    return "\n".join(lines)


def study(file: str, about: str, columns: dict[str, str]) -> str:
    """Return the table of a study of purifiers (`tools/purifier_studies.py`): a row for each, "" where it has not been run."""
    path = ROOT / "results" / file
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    rows = content["rows"]
    counts = sorted(
        {
            row[key]["n"]
            for row in rows.values()
            for key in columns
            if isinstance(row.get(key), dict) and "n" in row[key]
        }
    )
    lines = [
        f"{about} {content['classifier']}, {content['data']}, n = {' to '.join(map(str, counts))}, l∞, seed {content['seed']}; "
        f"{content['protocol']}. CPU time of one thread, {content['environment']['hardware']}. `results/{file}`, `results/studies.sh`",
        "",
        "| | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        written = {
            "passes": f"{row['forward']} + {row['backward']}",
            "sigma": f"{row.get('sigma', 0):.1f}",
            "sees": ", ".join(f"{value:.2f}" for value in row.get("sees", {}).values()),
            "cpu_milliseconds": f"{row['cpu_milliseconds']:.0f}",
        }
        cells = [written[key] if key in written else percent(row.get(key)) for key in columns]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def scales() -> str:
    """Return the table and the chart of the study of scales."""
    text = study(
        "mask-scales.json",
        "The recommended descent (S 8, λ 3/255 cosine, η 16/255, mask 0.4, momentum 0.7) under masks of cells of so many pixels. "
        "*σ*: RMS error of the prediction of hidden pixels, in 255ths, the mean over the scales. *Sees*: masked loss attacked / clean "
        "at 2, 4, 8/255. All rows take eight gradients.",
        {
            "sigma": "σ",
            "sees": "sees",
            "clean": "clean",
            "gray-box 2/255": "gray box 2/255",
            "gray-box 4/255": "4/255",
            "gray-box 8/255": "8/255",
            "identity 2/255": "gray box and identity, 2/255",
            "tanh 2/255": "and tanh",
            "cpu_milliseconds": "ms an image",
        },
    )
    picture = (
        "![Accuracy over the error of the masked prediction, divided by the attack's budget](images/mask-scales.svg)"
    )
    return f"{text}\n\n{picture}" if text else ""


def few_steps() -> str:
    """Return the table of the study of few steps."""
    return study(
        "few-steps.json",
        "The recommended descent in fewer steps, the lengths of which add up to the same 13.5/255. *Passes*: forward + backward "
        "through the masked model. *Target only*: the gradient through the prediction's target, which needs no backward pass. "
        "*Distilled*: one pass that learnt what the eight steps make of an image.",
        {
            "passes": "passes",
            "cpu_milliseconds": "ms an image",
            "clean": "clean",
            "gray-box 2/255": "gray box 2/255",
            "identity 2/255": "and identity",
            "tanh 2/255": "and tanh: worst case",
            "gray-box 4/255": "gray box 4/255",
            "identity 4/255": "and identity",
            "tanh 4/255": "and tanh: worst case",
        },
    )
