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
import yaml
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
        near = suggest(name, known, listed=()) or "`robustmim list recipes` shows those that ship."
        raise RecipeError(f"there is no recipe {name!r}, as a file or by name. {near}")
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
        yield from _inner_keys(hints[field.name], f"{prefix}{field.name}.")


def _check_file(path: Path, name: str, hints: dict[str, Any]) -> None:
    """Refuse a file that is no YAML of keys and values, has an unknown key, says one twice, or leaves a group of keys empty.

    The parser takes the last of two values and lets an unknown key pass that holds nothing; its messages tell no line.

    Raises:
        RecipeError: with file, line and key.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise RecipeError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name} is no text, and so no recipe: a recipe is lines of `key: value`") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{name}{line}: this is no YAML ({reason}); a recipe is lines of `key: value`") from error
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else "holds no keys"
        raise RecipeError(
            f"{name} {what}: a recipe is lines of `key: value`; `robustmim init RECIPE` copies one to edit"
        )
    _check_group(root, name, hints)


def _check_group(group: yaml.MappingNode, name: str, hints: dict[str, Any] | None, prefix: str = "") -> None:
    """Check a group of keys and those inside it; without `hints`, which are the keys' types, any key will do."""
    seen: set[str] = set()
    for key_node, value in group.value:
        key, where = str(key_node.value), f"{name}, line {key_node.start_mark.line + 1}"
        if key in seen:
            raise RecipeError(f"{where}: {prefix}{key} is there twice; keep one")
        seen.add(key)
        if hints is not None and key not in hints:
            subject = f"{prefix[:-1]} has" if prefix else "there is"
            inside = [inner for name, kind in hints.items() for inner in (name, *_inner_keys(kind, f"{name}."))]
            raise RecipeError(f"{where}: {subject} no key {key!r}. {suggest(key, inside, listed=hints)}")
        kind = hints[key] if hints is not None else None
        if dataclasses.is_dataclass(kind) and value.tag == "tag:yaml.org,2002:null":
            raise RecipeError(f"{where}: {prefix}{key} is empty; give it keys, or leave it out")
        member = _group_of(kind)
        for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(part, yaml.MappingNode):
                _check_group(part, name, get_type_hints(member) if member else None, f"{prefix}{key}.")


def _group_of(kind: Any) -> Any:
    """Return the dataclass that a value of this type is, may be, or is a list of; None for plain values."""
    return next((inner for inner in (kind, *get_args(kind)) if dataclasses.is_dataclass(inner)), None)


def _inner_keys(kind: Any, prefix: str) -> Iterator[str]:
    group = _group_of(kind)
    return _keys(group, prefix) if group else iter(())


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "keys and values, {key: value}",
    "list": "a list, [first, second]",
    "tuple": "a list, [first, second]",
}


def _wrong_value(key: str, where: str, detail: str) -> str:
    """Say what a key must be, from what the parser says of one alternative or several."""
    if match := re.search(r"Errors: - (.*) - Expected a NoneType Given value type: .*?Given value: (.*)", detail):
        detail, given = match[1], match[2]
        if re.search(r"Expected a dot import path|Unable to load config", detail):
            detail = f"Expected a dict. Got value: {given}"
        elif "Got value:" not in detail and detail.startswith("Expected"):
            detail = f"{detail}. Got value: {given}"
    while match := re.match(r"Problem with given class_path '[\w.]+': Parser key \"([\w.]+)\": (.*)", detail):
        key, detail = f"{key}.{match[1]}", match[2]
    if match := re.match(r"Unable to load config '(.*?)'", detail):
        detail = f"Expected a dict. Got value: {match[1]}"
    if match := re.match(r"Expected a (.*)\. Got value: (.*)", detail):
        expected = match[1].replace("robustmim.radius.", "")
        if words := re.match(r"typing\.Literal\[(.*)\]", expected):
            must = f"one of {words[1]}"
        else:
            must = _TYPES.get(expected, expected)
        return f"{key}{where} is {match[2]!r}, but must be {must}"
    return f"{key}{where}: {re.sub(r'^Not of type [A-Za-z]+: ', '', detail)}"


def _explain(message: str, known: list[str], source: str, words: list[str]) -> str:
    """Turn the parser's message into one that names the key, the file or option, and the nearest valid name.

    Args:
        message: the parser's.
        known: every key there is, groups as `group.key`.
        source: the recipe that was named, "" for none.
        words: of the command line, which a mistake may have come from as well.
    """
    options = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
    short = [key.rsplit(".", 1)[-1] for key in known]

    def missing(key: str, group: str = "") -> str:
        typed = next((option for option in options if option.split(".")[-1] == key or option == key), None)
        where = f" in {source}" if source and typed is None else ""
        inside = [name[len(group) + 1 :] for name in known if name.startswith(f"{group}.")] if group else []
        if inside:
            return f"{group} has no key {key!r}{where}. {suggest(key, inside)}"
        # All keys with all their groups would be a page long.
        near = suggest(typed or key, known, listed=[name for name in known if "." not in name])
        return f"there is no {f'option --{typed}' if typed else f'key {key!r}'}{where}. {near}"

    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        return missing(match[2], match[1])
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        top = match[1].split(".")[0]
        return missing(match[1] if top in known else top)
    if match := re.search(r"unrecognized arguments: (.*)", message, re.IGNORECASE | re.DOTALL):
        first = match[1].split()[0]
        if not first.startswith("-"):
            return f"{first!r} is no option: recipes, runs and images come first, right after the command, and options last"
        option = first.lstrip("-").partition("=")[0]
        top = [name for name in known if "." not in name]
        near = suggest(option.replace("-", "_"), [*known, *short], listed=top)
        return f"there is no option {first.partition('=')[0]}. {near}"
    if match := re.search(r"argument (--[\w.]+): expected one argument", message):
        return f"{match[1]} needs a value"
    if match := re.search(r"the following arguments are required: (.*)", message):
        return f"{match[1].strip()} is not set: name a recipe (`robustmim list recipes`), or set it in yours" + (
            f", {source}" if source else ""
        )
    if match := re.search(r"Parser key \"([\w.]+)\":\s*(.*)", message, re.DOTALL):
        key = match[1]
        given = any(option == key or option.startswith(f"{key}.") for option in options)
        detail = " ".join(match[2].split()).replace("<class '", "").replace("'>", "")
        return _wrong_value(key, "" if given or not source else f" in {source}", detail)
    return " ".join(message.split()) + (f" in {source}" if source else "")


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
    words = arguments
    if source:
        path = find_recipe(source)
        kind = recipe.__name__.removesuffix("Recipe").lower()
        if path.is_relative_to(RECIPES) and path.parent.name != kind:
            raise RecipeError(
                f"{source} is a recipe of another kind: {path.parent.name} where {kind} is asked for; "
                "`robustmim list recipes` tells the kind of each"
            )
        _check_file(path, source, get_type_hints(recipe) | get_type_hints(options))
        arguments = ["--config", str(path), *arguments]
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
        raise RecipeError(_explain(str(error), known, source, words)) from error

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


def recipe_from(recipe: type[Recipe], values: dict[str, Any]) -> Recipe:
    """Return a recipe from what `to_plain` made of it, as a run folder holds it; what is not there has its default.

    Raises:
        RecipeError: unknown keys, wrong types.
    """
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(recipe, None)
    try:
        return recipe(**vars(parser.instantiate(parser.parse_object(values))))
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise RecipeError(
            f"this is no recipe of the kind {recipe.__name__.removesuffix('Recipe').lower()}: {error}"
        ) from error
