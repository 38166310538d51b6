"""Estimators by name, for recipes: `estimator("cka", unbiased=True)` gives a function of (x, z)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from robustmim.errors import RecipeError, suggest
from robustmim.information.cka import cka
from robustmim.information.hsic import hsic
from robustmim.information.hsic_cca import hsic_cca
from robustmim.information.kernels import Estimator, Width
from robustmim.information.renyi import renyi

ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "hsic": hsic,
    "unbiased-hsic": partial(hsic, unbiased=True),
    "hsic-cca": hsic_cca,
    "cka": cka,
    "kernel-cka": partial(cka, kernel="gaussian"),
    "renyi": renyi,
}
"""What there is. Only "unbiased-hsic" and the unbiased forms of CKA are near zero for independent samples."""


def estimator(name: str, **options: Any) -> Estimator:
    """Return an estimator of the dependence between two batches of paired samples.

    Args:
        name: one of `ESTIMATORS`.
        options: its keyword arguments; a width may be a dictionary, {"rule": "median", "value": 1.0}, as a recipe has it.

    Returns:
        A function (x `[B, …]`, z `[B, …]`) → scalar, differentiable in both.

    Raises:
        RecipeError: no such name or option; the message gives the nearest one.
    """
    if name not in ESTIMATORS:
        raise RecipeError(f"there is no estimator called {name!r}. {suggest(name, ESTIMATORS)}")
    function = ESTIMATORS[name]
    fixed = function.keywords if isinstance(function, partial) else {}
    known = [option for option in inspect.signature(function).parameters if option not in {"x", "z", *fixed}]
    for option in options:
        if option not in known:
            raise RecipeError(f"the estimator {name!r} has no option {option!r}. {suggest(option, known)}")
    return partial(function, **{option: _width(option, value) for option, value in options.items()})


def _width(option: str, value: Any) -> Any:
    if not option.endswith("width") or not isinstance(value, dict):
        return value
    try:
        return Width(**value)
    except TypeError as error:
        raise RecipeError(f"{option}: {value} is no width; give rule, value and neighbours") from error
