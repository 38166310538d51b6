"""Budgets: written 8/255 in recipes, on the command line and in tables; a float everywhere else. Free of torch."""

from __future__ import annotations

from fractions import Fraction


def radius_text(radius: float) -> str:
    """Print a budget the way the field writes it: 8/255 → '8/255', 0.5 → '0.5'."""
    grey_levels = radius * 255
    if 0 < grey_levels < 256 and abs(grey_levels - round(grey_levels, 2)) < 1e-6:
        return f"{grey_levels:.4g}/255"
    return f"{radius:g}"


class Radius(float):
    """A budget in pixel fractions, written '8/255' or 0.5 (for l2). A bare 8 is refused: it is hardly ever meant.

    Raises:
        ValueError: not a number, negative, or an l∞ budget written in grey levels.
    """

    def __new__(cls, value: float | str) -> Radius:
        """Parse '8/255', '0.5' or a number."""
        try:
            number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{value!r} is not a budget; write 8/255 for eight grey levels, or 0.5") from error
        if number < 0:
            raise ValueError(f"a budget cannot be negative, but this one is {value!r}")
        if number in {1.0, 2.0, 4.0, 8.0, 16.0} and "/" not in str(value) and "." not in str(value):
            raise ValueError(f"write {number:g}/255 for {number:g} grey levels, or {number:g}.0 if you mean that many full ranges")
        return super().__new__(cls, number)

    def __repr__(self) -> str:
        return radius_text(self)

    __str__ = __repr__
