"""`robustmim compare RUN RUN`: a paired test of two evaluations on the same images."""

from __future__ import annotations

from pathlib import Path

from robustmim.errors import InputError, RecipeError

USAGE = """usage: robustmim compare RUN RUN [--json]

For every attack, budget and defence that two evaluations share: both accuracies on the images both judged, the mean
difference with its 95 % interval, and the exact McNemar test of the images that only one of them got right. And the
worst cases of both at the budgets they share, whatever attacks each took: a classifier alone beside the same purified."""
REMEDY = "name the folder of an evaluation, which holds run.json"
HEADS = ("attack, ε, defence", "n", "first", "second", "second − first, 95 %", "only one right", "p")


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    folders = [Path(word) for word in arguments if not word.startswith("-")]
    unknown = [word for word in arguments if word.startswith("-") and word != "--json"]
    if unknown:
        raise RecipeError(f"there is no option {unknown[0]}; compare takes two run folders and --json")
    if len(folders) != 2:
        raise RecipeError("name two run folders: robustmim compare runs/A runs/B")

    from rich.table import Table

    from robustmim.cli.console import console, output, say
    from robustmim.evaluate.comparison import compare, compare_worst, worst_cases
    from robustmim.evaluate.run import read_records
    from robustmim.report.reading import read_record, reading

    records, worst = [], []
    for folder in folders:
        if not list(folder.glob("records*.jsonl")):
            raise InputError(
                f"{folder} holds no records of an evaluation; make some with robustmim evaluate --out {folder}"
            )
        records.append(read_records(folder))
        about = read_record(folder / "run.json", REMEDY)
        try:
            with reading(folder / "run.json", REMEDY):
                worst.append(worst_cases(about["recipe"], records[-1]))
        except RecipeError as error:
            say(f"no worst cases: {folder}/run.json was written by another version, whose recipes differ ({error})")
    rows = compare(*records) + (compare_worst(*worst) if len(worst) == len(folders) else [])
    if not rows:
        raise InputError(
            "the two runs have no attack, budget and image in common; compare runs of one recipe and data set"
        )
    if "--json" in arguments:
        output(rows)
    table = Table(title=f"{folders[1]} minus {folders[0]}")
    for head in HEADS:
        table.add_column(head, justify="left" if head.startswith("attack") else "right")
    for row in rows:
        table.add_row(
            f"{row['attack']} {row['radius']} {row['defence']}",
            *(str(row["n"]), f"{row['first']:.1%}", f"{row['second']:.1%}"),
            f"{row['difference']:+.1%} [{row['low'] * 100:+.1f}, {row['high'] * 100:+.1f}]",
            f"{row['only_first']} / {row['only_second']}",
            f"{row['p']:.2g}",
        )
    console.print(table)
    return 0
