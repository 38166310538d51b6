"""Write docs/results.md, its frontier chart and the README's table from the committed result files.

python tools/results_page.py            writes it
python tools/results_page.py --check    exits with 1 if it is not what the files say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pages.benches import against_auto_attack, gradients, pretraining_steps
from pages.costs import speeds
from pages.detections import detections
from pages.evaluations import certificate, table
from pages.frontier import PICTURE, frontier, picture, points
from pages.mimir import chain
from pages.purifiers import purifier_table
from pages.studies import few_steps, scales, seeing
from pages.summary import short_table
from pages.words import ROOT

PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- table: tools/results_page.py -->", "<!-- end of table -->"

HEAD = """# Results

Written by `python tools/results_page.py` from the files in `results/`; each folder there holds the claim, the records of every
sample and the command that regenerates them. Accuracies in percent, 95 % Wilson intervals in brackets.

*Bare*: the attacked classifier alone. *Gray box*: images attacked on the bare classifier, then purified; the attacker does
not know of the purifier. *White box*: PGD + EOT through the purifier with the identity as its gradient, verdict on fresh
draws: the weakest attack that knows it, so an upper bound. Nothing here is a claim of robustness.

"""


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
        + frontier(points())
        + purifier_table()
        + chain()
        + "\n"
        + scales()
        + few_steps()
        + seeing()
        + gradients()
        + against_auto_attack()
        + pretraining_steps()
        + speeds()
    )


def readme() -> str:
    """Return the README with its table made anew."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


def main() -> None:
    if "--check" in sys.argv:
        made = {PAGE: page(), README: readme(), PICTURE: picture(points())}
        sys.exit(
            0
            if all(path.exists() and path.read_text() == text for path, text in made.items())
            else "the tables are not what results/ says; run python tools/results_page.py"
        )
    PAGE.write_text(page())
    README.write_text(readme())
    PICTURE.write_text(picture(points()))
    print(PAGE, README, PICTURE)


if __name__ == "__main__":
    main()
