"""`robustmim init RECIPE [FILE]`: copy a recipe that ships, to edit."""

from __future__ import annotations

import shutil
from pathlib import Path

from robustmim.errors import InputError, RecipeError
from robustmim.recipe import find_recipe


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments) or not 1 <= len(arguments) <= 2:
        print(
            "usage: robustmim init RECIPE [FILE]\n\nCopy a recipe that ships (`robustmim list recipes`) to FILE, to edit."
        )
        if {"-h", "--help"} & set(arguments):
            return 0
        raise RecipeError("name one recipe, and a file if you like")
    source = find_recipe(arguments[0])
    target = Path(arguments[1] if len(arguments) == 2 else source.name)
    if target.exists():
        raise InputError(f"{target} exists already; choose another name")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; choose another place") from error
    kind = source.parent.name
    takes_it_first = kind in ("train", "pretrain", "robustify", "evaluate", "corruptions", "certify", "detect")
    hint = f"robustmim {kind} {target}" if takes_it_first else f"robustmim purify IMAGES --recipe {target}"
    print(f"{target}: edit it, then {hint}")
    return 0
