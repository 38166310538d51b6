"""Options of registered things: names and values that do not exist are answered with the nearest that do."""

from __future__ import annotations

import pytest

from robustmim.config import EvaluateRecipe, RunConfig
from robustmim.errors import RecipeError
from robustmim.registry import build, register


@register("purifier", "test-of-options")
def options_of_all_kinds(
    *,
    count: int = 1,
    size: float = 1.0,
    flag: bool = False,
    word: str | None = None,
    sides: tuple[int, ...] = (),
    pair: tuple[int, float] = (1, 1.0),
    more: dict[str, int] | None = None,
):
    return count, size, flag, word, sides, pair, more


def test_values_of_their_types_are_taken_and_lists_become_tuples():
    found = build(
        "purifier",
        "test-of-options",
        count=2,
        size=3,
        flag=True,
        word="w",
        sides=[1, 2],
        pair=[1, 2],
        more={"a": 1},
    )
    assert found == (2, 3, True, "w", (1, 2), (1, 2), {"a": 1})
    assert build("purifier", "test-of-options", word=None)[3] is None


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("count", 1.5, "a whole number, not 1.5"),
        ("count", True, "a whole number, not True"),
        ("count", "3", "a whole number, not '3'"),
        ("size", "large", "a number, not 'large'"),
        ("size", None, "a number, not None"),
        ("flag", 1, "true or false, not 1"),
        ("word", 3, "a word or null, not 3"),
        ("sides", 3, "a list, each a whole number, not 3"),
        ("sides", [1, 2.5], "each a whole number"),
        ("pair", [1], "a list of 2"),
        ("more", [1], "a mapping or null"),
    ],
)
def test_values_of_other_types_are_refused(option, value, says):
    with pytest.raises(RecipeError, match=f"'test-of-options': option '{option}' is .*{says}"):
        build("purifier", "test-of-options", **{option: value})


def test_choices_are_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"is 'constant' or 'cosine', not 'cosin'\. Did you mean 'cosine'"):
        build("attack", "pgd", schedule="cosin")
    assert build("attack", "pgd", schedule="cosine", step_size=1).steps == 20
    with pytest.raises(RecipeError, match="'transfer': option 'options' is a mapping or null"):
        build("attack", "transfer", surrogate="fast-cnn-cifar10", options=3)


def test_runs_of_nothing_are_refused():
    for options, says in (
        ({"epochs": -1}, "epochs are above 0"),
        ({"batch_size": 0}, "batch_size is at least 1, not 0"),
    ):
        with pytest.raises(RecipeError, match=says):
            RunConfig(**options)
    with pytest.raises(RecipeError, match="batch_size is at least 1, not 0"):
        EvaluateRecipe(batch_size=0)
