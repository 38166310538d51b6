"""Purifiers from recipes."""

from __future__ import annotations

import torch

from robustmim.config import AMRMConfig, DenoiserConfig, PurifyRecipe
from robustmim.errors import CheckpointError
from robustmim.models.edm import Denoiser
from robustmim.models.masked import MaskedModel
from robustmim.models.masked_denoiser import MaskedDenoiser, MaskedDiffusion
from robustmim.models.zoo import load_model
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.radius import radius_text
from robustmim.recipe import load_recipe

RecipePurifier = AMRMPure | MaskedReconstruction | DiffusionPurifier


def make_purifier(recipe: PurifyRecipe, *, device: torch.device | str = "cpu") -> RecipePurifier:
    """Build the purifier of a recipe.

    Raises:
        CheckpointError: the masked model is not there, damaged, or none; or diffusion is asked of a model that has none.
    """
    model = load_model(recipe.masked_model, kind="masked-model", device=device)
    if recipe.diffusion is not None:
        if not isinstance(model, Denoiser):
            raise CheckpointError(f"{recipe.masked_model} is no diffusion model: it cannot take noise away")
        return DiffusionPurifier(model, recipe.diffusion)
    if isinstance(model, MaskedDiffusion):
        model = MaskedDenoiser(model, recipe.denoiser)
    if not isinstance(model, MaskedModel):
        raise CheckpointError(f"{recipe.masked_model} does not reconstruct from masks")
    if recipe.reconstruction is not None:
        return MaskedReconstruction(model, recipe.reconstruction)
    return AMRMPure(model, recipe.amrm)


def load_purifier(name: str, *, device: torch.device | str = "cpu") -> RecipePurifier:
    """Build a purifier from a recipe: a YAML file, or the name of one that ships.

    Raises:
        RecipeError: no such recipe, or one with mistakes.
        CheckpointError: its masked model cannot be loaded.
    """
    return make_purifier(load_recipe(PurifyRecipe, name), device=device)


def describe(recipe: PurifyRecipe) -> str:
    """Say in a line what a purifier does; choices of Algorithm 1 that are left at their plain form are not named."""
    if recipe.reconstruction is not None:
        single = recipe.reconstruction
        return f"masked reconstruction, {recipe.masked_model}, mask {single.mask_ratio:g}, blend {single.blend:g}"
    if recipe.diffusion is not None:
        diffusion = recipe.diffusion
        return f"diffusion, {recipe.masked_model}, σ {diffusion.sigma:g}, {diffusion.steps} steps, solver {diffusion.solver}"
    config: AMRMConfig = recipe.amrm
    parts = [
        f"AMRM-Pure, {recipe.masked_model}",
        f"S {config.steps}",
        f"λ {radius_text(config.step_size)}" + (" cosine" if config.schedule == "cosine" else ""),
        f"η {radius_text(config.radius)}" + (" l2" if config.norm == "l2" else ""),
        f"mask {config.mask_ratio:g} {config.masks}" + (f" × {config.mask_average}" if config.mask_average > 1 else ""),
    ]
    if config.schedule == "step" and config.decay != 1:
        parts.append(f"decay {config.decay:g}")
    if config.momentum:
        parts.append(f"momentum {config.momentum:g}")
    if config.gradient != "both":
        parts.append(f"gradient through the {config.gradient} only")
    if config.output != "last":
        parts.append(f"output {config.output}")
    if config.start_noise:
        parts.append(f"start noise {radius_text(config.start_noise)}")
    if recipe.denoiser != DenoiserConfig():
        parts.append(_describe_denoiser(recipe.denoiser))
    return ", ".join(parts)


def _describe_denoiser(config: DenoiserConfig) -> str:
    level = {
        "fixed": f"{config.sigma:g}",
        "log-normal": f"ln N({config.log_mean:g}, {config.log_deviation:g}²)",
        "descending": f"descending {config.sigma:g} to {config.final_sigma:g}",
    }[config.noise_level]
    return f"noise σ {level} {config.draws}, {config.loss} loss, {config.hidden_target} target"
