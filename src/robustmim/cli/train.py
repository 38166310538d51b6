"""`robustmim train RECIPE`: train a classifier."""

from __future__ import annotations

from robustmim.cli.arguments import JobOptions
from robustmim.config import TrainRecipe
from robustmim.recipe import parse


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("train", TrainRecipe, JobOptions, arguments)

    import torch
    from torch import nn

    from robustmim.cli.training import open_loader, open_source, run_training
    from robustmim.evaluate.accuracy import attacked_accuracy, classifier_accuracy
    from robustmim.geometry import Ball
    from robustmim.models.fast_cnn import InitialisedFromData
    from robustmim.models.zoo import copy_weights, saved_config
    from robustmim.registry import build
    from robustmim.train.distributed import world
    from robustmim.train.objectives import AdversarialClassification, Classification

    with world(options.device) as here:
        source = open_source(recipe.data, here.device)
        validation = open_source(recipe.validation, here.device)
        torch.manual_seed(recipe.run.seed)  # the initial weights; every later draw is keyed
        model = build("classifier", recipe.model.name, **{"classes": len(source.classes)} | recipe.model.options)
        if recipe.start_from is not None:
            copy_weights(recipe.start_from, model)
        elif isinstance(model, InitialisedFromData):
            model.initialise_from(source.fetch(torch.arange(min(2000, len(source)))).cpu().float() / 255)
        model.to(here.device)
        adversarial = recipe.adversarial

        def evaluate(trained: nn.Module) -> dict[str, float]:
            found = {"accuracy": classifier_accuracy(trained, validation, device=here.device)}
            if adversarial is not None:
                ball = Ball(norm=adversarial.norm, eps=adversarial.radius)
                limit = adversarial.validation_images
                found["robust_accuracy"] = attacked_accuracy(trained, validation, ball, limit=limit, device=here.device)
            return found

        return run_training(
            kind="train",
            name=name,
            recipe=recipe,
            options=options,
            here=here,
            model=model,
            objective=AdversarialClassification(adversarial, recipe.label_smoothing)
            if adversarial is not None
            else Classification(recipe.label_smoothing),
            batches=open_loader(recipe.data, recipe.run, here, source),
            evaluate=evaluate,
            saved_config=saved_config("classifier", recipe.model, classes=source.classes),
        )
