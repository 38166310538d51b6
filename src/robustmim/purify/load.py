"""Purifiers from recipes."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from robustmim.config import AMRMConfig, BaselineConfig, DenoiserConfig, PurifyRecipe
from robustmim.errors import CheckpointError, RecipeError
from robustmim.models.edm import Denoiser
from robustmim.models.masked import MaskedModel
from robustmim.models.masked_denoiser import MaskedDenoiser, MaskedDiffusion
from robustmim.models.zoo import load_model, open_classifier
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.diffusion import DiffusionPurifier
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.traits import Purifier
from robustmim.radius import radius_text
from robustmim.recipe import load_recipe
from robustmim.registry import build, builder

DEFENDED = "defended"
"""What a recipe calls the classifier that is defended, whichever that will be."""


def _classifier(name: str, defended: nn.Module | None, device: torch.device | str) -> nn.Module:
    if name != DEFENDED:
        return open_classifier(name, device=device)
    if defended is None:
        raise RecipeError(
            "this purifier asks the classifier that it defends, and there is none here: name one (--classifier, or the "
            f"argument `classifier`), or put another's name in the place of {DEFENDED!r} in its recipe"
        )
    return defended


def make_baseline(
    config: BaselineConfig, *, device: torch.device | str = "cpu", classifier: nn.Module | None = None
) -> Purifier:
    """Build a registered purifier; one that uses a network is given it as its option `model`.

    One that also asks a classifier is told it by name, as the option `classifier`. Where the name is "defended", it is the
    classifier that the purifier will stand in front of.

    Raises:
        RecipeError: no such purifier, an option it does not take, or a network that is missing or not wanted.
        CheckpointError: its network cannot be loaded.
    """
    accepted = inspect.signature(builder("purifier", config.name)).parameters
    wanted = "model" in accepted
    if wanted != (config.model is not None):
        raise RecipeError(
            f"the purifier {config.name} {'needs a network: give its name or folder' if wanted else 'uses no network: leave it out'}"
            ", baseline.model"
        )
    options = dict(config.options)
    if config.model == DEFENDED:
        options["model"] = _classifier(DEFENDED, classifier, device)
    elif config.model is not None:
        options["model"] = load_model(config.model, device=device)
    if "classifier" in accepted and isinstance(options.get("classifier"), str):
        options["classifier"] = _classifier(options["classifier"], classifier, device)
    purifier: Purifier = build("purifier", config.name, **options)
    return purifier


def make_purifier(
    recipe: PurifyRecipe, *, device: torch.device | str = "cpu", classifier: nn.Module | None = None
) -> Purifier:
    """Build the purifier of a recipe.

    Args:
        recipe: which purifier, with its settings.
        device: where its networks go.
        classifier: the one that it will defend, for purifiers that ask it (COUP, SOAP).

    Raises:
        RecipeError: a recipe without a model or of two purifiers, or a baseline with mistakes.
        CheckpointError: the masked model is not there, damaged, or none; or diffusion is asked of a model that has none.
    """
    if recipe.baseline is not None:
        return make_baseline(recipe.baseline, device=device, classifier=classifier)
    if not recipe.masked_model:
        raise RecipeError("a purifier needs a masked model: set masked_model to a name of the zoo or to a run's folder")
    if recipe.diffusion is not None and recipe.reconstruction is not None:
        raise RecipeError("diffusion and reconstruction are two purifiers: leave one of them out")
    if recipe.diffusion is not None:
        denoiser = load_model(recipe.masked_model, device=device)
        if not isinstance(denoiser, Denoiser):
            raise CheckpointError(f"{recipe.masked_model} is no diffusion model: it cannot take noise away")
        return DiffusionPurifier(denoiser, recipe.diffusion)
    model = load_model(recipe.masked_model, kind="masked-model", device=device)
    if isinstance(model, MaskedDiffusion):
        model = MaskedDenoiser(model, recipe.denoiser)
    if not isinstance(model, MaskedModel):
        raise CheckpointError(f"{recipe.masked_model} does not reconstruct from masks")
    if recipe.reconstruction is not None:
        return MaskedReconstruction(model, recipe.reconstruction)
    return AMRMPure(model, recipe.amrm)


def load_purifier(name: str, *, device: torch.device | str = "cpu", classifier: nn.Module | None = None) -> Purifier:
    """Build a purifier from a recipe: a YAML file, or the name of one that ships.

    Args:
        name: the file, or the name.
        device: where its networks go.
        classifier: the one that it will defend, for purifiers that ask it (COUP, SOAP).

    Raises:
        RecipeError: no such recipe, or one with mistakes.
        CheckpointError: its masked model cannot be loaded.
    """
    return make_purifier(load_recipe(PurifyRecipe, name), device=device, classifier=classifier)


def describe(recipe: PurifyRecipe) -> str:
    """Say in a line what a purifier does; choices of Algorithm 1 that are left at their plain form are not named."""
    if recipe.baseline is not None:
        baseline = recipe.baseline
        options = (f"{key} {value}" for key, value in baseline.options.items())
        return ", ".join([baseline.name, *([baseline.model] if baseline.model else []), *options])
    if recipe.reconstruction is not None:
        single = recipe.reconstruction
        hidden = f"mask {single.mask_ratio:g} {single.masks}" if single.mask_ratio else "nothing hidden"
        return f"masked reconstruction, {recipe.masked_model}, {hidden}, blend {single.blend:g}"
    if recipe.diffusion is not None:
        diffusion = recipe.diffusion
        spacing = "" if diffusion.spacing == "edm" else f", spacing {diffusion.spacing}"
        level = f"σ {diffusion.sigma:g}, {diffusion.steps} steps"
        return f"diffusion, {recipe.masked_model}, {level}, solver {diffusion.solver}{spacing}"
    config: AMRMConfig = recipe.amrm
    parts = [
        f"AMRM-Pure, {recipe.masked_model}",
        f"S {config.steps}",
        f"λ {radius_text(config.step_size)}" + (" cosine" if config.schedule == "cosine" else ""),
        f"η {radius_text(config.radius)}" + (" l2" if config.norm == "l2" else ""),
        f"mask {config.mask_ratio:g} {config.masks}" + (f" × {config.mask_average}" if config.mask_average > 1 else ""),
    ]
    if config.mask_scales != (1,):
        parts.append("scales " + " ".join(map(str, config.mask_scales)))
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
