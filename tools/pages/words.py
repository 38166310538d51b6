"""What is read from the committed files, and how numbers are written on the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def claims(pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folders of results/ that match and have a claim, by name, and what it says."""
    paths = sorted((ROOT / "results").glob(f"{pattern}/claim.json"))
    return [(path.parent, json.loads(path.read_text())) for path in paths]


def newest_record(bench: str) -> tuple[str, dict[str, Any]] | None:
    """Return the folder's name and the newest record of a bench; None if it has never been run."""
    paths = sorted((ROOT / "benchmarks" / "records").glob(f"*-{bench}/record.json"))
    return (paths[-1].parent.name, json.loads(paths[-1].read_text())) if paths else None


def percent(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{row['accuracy'] * 100:.1f} [{row['low'] * 100:.0f}, {row['high'] * 100:.0f}]"


def budget(claim: dict, text: str) -> str:
    """Return a budget as it is read: in 255ths for l∞, as a length for l2 and l1."""
    if claim["norm"] == "linf" or "/" not in text:
        return text
    numerator, denominator = map(float, text.split("/"))
    return f"{numerator / denominator:g}"


def hardware(claim: dict) -> str:
    """Return what it was measured on."""
    threads = claim["environment"]["threads"]
    return f"{claim['environment']['hardware']}, {threads} thread{'s' * (threads > 1)}"
