"""`robustmim report RUN …`: write (again) the HTML page of a run folder."""

from __future__ import annotations

from pathlib import Path

from robustmim.errors import InputError, RecipeError


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print(
            "usage: robustmim report RUN …\n\nWrite report.html into each run folder; it is one file and works offline."
        )
        return 0
    if options := [word for word in arguments if word.startswith("-")]:
        raise RecipeError(f"there is no option {options[0]}: report takes run folders only")
    if not arguments:
        raise RecipeError("name a run folder: robustmim report runs/NAME")

    from robustmim.cli.console import say
    from robustmim.report.page import write_report

    bad: list[str] = []
    for name in arguments:
        try:
            print(write_report(Path(name)))
        except InputError as error:
            bad.append(str(error))
    for message in bad:
        say(f"no report: {message}")
    return 1 if bad else 0
