"""The table of detectors."""

from __future__ import annotations

from pages.words import budget, claims, hardware

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


def detections() -> str:
    """Return the table of scores by budgets: how well attacked images are told from clean ones, and what slips through."""
    known = [(folder, claim) for folder, claim in claims("*") if "score" in claim]
    columns = [f"{name}: {what}" for name in ATTACKERS.values() for what in ("AUROC", "detected", "fooled, undetected")]
    lines = [
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
    for folder, claim in sorted(known, key=lambda pair: list(SCORES).index(pair[1]["score"])):
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
        notes.append(
            f"- *{claim['score']}*: {SCORES[claim['score']]}; {claim['classifier']}, {claim['purifier']}. {claim['data']}, "
            f"n = {claim['images']} attacked ({row['fooled']['n']} of them right before), {claim['norm']}, {claim['steps']} steps, "
            f"weights of the score {', '.join(f'{weight:g}' for weight in claim['weights'])}, seed {claim['seed']}. Threshold "
            f"{claim['threshold']:.4g} from {claim['calibration']} clean images for {claim['false_positive_rate']:.0%} false "
            f"positives; {share(claim['false_positives'])} % of the {claim['images']} others. Without any attack "
            f"{share(wrong['wrong'])} % are wrong, {share(wrong['wrong_and_undetected'])} % wrong and undetected. "
            f"{hardware(claim)}. `results/{folder.name}`"
        )
        notes += [f"  *{finding['level']}*: {finding['sentence']}" for finding in claim["findings"]]
    return "\n".join([*lines, "", *notes])
