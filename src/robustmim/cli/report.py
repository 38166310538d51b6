"""`robustmim report RUN …`: write (again) the HTML page of a run folder."""

from __future__ import annotations

from pathlib import Path

from robustmim.errors import RecipeError


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print(
            "usage: robustmim report RUN …\n\nWrite report.html into each run folder; it is one file and works offline."
        )
        return 0
    if not arguments:
        raise RecipeError("name a run folder: robustmim report runs/NAME")

    from robustmim.report.page import write_report

    for name in arguments:
        print(write_report(Path(name)))
    return 0
