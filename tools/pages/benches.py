"""What the benches of gradients, attacks and pre-training found, by the newest record of each."""

from __future__ import annotations

from pages.words import hardware, newest_record


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def gradients() -> str:
    """Return what a gradient through a purification costs in time and memory, and how far it is from the full graph's."""
    found = newest_record("adjoint")
    if found is None:
        return ""
    folder, record = found
    rows = []
    for case, ways in record["results"].items():
        for way, row in ways.items():
            apart = f"{row['off_the_full_graph']:.1g}" if row.get("off_the_full_graph") else ""
            cells = [
                case,
                way,
                f"{row['ms_an_image']:.1f}",
                f"{row['over_purifying']:.2f}",
                f"{row['held_mib']:.0f}",
                apart,
            ]
            rows.append(cells)
    lines = [
        f"Value and gradient of {record['batch']} images through S steps, mode tanh; the other modes cost the same, the identity what "
        "purifying costs. *Full graph*: every step kept by autograd, second derivatives and all. *Off*: relative distance from its "
        f"gradient, single precision. {hardware(record)}, {record['rounds']} interleaved rounds. `benchmarks/records/{folder}`",
        "",
        *_table(["purification", "product", "ms an image", "× purifying", "MiB held", "off"], rows),
    ]
    return "\n".join(lines)


def against_auto_attack() -> str:
    """Return our ensemble beside AutoAttack's standard version: what each leaves, and at what cost."""
    found = newest_record("auto-attack")
    if found is None:
        return ""
    folder, record = found
    rows = []
    for case, row in record["results"].items():
        cells = [case, row["images"], row["standing_ours"], row["standing_theirs"]]
        cells += [f"{row['only_ours_breaks']} / {row['only_theirs_breaks']}"]
        cells += [f"{row['forward_ours']:,.0f}", f"{row['forward_theirs']:,.0f}", f"{row['forward_ratio']:.1f}"]
        cells += [f"{row['seconds_ours']:.0f}", f"{row['seconds_theirs']:.0f}", row["hardware"]]
        rows.append([str(cell) for cell in cells])
    heads = ["classifier, budget", "images", "ours leaves", "AutoAttack leaves", "broken by one alone: ours / theirs"]
    heads += ["images forward, ours", "theirs", "theirs / ours", "s, ours", "s, theirs", "machine"]
    lines = [
        "Deterministic classifiers, the same images in one run: our cascade of APGD-CE, targeted APGD, targeted FAB and Square against the "
        "standard version in the package pyautoattack (in l2 ours does without Square, in l1 with APGD alone). Processor seconds of one "
        f"thread. `benchmarks/records/{folder}`",
        "",
        *_table(heads, rows),
    ]
    return "\n".join(lines)


def pretraining_steps() -> str:
    """Return what a step of MIMIR costs, beside plain MAE and a plain reference."""
    found = newest_record("mimir-step")
    if found is None:
        return ""
    folder, record = found
    rows = [
        [case, str(row["batch"]), f"{row['mimir_ms']:.0f}", f"{row['reference_ms']:.0f}"]
        + [f"{row[key]:.2f}" for key in ("reference_over_ours", "mimir_over_mae", "free_over_mae")]
        + [f"{row['mimir_images_per_second']:.0f}"]
        for case, row in record["results"].items()
    ]
    heads = [
        "encoder, decoder",
        "batch",
        "MIMIR, ms",
        "plain reference, ms",
        "plain / ours",
        "MIMIR / MAE",
        "free / MAE",
    ]
    lines = [
        "MIMIR with one attack step, against a plain reference in the style of research code on the same weights, and against plain MAE "
        "by the same code; *free*: the attack's gradient is that of the step before. Asked for were 1.3 at least, and 1.75 and 1.05 at most. "
        f"{hardware(record)}, medians of {record['rounds']} interleaved rounds. `benchmarks/records/{folder}`",
        "",
        *_table([*heads, "images a second"], rows),
    ]
    return "\n".join(lines)
