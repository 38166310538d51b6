"""records.jsonl: what a run has measured so far, whole after a kill and shared among processes.

A single process appends to records.jsonl; of several each appends to a file of its own, records.RANK.jsonl, and reads all of
them when it goes on, so that a run may be stopped with two processes and ended with one. At the end the process that leads
writes all records into records.jsonl, in an order that does not depend on who measured what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustmim.runs import atomic, read_lines
from robustmim.train.distributed import World

Row = dict[str, Any]


def read_journal(folder: Path) -> list[Row]:
    """Read the records of a run, whole or not, of one process or several."""
    return [row for path in sorted(folder.glob("records*.jsonl")) for row in read_lines(path)]


class Journal:
    """The records that this process writes.

    Args:
        folder: of the run; it exists.
        world: this process among others.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.path = folder / ("records.jsonl" if world.size == 1 else f"records.{world.rank}.jsonl")
        if self.path.exists():
            # A line that a kill cut short goes, so that the next one is not glued to it.
            _write(self.path, read_lines(self.path))

    def append(self, rows: Iterable[Row]) -> None:
        """Add lines, in one write."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.path.open("a") as file:
            file.write(text)

    def merge(self, rows: Iterable[Row]) -> None:
        """Make records.jsonl of all rows; the files of single processes go. Called by the process that leads, at the end."""
        _write(self.folder / "records.jsonl", rows)
        for path in self.folder.glob("records.*.jsonl"):
            path.unlink()


def _write(path: Path, rows: Iterable[Row]) -> None:
    with atomic(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
