"""Recipes and options from YAML files and the command line, with errors that name the nearest right spelling.

Free of torch, so that `--help` and a typo are answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse.typing import register_type

from robustmim.errors import RecipeError, suggest
from robustmim.radius import Radius, radius_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)
register_type(Radius, serializer=radius_text, deserializer=Radius)

RECIPES = Path(__file__).parent / "recipes"
Recipe = TypeVar("Recipe")
Options = TypeVar("Options")


def recipe_names() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*/*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: a path, or the name of one that ships.

    Raises:
        RecipeError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = recipe_names()
    if name not in known:
        raise RecipeError(f"there is no recipe {name!r}, as a file or by name. {suggest(name, known)}")
    return known[name]


def _underscored(word: str) -> str:
    """Accept --max-time for --max_time, as people type it."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _flags(cls: Any, prefix: str = "--") -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if hints[field.name] is bool:
            yield prefix + field.name
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from _flags(hints[field.name], f"{prefix}{field.name}.")


def _with_values(words: list[str], flags: set[str]) -> Iterator[str]:
    """Give a flag that stands alone its value: `--dry_run` means `--dry_run true`."""
    for place, word in enumerate(words):
        yield word
        if word in flags and (place + 1 == len(words) or words[place + 1] not in ("true", "false")):
            yield "true"


def _keys(cls: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        kind = hints[field.name]
        for inner in (kind, *get_args(kind)):
            if dataclasses.is_dataclass(inner):
                yield from _keys(inner, f"{prefix}{field.name}.")


def _explain(message: str, known: list[str], source: str) -> str:
    """Turn the parser's message into one that names the key, the file and the nearest valid name."""
    where = f" in {source}" if source else ""
    short = [key.rsplit(".", 1)[-1] for key in known]
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        group, key = match[1], match[2]
        inside = [name[len(group) + 1 :] for name in known if name.startswith(f"{group}.")]
        return f"{group} has no key {key!r}{where}. {suggest(key, inside)}"
    if match := re.search(r"Option '([\w.]+)' is not accepted", message):
        top = match[1].split(".")[0]
        wrong = match[1] if top in known else top
        return f"there is no key {wrong!r}{where}. {suggest(wrong, known)}"
    if match := re.search(r"unrecognized arguments: --([\w.\-]+)", message, re.IGNORECASE):
        return f"there is no option --{match[1]}. {suggest(match[1].replace('-', '_'), [*known, *short])}"
    if match := re.search(r"Parser key \"([\w.]+)\":\s*(.*)", message, re.DOTALL):
        detail = " ".join(match[2].split()).replace("<class '", "").replace("'>", "")
        return f"{match[1]}{where}: {detail}"
    return " ".join(message.split()) + where


def parse(
    command: str,
    recipe: type[Recipe],
    options: type[Options],
    arguments: list[str],
    *,
    default: str | None = None,
    usage: str | None = None,
) -> tuple[Recipe, Options, str]:
    """Read `[RECIPE] [--key value …]` into a typed recipe and typed options.

    Args:
        command: for the help.
        recipe, options: dataclasses; both are filled from the command line, the recipe from YAML as well.
        arguments: words after the command. A first word without dashes is a recipe: a file or a shipped name.
        default: recipe used when none is named.
        usage: the first line of the help, where it is not `COMMAND [RECIPE] [--key value …]`.

    Returns:
        The recipe, the options, and the recipe's name ("recipe" when there is none).

    Raises:
        RecipeError: unknown keys, wrong types, unreadable files.
    """
    known = [*_keys(recipe), *_keys(options)]
    arguments = list(
        _with_values([_underscored(word) for word in arguments], set(_flags(recipe)) | set(_flags(options)))
    )
    source = ""
    wants_help = any(word in ("-h", "--help") for word in arguments)
    if arguments and not arguments[0].startswith("-"):
        source, arguments = arguments[0], arguments[1:]
    elif default is not None and not wants_help and "--config" not in arguments:
        source = default
    if source:
        arguments = ["--config", str(find_recipe(source)), *arguments]
    parser = ArgumentParser(
        prog=f"robustmim {command}",
        usage=usage or f"robustmim {command} [RECIPE] [--key value …]",
        description=(recipe.__doc__ or "").strip(),
        epilog="RECIPE is a YAML file or the name of one that ships (`robustmim list recipes`).",
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="another YAML file; later ones win")
    parser.add_class_arguments(options, None)
    parser.add_class_arguments(recipe, None)
    try:
        values = parser.instantiate(parser.parse_args(arguments))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(_explain(str(error), known, source)) from error

    def pick(cls: Any) -> Any:
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    # Not the stem: a shipped name may hold a point, as cifar10-sigma-0.12 does.
    name = re.sub(r"\.ya?ml$", "", Path(source).name)
    return pick(recipe), pick(options), name or "recipe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NoOptions:
    """Nothing besides the recipe."""


def load_recipe(recipe: type[Recipe], name: str) -> Recipe:
    """Read a recipe from a YAML file, or one that ships by its name.

    Raises:
        RecipeError: not there, unknown keys, wrong types.
    """
    return parse("", recipe, _NoOptions, [name])[0]
