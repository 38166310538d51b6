"""One place where names meet builders: models, classifiers, purifiers, attacks, data sets, and other people's plug-ins.

A plug-in package declares the entry point group `robustmim.plugins`; importing its module runs its `@register` lines.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

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
        "robustmim.models.efficientnet_lite",
        "robustmim.models.adapters",
    ),
    "masked-model": (
        "robustmim.models.mae",
        "robustmim.models.masked_conv",
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
        "robustmim.purify.baselines.nim",
        "robustmim.purify.baselines.dmae",
    ),
    "attack": (
        "robustmim.attacks.pgd",
        "robustmim.attacks.apgd",
        "robustmim.attacks.auto_attack",
        "robustmim.attacks.fab",
        "robustmim.attacks.square",
        "robustmim.attacks.joint",
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


def build(kind: Kind, name: str, /, **options: Any) -> Any:
    """Build a registered thing from keyword options.

    Raises:
        RecipeError: no such name, or an option it does not take; the message gives the nearest one.
    """
    make = builder(kind, name)
    accepted = inspect.signature(make).parameters
    for option in options:
        if option not in accepted:
            raise RecipeError(f"{kind} {name!r} has no option {option!r}. {suggest(option, accepted)}")
    try:
        return make(**{option: _tuples(value) for option, value in options.items()})
    except TypeError as error:
        raise RecipeError(f"{kind} {name!r} cannot be built from {options}: {error}") from error
