"""What long commands print: people's text and progress on stderr, machine output on stdout."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console

from robustmim.runs import to_plain

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line for people."""
    console.print(text, markup=False, soft_wrap=True)


def output(value: Any) -> None:
    """Print JSON for machines."""
    json.dump(to_plain(value), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def duration(seconds: float) -> str:
    """Print a time span: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 5400:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Print one line now and then: what is done, and how long the rest will take."""

    def __init__(self, total: int, *, unit: str, every: float = 10.0) -> None:
        self.total, self.unit, self.every = total, unit, every
        self._began = self._last = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, note: str = "", *, force: bool = False) -> None:
        """Tell how much is done; a line appears at most every few seconds."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if not force and done < self.total and now - self._last < self.every:
            return
        self._last = now
        fresh = done - self._first
        left = (now - self._began) / fresh * (self.total - done) if fresh > 0 else None
        eta = f"  {duration(left)} left" if left else ""
        say(f"{done:>7}/{self.total} {self.unit}  {note}{eta}")
