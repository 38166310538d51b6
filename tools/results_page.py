"""Write docs/results.md from the committed result files.

python tools/results_page.py            writes it
python tools/results_page.py --check    exits with 1 if it is not what the files say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from purifier_table import purifier_table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- table: tools/results_page.py -->", "<!-- end of table -->"
SHORT = {
    "cifar10-resnet56-masked-conv": "ResNet-56 (third-party), masked convolution",
    "cifar10-resnet56-mae-patch2": "ResNet-56 (third-party), MAE patch 2",
    "cifar10-resnet56-mae-patch4": "ResNet-56 (third-party), MAE patch 4",
    "cifar10-fast-cnn-masked-conv": "our classifier, masked convolution",
    "cifar10-fast-cnn-mae-patch2": "our classifier, MAE patch 2",
    "cifar10-fast-cnn-mae-patch4": "our classifier, MAE patch 4",
    "photographs-efficientnet-lite0": "EfficientNet-Lite0, photographs, masked convolution",
}

HEAD = """# Results

Written by `python tools/results_page.py` from the files in `results/`; each folder there holds the claim, the records of every
sample and the command that regenerates them. Accuracies in percent, 95 % Wilson intervals in brackets.

*Bare*: the attacked classifier alone. *Gray box*: images attacked on the bare classifier, then purified; the attacker does
not know of the purifier. *White box*: PGD + EOT through the purifier with the identity as its gradient, verdict on fresh
draws: the weakest attack that knows it, so an upper bound. Nothing here is a claim of robustness.

"""


def percent(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{row['accuracy'] * 100:.1f} [{row['low'] * 100:.0f}, {row['high'] * 100:.0f}]"


def budget(claim: dict, text: str) -> str:
    """Return a budget as it is read: in 255ths for l∞, as a length for l2 and l1."""
    if claim["norm"] == "linf" or "/" not in text:
        return text
    numerator, denominator = map(float, text.split("/"))
    return f"{numerator / denominator:g}"


def suite(claim: dict, folder: Path) -> str:
    """Return the table of a suite: attacks by budgets, the worst case at the bottom."""
    defence = "purified" if claim["purifier"] else "bare"
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    radii = list(dict.fromkeys(row["radius"] for row in claim["cells"] if row["attack"] != "none"))
    lines = [
        f"### {claim['classifier']}, {claim['purifier'] or 'no purifier'}",
        "",
        "| attack | clean | "
        + " | ".join(f"ε = {budget(claim, radius)}" for radius in radii)
        + " | passes forward + backward, seconds |",
        "|---" * (len(radii) + 3) + "|",
    ]
    for where in ("bare", "purified")[: 2 if claim["purifier"] else 1]:
        clean = cells["none", "0", where]
        lines.append(
            "| " + " | ".join([f"none, {where} (n = {clean['n']})", percent(clean), *("" for _ in radii), ""]) + " |"
        )
    for attack in dict.fromkeys(row["attack"] for row in claim["cells"] if row["attack"] != "none"):
        found = [cells.get((attack, radius, defence)) for radius in radii]
        counts = sorted({row["n"] for row in found if row})
        cost = next((row["cost"] for row in found if row and "cost" in row), None)
        cost = cost or next((r["cost"] for r in claim["cells"] if r["attack"] == attack and "cost" in r), None)
        spent = f"{cost['forward']:.0f} + {cost['backward']:.0f}, {cost['seconds']:.2f} s" if cost else ""
        of = ", ".join(map(str, counts))
        named = f"{attack} (n = {of})" if counts[-1] == claim["images"] else f"{attack} (of the {of} left standing)"
        lines.append("| " + " | ".join([named, "", *map(percent, found), spent]) + " |")
    worst = {row["radius"]: row for row in claim["worst_cases"]}
    lines.append(
        "| " + " | ".join(["**worst case**", "", *(percent(worst.get(radius)) for radius in radii), ""]) + " |"
    )
    rules = [row for row in claim["worst_cases"] if "rules" in row and claim["draws"] > 1]
    if rules:
        said = "; ".join(
            f"{row['radius']}: mean {row['rules']['mean']:.1%}, majority {row['rules']['majority']:.1%}, every draw "
            f"{row['rules']['worst']:.1%}"
            for row in rules
        )
        lines += ["", f"Worst case under the three rules, two sets of {claim['draws']} fresh draws: {said}."]
    threads = claim["environment"]["threads"]
    hardware = f"{claim['environment']['hardware']}, {threads} thread{'s' * (threads > 1)}"
    lines += ["", f"{claim['norm']}, seed {claim['seed']}, {hardware}; costs per image that faced the attack. "]
    lines[-1] += "; ".join(f"{name}: {text}" for name, text in claim["protocol"].items()) + f". `results/{folder.name}`"
    for finding in claim["findings"]:
        lines += ["", f"*{finding['level']}*: {finding['sentence']}"]
    return "\n".join(lines)


def table(claim: dict, folder: Path) -> str:
    if {row["attack"] for row in claim["cells"]} - {"none", "gray-box", "white-box"}:
        return suite(claim, folder)
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    radii = [row["radius"] for row in claim["cells"] if row["attack"] == "gray-box" and row["defence"] == "bare"]
    lines = [
        f"### {claim['classifier']}, {claim['purifier'] or 'no purifier'}",
        "",
        "| " + " | ".join(["", "clean", *(f"ε = {budget(claim, radius)}" for radius in radii)]) + " |",
        "|---" * (len(radii) + 2) + "|",
    ]
    rows = [("bare", "gray-box", "bare"), ("gray box, purified", "gray-box", "purified")]
    rows += [("white box, identity gradient", "white-box", "purified")]
    for title, attack, defence in rows:
        found = [cells.get((attack, radius, defence)) for radius in radii]
        if not any(found):
            continue
        clean = cells.get(("none", "0", defence)) if attack == "gray-box" else None
        count = {row["n"] for row in found if row}
        lines.append("| " + " | ".join([f"{title} (n = {max(count)})", percent(clean), *map(percent, found)]) + " |")
    cost = claim["milliseconds_per_image"]
    speed = ", ".join(f"{what} {value:.1f} ms" for what, value in cost.items())
    threads = claim["environment"]["threads"]
    hardware = f"{claim['environment']['hardware']}, {threads} thread{'s' * (threads > 1)}"
    lines += ["", f"An image: {speed} ({hardware}). Attacks, {claim['norm']}, seed {claim['seed']}: "]
    lines[-1] += "; ".join(f"{name}: {text}" for name, text in claim["protocol"].items()) + f". `results/{folder.name}`"
    return "\n".join(lines)


def certificate(claim: dict, folder: Path) -> str:
    """Return the table of a certification: no attack can lower these numbers."""
    rows = claim["certified"]
    lines = [
        f"### Certified: {claim['classifier']}, {claim['purifier'] or 'no purifier'}, σ = {claim['sigma']:g}",
        "",
        "| most frequent class is right | abstained | "
        + " | ".join(f"certified beyond l2 {row['radius']:g}" for row in rows)
        + " | mean radius |",
        "|---" * (len(rows) + 3) + "|",
        "| "
        + " | ".join([percent(claim["smoothed"]), percent(claim["abstained"]), *map(percent, rows)])
        + f" | {claim['mean_radius']:.3f} |",
        "",
        f"n = {claim['images']}, {claim['selection_draws']} + {claim['draws']} draws, α = {claim['alpha']:g}, seed "
        f"{claim['seed']}, {claim['milliseconds_per_image']:.0f} ms an image ({claim['environment']['hardware']}). "
        f"{claim['guarantee']} `results/{folder.name}`",
    ]
    for finding in claim["findings"]:
        lines += ["", f"*{finding['level']}*: {finding['sentence']}"]
    return "\n".join(lines)


def seeing() -> str:
    """Return the table of what the zoo's masked models see of an attack, and what they undo."""
    path = ROOT / "results" / "masked-models.json"
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    radii = [key.split(" ", 1)[1] for key in content["rows"][0] if key.startswith("sees")]
    lines = [
        "## What masked models see, and what they undo",
        "",
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
    return "\n".join(lines) + "\n"


COUNTERPARTS = {
    "DiffPure": "diffpure-ddpm-unet-cifar10",
    "AMRM-Pure, MAE": "amrm-mae-patch4-cifar10",
    "AMRM-Pure, MaskDiT": "amrm-maskdit-micro-cifar10",
}
"""The recipe that does what a row of AMRM-Pure's Table 5 does, on a network of ours."""


def passes(forward: float, backward: float) -> str:
    return f"{forward:g} + {backward:g}" if forward else ""


def speeds() -> str:
    """Return the table of what every purifier costs, by the newest record, and the paper's times."""
    paths = sorted((ROOT / "benchmarks" / "records").glob("*-purifiers/record.json"))
    records = [(path.parent, json.loads(path.read_text())) for path in paths]
    # Those that do not tell what was left out are older than the right count of backward passes.
    records = [(folder, record) for folder, record in records if "left_out" in record]
    if not records:
        return ""
    folder, record = records[-1]
    rows, machine = record["results"], record["environment"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    lines = [
        "",
        "## What purifiers cost",
        "",
        f"{record['batch']} images of 32 × 32 pixels at once, medians of {record['rounds']} interleaved rounds of one run, "
        f"processor time; {machine['hardware']}, {threads}, torch {machine['torch']}, commit {machine['commit']}. *Passes*: "
        "images through the masked model or the denoiser, forward + backward, for each image; *of the classifier*: through "
        f"{record['defended']}, which is defended. *Plain*: the same purifier as one would first write it "
        "(`benchmarks/reference.py`), given its masks and noise, which ours draws; *the same* where no plain form differs. "
        "*Apart*: percent of the pixel values at which the two differ by more than a quarter of a grey level. "
        f"`benchmarks/records/{folder.name}`",
        "",
        "| recipe | | passes | of the classifier | ms an image | plain, ms | plain / ours | apart |",
        "|---" * 8 + "|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["ms_an_image"]):
        found = [name, row["what"], passes(row["forward"], row["backward"])]
        found += [passes(row["classifier_forward"], row["classifier_backward"]), f"{row['ms_an_image']:.2f}"]
        if "ratio" in row:
            found += [f"{row['plain_ms_an_image']:.2f}", f"{row['ratio']:.2f}", f"{row['values_apart'] * 100:.2g}"]
        else:
            found += [row["plain"], "", ""]
        lines.append("| " + " | ".join(found) + " |")
    if record["left_out"]:
        told = "; ".join(f"{name}: {reason.split('. ')[0]}" for name, reason in record["left_out"].items())
        lines += ["", f"Left out: {told}."]
    paper = record["paper_table_5"]
    lines += [
        "",
        f"AMRM-Pure's Table 5, on {paper['hardware']} at batch {paper['batch']}, for how many images is not said. Its networks "
        "are larger than ours (MAE-Base has a hundred times the weights of our masked autoencoder), its steps are others, and so "
        "is the machine: the columns side by side say nothing of which code is faster.",
        "",
        f"| Table 5 | CIFAR-10, s | ImageNet, s | here, {record['batch']} images of 32 × 32, s ({machine['hardware']}, {threads}) |",
        "|---|---|---|---|",
    ]
    for name, seconds in paper["seconds"].items():
        ours = COUNTERPARTS.get(name)
        here = f"{rows[ours]['ms_an_image'] * record['batch'] / 1000:.2f} ({ours})" if ours in rows else ""
        lines.append(f"| {name} | {seconds['CIFAR-10']:.2f} | {seconds['ImageNet']:.2f} | {here} |")
    return "\n".join(lines) + "\n"


ATTACKERS = {"gray-box": "gray box", "aware of the detector": "knows it"}
SCORES = {
    "reconstruction": "masked loss",
    "descent": "log of masked loss over that of the purified image",
    "disagreement": "KL of the classifier's answer from that on the purified image",
    "attention": "mean entropy of the attention maps",
    "amv": "attention matrix variation (AMV) against the purified image",
}


def share(row: dict) -> str:
    """Return a share in percent with its interval; nothing where there was nothing to count."""
    return f"{row['share'] * 100:.1f} [{row['low'] * 100:.0f}, {row['high'] * 100:.0f}]" if row["n"] else ""


def detections(claims: list[tuple[Path, dict]]) -> str:
    """Return the table of scores by budgets: how well attacked images are told from clean ones, and what slips through."""
    columns = [f"{name}: {what}" for name in ATTACKERS.values() for what in ("AUROC", "detected", "fooled, undetected")]
    lines = [
        "## Is an image attacked?",
        "",
        "*AUROC*: chance that an attacked image scores above a clean one; 0.5 is guessing. *Detected*: percent of the attacked "
        "images above the threshold, which is taken from other, clean images. *Fooled, undetected*: percent of the images "
        "that the classifier has right which the attack makes wrong and keeps below the threshold. *Gray box*: PGD on the "
        "classifier; every image it ends with counts, fooled or not. *Knows it*: PGD on classifier and score together, through "
        "the purification, one draw a step, scored on fresh draws; it stops below the threshold, so its AUROC is not the least "
        "that it could reach. More steps and draws would leave less detected.",
        "",
        "| " + " | ".join(["score", "ε", *columns]) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    notes = []
    for folder, claim in sorted(claims, key=lambda pair: list(SCORES).index(pair[1]["score"])):
        cells = {(row["attack"], row["radius"]): row for row in claim["attacks"]}
        for radius in dict.fromkeys(row["radius"] for row in claim["attacks"]):
            found = [claim["score"], budget(claim, radius)]
            for attack in ATTACKERS:
                row = cells[attack, radius]
                area = row["auroc"]
                found.append(f"{area['value']:.2f} [{area['low']:.2f}, {area['high']:.2f}]")
                found += [share(row["detected"]), share(row["fooled_and_undetected"])]
            lines.append("| " + " | ".join(found) + " |")
        row, wrong = claim["attacks"][0], claim["clean"]
        threads = claim["environment"]["threads"]
        notes.append(
            f"- *{claim['score']}*: {SCORES[claim['score']]}; {claim['classifier']}, {claim['purifier']}. {claim['data']}, "
            f"n = {claim['images']} attacked ({row['fooled']['n']} of them right before), {claim['norm']}, {claim['steps']} steps, "
            f"weights of the score {', '.join(f'{weight:g}' for weight in claim['weights'])}, seed {claim['seed']}. Threshold "
            f"{claim['threshold']:.4g} from {claim['calibration']} clean images for {claim['false_positive_rate']:.0%} false "
            f"positives; {share(claim['false_positives'])} % of the {claim['images']} others. Without any attack "
            f"{share(wrong['wrong'])} % are wrong, {share(wrong['wrong_and_undetected'])} % wrong and undetected. "
            f"{claim['environment']['hardware']}, {threads} thread{'s' * (threads > 1)}. `results/{folder.name}`"
        )
        notes += [f"  *{finding['level']}*: {finding['sentence']}" for finding in claim["findings"]]
    return "\n".join([*lines, "", *notes]) + "\n"


def study(file: str, title: str, about: str, columns: dict[str, str]) -> str:
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
        f"## {title}",
        "",
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
    return "\n".join(lines) + "\n\n"


def scales() -> str:
    """Return the table and the chart of the study of scales."""
    text = study(
        "mask-scales.json",
        "The scale of the masks",
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
    picture = "![Accuracy over the error of the masked prediction, divided by the attack's budget](images/mask-scales.svg)\n\n"
    return text + (picture if text else "")


def few_steps() -> str:
    """Return the table of the study of few steps."""
    return study(
        "few-steps.json",
        "Few steps",
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


def page() -> str:
    parts: dict[str, list[str]] = {}
    detected: list[tuple[Path, dict]] = []
    for path in sorted((ROOT / "results").glob("*/claim.json")):
        claim = json.loads(path.read_text())
        if "score" in claim:
            detected.append((path.parent, claim))
            continue
        write = certificate if "certified" in claim else table
        parts.setdefault(claim["data"], []).append(write(claim, path.parent))
    meaning = (ROOT / "results" / "meaning.md").read_text()
    body = "\n\n".join(f"## {data}\n\n" + "\n\n".join(tables) for data, tables in parts.items())
    watching = [detections(detected)] if detected else []
    return (
        HEAD
        + "\n\n".join([meaning.strip(), body, *watching])
        + "\n\n"
        + purifier_table(ROOT)
        + chain()
        + "\n"
        + scales()
        + few_steps()
        + seeing()
        + speeds()
    )


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
    return "\n".join(lines)


def readme() -> str:
    """Return the README with its table made anew."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


def main() -> None:
    if "--check" in sys.argv:
        same = PAGE.read_text() == page() and README.read_text() == readme()
        sys.exit(0 if same else "the tables are not what results/ says; run python tools/results_page.py")
    PAGE.write_text(page())
    README.write_text(readme())
    print(PAGE, README)


if __name__ == "__main__":
    main()
