"""Errors for people: each says what was wrong, where, and what to do; the command line turns them into exit codes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RobustmimError(Exception):
    """Base of every error this package raises on purpose. `exit_code` is the command line's exit status."""

    exit_code = 1


class InputError(RobustmimError):
    """An image, a tensor, a folder or a data set that cannot be used as it is."""


class CheckpointError(RobustmimError):
    """A file of weights that is damaged, foreign, or of a kind that does not fit the job."""


class RecipeError(RobustmimError):
    """A recipe, an option or a name that does not exist or has the wrong type."""

    exit_code = 2


class EnvironmentUnusable(RobustmimError):
    """A package, a device or a folder that the command needs is missing."""

    exit_code = 5


def suggest(wrong: str, known: Iterable[str], *, listed: Iterable[str] | None = None) -> str:
    """Return a sentence that names the nearest known spelling of `wrong`, or lists what is known.

    Args:
        wrong: what was written.
        known: right spellings.
        listed: those to list where none is near; default: all. Where there are none, the sentence is empty.
    """
    known = sorted(known)
    close = get_close_matches(wrong, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    listed = known if listed is None else sorted(listed)
    return f"Known: {', '.join(listed)}." if listed else ""
