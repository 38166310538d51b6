"""Write docs/results.md, docs/evaluations.md, the frontier's chart and the README's table from the committed result files.

python tools/results_page.py            writes them
python tools/results_page.py --check    exits with 1 if they are not what the files say

The words of docs/results.md are those of results/page.md; a line `<!-- name -->` there is a table that a file of tools/pages makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from pages.benches import against_auto_attack, gradients, pretraining_steps
from pages.costs import speeds
from pages.detections import detections
from pages.evaluations import evaluations
from pages.frontier import PICTURE, frontier, picture, points
from pages.mimir import chain
from pages.purifiers import purifier_table
from pages.studies import few_steps, scales, seeing
from pages.summary import short_table
from pages.words import ROOT

PAGE, EVALUATIONS = ROOT / "docs" / "results.md", ROOT / "docs" / "evaluations.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- table: tools/results_page.py -->", "<!-- end of table -->"

TABLES: dict[str, Callable[[], str]] = {
    "frontier": lambda: frontier(points()),
    "purifiers": purifier_table,
    "mimir": chain,
    "scales": scales,
    "seeing": seeing,
    "few steps": few_steps,
    "detections": detections,
    "auto-attack": against_auto_attack,
    "speeds": speeds,
    "gradients": gradients,
    "pre-training": pretraining_steps,
}
"""What stands where results/page.md has a mark of this name."""


def contents(text: str) -> str:
    """Return a list of links to the sections of a page, by the anchors that GitHub gives them."""
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    return "\n".join(f"- [{title}](#{anchor})" for title, anchor in zip(titles, anchors, strict=True))


def page() -> str:
    """Return results/page.md with its tables and its contents; every table must be asked for, once."""
    text = (ROOT / "results" / "page.md").read_text()
    for name, make in TABLES.items():
        mark = f"<!-- {name} -->"
        if text.count(mark) != 1:
            raise SystemExit(f"results/page.md has the mark {mark} {text.count(mark)} times instead of once")
        text = text.replace(mark, make().strip())
    return text.replace("<!-- contents -->", contents(text))


def readme() -> str:
    """Return the README with its table made anew."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


def main() -> None:
    made = {PAGE: page(), EVALUATIONS: evaluations(), README: readme(), PICTURE: picture(points())}
    if "--check" in sys.argv:
        same = all(path.exists() and path.read_text() == text for path, text in made.items())
        sys.exit(0 if same else "the tables are not what results/ says; run python tools/results_page.py")
    for path, text in made.items():
        path.write_text(text)
        print(path)


if __name__ == "__main__":
    main()
