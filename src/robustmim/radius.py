"""Budgets: written 8/255 in recipes, on the command line and in tables; a float everywhere else. Free of torch."""

from __future__ import annotations

import math


def radius_text(radius: float) -> str:
    """Print a budget the way the field writes it: 8/255 → '8/255', 0.5 → '0.5', 0 → '0'."""
    grey_levels = radius * 255
    if 0 < grey_levels < 256 and abs(grey_levels - round(grey_levels, 2)) < 1e-6:
        return f"{grey_levels:.4g}/255"
    return f"{radius:g}"


class Radius(float):
    """A budget in pixel fractions, written '8/255', 0.5 (for l2) or inf.

    A bare whole number such as 8 is refused: it is hardly ever meant.

    Raises:
        ValueError: no number, negative, or written in grey levels.
    """

    def __new__(cls, value: float | str) -> Radius:
        """Parse '8/255', '0.5' or a number."""
        text = str(value).replace(" ", "")
        numerator, slash, denominator = text.partition("/")
        try:
            number = float(numerator) / (float(denominator) if slash else 1.0)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{value!r} is not a budget; write 8/255 for eight grey levels, or 0.5") from error
        if number < 0 or math.isnan(number):
            raise ValueError(f"a budget cannot be negative or undefined, but this one is {value!r}")
        if text.isdigit() and number > 0:
            raise ValueError(f"write {text}/255 for {text} grey levels, or {text}.0 for {text} times the pixel range")
        return super().__new__(cls, number)

    def __repr__(self) -> str:
        return radius_text(self)

    __str__ = __repr__
