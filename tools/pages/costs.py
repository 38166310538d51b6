"""What purifiers cost, by the newest record of the bench."""

from __future__ import annotations

from pages.words import hardware, newest_record

COUNTERPARTS = {
    "DiffPure": "diffpure-ddpm-unet-cifar10",
    "AMRM-Pure, MAE": "amrm-mae-patch4-cifar10",
    "AMRM-Pure, MaskDiT": "amrm-maskdit-micro-cifar10",
    "RAMRM-Pure, MAE": "amrm-rmae-patch4-cifar10",
    "RAMRM-Pure, MaskDiT": "amrm-rmaskdit-micro-cifar10",
}
"""The recipe that does what a row of AMRM-Pure's Table 5 does, on a network of ours."""


def passes(forward: float, backward: float) -> str:
    return f"{forward:g} + {backward:g}" if forward else ""


def speeds() -> str:
    """Return the table of what every purifier costs, by the newest record, and the paper's times."""
    newest = newest_record("purifiers")
    if newest is None:
        return ""
    folder, record = newest
    rows, machine = record["results"], record["environment"]
    lines = [
        f"{record['batch']} images of 32 × 32 pixels at once, medians of {record['rounds']} interleaved rounds of one run, "
        f"processor time; {hardware(record)}, torch {machine['torch']}, commit {machine['commit']}. *Passes*: "
        "images through the masked model or the denoiser, forward + backward, for each image; *of the classifier*: through "
        f"{record['defended']}, which is defended. *Plain*: the same purifier as one would first write it "
        "(`benchmarks/reference.py`), given its masks and noise, which ours draws; *the same* where no plain form differs. "
        "*Apart*: percent of the pixel values at which the two differ by more than a quarter of a grey level. "
        f"`benchmarks/records/{folder}`",
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
        f"| Table 5 | CIFAR-10, s | ImageNet, s | here, {record['batch']} images of 32 × 32, s ({hardware(record)}) |",
        "|---|---|---|---|",
    ]
    for name, seconds in paper["seconds"].items():
        ours = COUNTERPARTS.get(name)
        here = f"{rows[ours]['ms_an_image'] * record['batch'] / 1000:.2f} ({ours})" if ours in rows else ""
        lines.append(f"| {name} | {seconds['CIFAR-10']:.2f} | {seconds['ImageNet']:.2f} | {here} |")
    return "\n".join(lines)
