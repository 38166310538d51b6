"""From a recipe to what is trained: the classifier, where its weights begin, and what is minimised."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from robustmim.config import ModelConfig, TrainRecipe
from robustmim.data.sources import Source
from robustmim.errors import RecipeError
from robustmim.evaluate.accuracy import attacked_accuracy
from robustmim.models.double_boundary import DoubleBoundary
from robustmim.models.encoder import load_encoder
from robustmim.models.fast_cnn import InitialisedFromData
from robustmim.models.zoo import about_model, copy_weights
from robustmim.registry import build
from robustmim.train.generalist import TwoLearners
from robustmim.train.guard import Guarded
from robustmim.train.methods import attack_of, make_method
from robustmim.train.objectives import Classification, Objective

_WHITENED_ON = 2000  # training images that a first layer is computed from


def make_classifier(recipe: TrainRecipe, source: Source) -> tuple[nn.Module, ModelConfig]:
    """Return the model, on the CPU, with the weights it begins with; and what builds its classifier again.

    Some methods wrap the classifier that the recipe names: DBAT doubles its classes, Generalist has two of it.

    Args:
        recipe: what to train.
        source: the training images.

    Raises:
        RecipeError: no such model, or an option it does not take.
        CheckpointError: `start_from` is not there or does not fit.
    """
    method = None if recipe.adversarial is None else recipe.adversarial.method
    built = recipe.model
    if method == "dbat" and built.name != "double-boundary":
        built = ModelConfig(name="double-boundary", options={"classifier": built.name, "options": built.options})
    torch.manual_seed(recipe.run.seed)  # the initial weights; every later draw is keyed
    model: nn.Module = build("classifier", built.name, **{"classes": len(source.classes)} | built.options)
    network = model.classifier if isinstance(model, DoubleBoundary) else model
    if recipe.start_from is not None and about_model(recipe.start_from)["kind"] == "masked-model":
        load_encoder(recipe.start_from, network, keep_norm=recipe.start_norm == "kept")
    elif recipe.start_from is not None:
        copy_weights(recipe.start_from, model)
    elif isinstance(network, InitialisedFromData):
        network.initialise_from(source.fetch(torch.arange(min(_WHITENED_ON, len(source)))).cpu().float() / 255)
    return (TwoLearners(model) if method == "generalist" else model), built


def make_objective(recipe: TrainRecipe, source: Source, device: torch.device) -> Objective:
    """Return what is minimised, guarded if the recipe says so or, unless it says otherwise, where the method needs it.

    Args:
        recipe: what to train, and how.
        source: the training images; a guard looks at the first of them.
        device: where the model is.

    Raises:
        RecipeError: no such method, an option it does not take, or a guard of a method that can have none.
    """
    config = recipe.adversarial
    if config is None:
        return Classification(recipe.label_smoothing)
    objective, attack, guard = make_method(config, recipe.label_smoothing), attack_of(config), config.guard
    action = guard.action or ("enlarge" if config.method == "fast" else "none")
    if action == "none":
        return objective
    if config.method in ("natural", "free", "generalist"):
        raise RecipeError(f"method {config.method} can have no guard; set adversarial.guard.action to none")
    levels = [objective]
    if action == "enlarge":
        for steps in (attack.steps + 1, attack.steps + 2):
            # As far in all, in more and shorter steps, from within the ball and back into it.
            more = replace(
                attack,
                steps=steps,
                step_size=attack.steps * attack.step_size / steps,
                start_noise=min(attack.start_noise, 1.0),
                project=True,
            )
            levels.append(make_method(config, recipe.label_smoothing, attack=more))

    def check(model: nn.Module) -> float:
        return attacked_accuracy(model, source, attack.ball, limit=guard.images, device=device, steps=guard.steps)

    return Guarded(levels, check, every=guard.every, drop=guard.drop)
