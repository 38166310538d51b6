"""Write docs/results.md from the committed result files.

python tools/results_page.py            writes it
python tools/results_page.py --check    exits with 1 if it is not what the files say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"

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


def table(claim: dict, folder: Path) -> str:
    cells = {(row["attack"], row["radius"], row["defence"]): row for row in claim["cells"]}
    radii = [row["radius"] for row in claim["cells"] if row["attack"] == "gray-box" and row["defence"] == "bare"]
    lines = [
        f"### {claim['classifier']}, {claim['purifier'] or 'no purifier'}",
        "",
        "| " + " | ".join(["", "clean", *(f"ε = {radius}" for radius in radii)]) + " |",
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
    hardware = f"{claim['environment']['hardware']}, {claim['environment']['threads']} thread(s)"
    lines += ["", f"An image: {speed} ({hardware}). Attacks, {claim['norm']}, seed {claim['seed']}: "]
    lines[-1] += "; ".join(f"{name}: {text}" for name, text in claim["protocol"].items()) + f". `results/{folder.name}`"
    return "\n".join(lines)


def page() -> str:
    parts: dict[str, list[str]] = {}
    for path in sorted((ROOT / "results").glob("*/claim.json")):
        claim = json.loads(path.read_text())
        parts.setdefault(claim["data"], []).append(table(claim, path.parent))
    meaning = (ROOT / "results" / "meaning.md").read_text()
    body = "\n\n".join(f"## {data}\n\n" + "\n\n".join(tables) for data, tables in parts.items())
    return HEAD + meaning.strip() + "\n\n" + body + "\n"


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.read_text() == page() else f"{PAGE} is not what results/ says; run python tools/results_page.py"
        )
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
