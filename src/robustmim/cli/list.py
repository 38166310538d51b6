"""`robustmim list [WHAT]`: what is registered and what ships."""

from __future__ import annotations

from robustmim.errors import RecipeError, suggest

WHAT = ("zoo", "recipes", "classifiers", "masked-models", "denoisers", "purifiers", "attacks", "methods", "data")


def main(arguments: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(arguments):
        print(
            f"usage: robustmim list [{'|'.join(WHAT)}]\n\nList what is registered and what ships; all of it by default."
        )
        return 0
    for word in arguments:
        if word not in WHAT:
            raise RecipeError(f"there is nothing called {word!r} to list. {suggest(word, WHAT)}")
    for what in arguments or WHAT:
        print(f"{what}:")
        entries = _entries(what)
        width = max((len(name) for name, _ in entries), default=0)
        for name, note in entries:
            print(f"  {name:<{width}}  {note}".rstrip())
    return 0


def _entries(what: str) -> list[tuple[str, str]]:
    if what == "recipes":
        from robustmim.recipe import recipe_names

        return [(name, path.parent.name) for name, path in recipe_names().items()]
    if what == "zoo":
        from robustmim.models.zoo import about_model, zoo_names

        return [(name, about_model(name).get("summary", "")) for name in zoo_names()]
    from robustmim.registry import Kind, names

    kinds: dict[str, Kind] = {
        "classifiers": "classifier",
        "masked-models": "masked-model",
        "denoisers": "denoiser",
        "purifiers": "purifier",
        "attacks": "attack",
        "methods": "method",
        "data": "data",
    }
    return [(name, "") for name in names(kinds[what])]
