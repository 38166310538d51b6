"""Purifiers from recipes."""

from __future__ import annotations

import torch

from robustmim.config import AMRMConfig, PurifyRecipe
from robustmim.errors import CheckpointError
from robustmim.models.masked import MaskedModel
from robustmim.models.zoo import load_model
from robustmim.purify.amrm import AMRMPure
from robustmim.radius import radius_text
from robustmim.recipe import load_recipe


def make_purifier(recipe: PurifyRecipe, *, device: torch.device | str = "cpu") -> AMRMPure:
    """Build the purifier of a recipe.

    Raises:
        CheckpointError: the masked model is not there, damaged, or none.
    """
    model = load_model(recipe.masked_model, kind="masked-model", device=device)
    if not isinstance(model, MaskedModel):
        raise CheckpointError(f"{recipe.masked_model} does not reconstruct from masks")
    return AMRMPure(model, recipe.amrm)


def load_purifier(name: str, *, device: torch.device | str = "cpu") -> AMRMPure:
    """Build a purifier from a recipe: a YAML file, or the name of one that ships.

    Raises:
        RecipeError: no such recipe, or one with mistakes.
        CheckpointError: its masked model cannot be loaded.
    """
    return make_purifier(load_recipe(PurifyRecipe, name), device=device)


def describe(recipe: PurifyRecipe) -> str:
    """Say in a line what a purifier does."""
    config: AMRMConfig = recipe.amrm
    return (
        f"AMRM-Pure, {recipe.masked_model}, S {config.steps}, λ {radius_text(config.step_size)}, "
        f"η {radius_text(config.radius)}, mask {config.mask_ratio:g} {config.masks}"
    )
