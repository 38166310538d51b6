"""How numbers are written on the page."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


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
