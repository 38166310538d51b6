"""Options that every long command has."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TypeVar

from jsonargparse.typing import register_type

from robustmim.config import CertifyRecipe, CorruptionsRecipe, DetectRecipe, EvaluateRecipe, PurifyRecipe
from robustmim.recipe import load_recipe


class Duration(float):
    """A time span in seconds, written 90s, 45m, 2h or a bare number of seconds."""

    def __new__(cls, value: float | str) -> Duration:
        """Parse it."""
        if isinstance(value, str):
            match = re.fullmatch(r"\s*([\d.]+)\s*([smh]?)\s*", value)
            if match is None:
                raise ValueError("write a time as 90s, 45m or 2h")
            value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
        return super().__new__(cls, value)


register_type(Duration, serializer=float, deserializer=Duration)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of every long command."""

    out: str | None = None
    """Run folder; default: runs/NAME. A folder that holds the same run is resumed."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    max_time: Duration = Duration(math.inf)
    """Stop cleanly after this time (90s, 45m, 2h); the same command resumes."""
    dry_run: bool = False
    """Time two batches, print what the whole would cost, and stop."""
    json: bool = False
    """Print machine-readable JSON on stdout; people's text goes to stderr."""


Measured = TypeVar("Measured", CertifyRecipe, CorruptionsRecipe, DetectRecipe, EvaluateRecipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenceOptions(JobOptions):
    """Options of commands that measure a classifier behind a purifier."""

    classifier: str = "fast-cnn-cifar10"
    """Zoo name, folder of a trained classifier, or (with --arch) someone else's checkpoint."""
    arch: str | None = None
    """Architecture of someone else's checkpoint, such as resnet56; `robustmim list classifiers`."""
    purifier: str = "recommended-cifar10"
    """Purification recipe, by name or file; "none" measures the bare classifier."""
    limit: int | None = None
    """Use only the first so many images."""

    def limited(self, recipe: Measured) -> Measured:
        """Return the recipe on no more images than `limit`."""
        if self.limit is None:
            return recipe
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, limit=self.limit))

    def purification(self) -> PurifyRecipe | None:
        """Return the recipe of the purifier; None for none.

        Raises:
            RecipeError: there is no such recipe, or it has a mistake.
        """
        return None if self.purifier == "none" else load_recipe(PurifyRecipe, self.purifier)
