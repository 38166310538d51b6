"""One place where names meet builders: models, classifiers, purifiers, attacks, data sets, and other people's plug-ins.

A plug-in package declares the entry point group `robustmim.plugins`; importing its module runs its `@register` lines.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from robustmim.errors import RecipeError, suggest

Kind = Literal["classifier", "masked-model", "denoiser", "purifier", "attack", "method", "data"]

# Importing these modules runs the @register lines of each kind.
_HOMES: dict[str, tuple[str, ...]] = {
    "classifier": (
        "robustmim.models.fast_cnn",
        "robustmim.models.resnet",
        "robustmim.models.wrn",
        "robustmim.models.vit",
        "robustmim.models.double_boundary",
        "robustmim.models.ensemble",
        "robustmim.models.efficientnet_lite",
        "robustmim.models.adapters",
    ),
    "masked-model": (
        "robustmim.models.mae",
        "robustmim.models.masked_conv",
        "robustmim.models.guided_conv",
        "robustmim.models.maskdit",
        "robustmim.models.context_encoder",
    ),
    "denoiser": ("robustmim.models.unet",),
    "purifier": (
        "robustmim.purify.amrm",
        "robustmim.purify.reconstruct",
        "robustmim.purify.diffusion",
        "robustmim.purify.baselines.gaussian_noise",
        "robustmim.purify.baselines.coup",
        "robustmim.purify.baselines.scoreopt",
        "robustmim.purify.baselines.jpeg",
        "robustmim.purify.baselines.total_variation",
        "robustmim.purify.baselines.median",
        "robustmim.purify.baselines.soap",
        "robustmim.purify.baselines.adp",
        "robustmim.purify.baselines.anti_adversary",
        "robustmim.purify.baselines.nim",
        "robustmim.purify.baselines.dmae",
    ),
    "attack": (
        "robustmim.attacks.pgd",
        "robustmim.attacks.apgd",
        "robustmim.attacks.auto_attack",
        "robustmim.attacks.fab",
        "robustmim.attacks.fast_minimum_norm",
        "robustmim.attacks.square",
        "robustmim.attacks.spsa",
        "robustmim.attacks.joint",
        "robustmim.attacks.ensemble",
        "robustmim.attacks.features",
        "robustmim.attacks.mutual_information",
        "robustmim.attacks.transfer",
        "robustmim.attacks.rays",
        "robustmim.attacks.carlini_wagner",
        "robustmim.attacks.deepfool",
        "robustmim.attacks.low_frequency",
    ),
    "method": ("robustmim.train.methods", "robustmim.train.free", "robustmim.train.generalist"),
    "data": ("robustmim.data.official", "robustmim.data.samples"),
}
_REGISTERED: dict[tuple[str, str], Callable[..., Any]] = {}
_LOADED: set[str] = set()
Builder = TypeVar("Builder", bound=Callable[..., Any])


def register(kind: Kind, name: str) -> Callable[[Builder], Builder]:
    """Register a class or function under a name: `@register("classifier", "my-net")`.

    Its keyword arguments are the options a recipe may set.

    Raises:
        ValueError: the name is taken by something else.
    """

    def add(builder: Builder) -> Builder:
        taken = _REGISTERED.get((kind, name))
        if taken is not None and (taken.__module__, taken.__qualname__) != (builder.__module__, builder.__qualname__):
            raise ValueError(f"the {kind} name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        _REGISTERED[kind, name] = builder
        return builder

    return add


def _load(kind: Kind) -> None:
    if kind in _LOADED:
        return
    _LOADED.add(kind)
    for home in _HOMES[kind]:
        importlib.import_module(home)
    if "plugins" not in _LOADED:
        _LOADED.add("plugins")
        for plugin in entry_points(group="robustmim.plugins"):
            plugin.load()


def names(kind: Kind) -> list[str]:
    """List the registered names of a kind, in alphabetical order."""
    _load(kind)
    return sorted(name for k, name in _REGISTERED if k == kind)


def builder(kind: Kind, name: str) -> Callable[..., Any]:
    """Return the registered class or function.

    Raises:
        RecipeError: no such name; the message gives the nearest one.
    """
    _load(kind)
    if (kind, name) not in _REGISTERED:
        raise RecipeError(f"there is no {kind} called {name!r}. {suggest(name, names(kind))}")
    return _REGISTERED[kind, name]


def _tuples(value: Any) -> Any:
    # YAML and JSON have only lists; constructors take tuples.
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("a word", (str,)),
    NoneType: ("null", (NoneType,)),
}
"""Type of an option → what it is called, and the types of the values that it takes."""


def _choices(hint: Any) -> Iterator[Any]:
    """Yield the types that a union is made of."""
    if get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _choices(one)
    else:
        yield hint


def _fits(value: Any, hint: Any) -> bool:
    """Say whether an option of a type may have a value; of types that no YAML can hold, nothing is said."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inside)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        hints = inside[:1] * len(value) if Ellipsis in inside else inside
        return len(hints) == len(value) and all(map(_fits, value, hints))
    if origin is dict:
        return isinstance(value, dict)
    if hint not in _PLAIN:
        return True
    # Python takes true for the number one.
    return isinstance(value, _PLAIN[hint][1]) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, inside))
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        return f"a list, each {_in_words(inside[0])}" if Ellipsis in inside else f"a list of {len(inside)}"
    if origin is dict:
        return "a mapping"
    return _PLAIN[hint][0] if hint in _PLAIN else str(hint)


def _check(what: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse options that do not exist, or whose values are not of their types.

    Raises:
        RecipeError: the message gives the nearest right name or value.
    """
    accepted = inspect.signature(make).parameters
    try:
        hints = get_type_hints(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
    except NameError:  # a plug-in's types may be there for its own checks alone
        hints = {}
    for option, value in options.items():
        if option not in accepted:
            raise RecipeError(f"{what} has no option {option!r}. {suggest(option, accepted)}")
        hint = hints.get(option, Any)
        if not _fits(value, hint):
            words = [one for choice in _choices(hint) if get_origin(choice) is Literal for one in get_args(choice)]
            near = f". {suggest(value, map(str, words))}" if words and isinstance(value, str) else ""
            raise RecipeError(f"{what}: option {option!r} is {_in_words(hint)}, not {value!r}{near}")


def build(kind: Kind, name: str, /, **options: Any) -> Any:
    """Build a registered thing from keyword options.

    Raises:
        RecipeError: no such name, an option it does not take, or a value that this option does not; the message gives the
            nearest one.
    """
    make = builder(kind, name)
    options = {option: _tuples(value) for option, value in options.items()}
    _check(f"{kind} {name!r}", make, options)
    try:
        return make(**options)
    except TypeError as error:
        raise RecipeError(f"{kind} {name!r} cannot be built from {options}: {error}") from error
