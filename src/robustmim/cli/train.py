"""`robustmim train RECIPE`: train a classifier."""

from __future__ import annotations

from robustmim.cli.arguments import JobOptions
from robustmim.config import TrainRecipe
from robustmim.recipe import parse


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("train", TrainRecipe, JobOptions, arguments)

    import torch

    from robustmim.cli.training import open_loader, open_source, run_training
    from robustmim.evaluate.accuracy import classifier_accuracy
    from robustmim.models.fast_cnn import InitialisedFromData
    from robustmim.models.zoo import copy_weights, saved_config
    from robustmim.registry import build
    from robustmim.train.distributed import world
    from robustmim.train.objectives import Classification

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
        return run_training(
            kind="train",
            name=name,
            recipe=recipe,
            options=options,
            here=here,
            model=model,
            objective=Classification(recipe.label_smoothing),
            batches=open_loader(recipe.data, recipe.run, here, source),
            evaluate=lambda trained: {"accuracy": classifier_accuracy(trained, validation, device=here.device)},
            saved_config=saved_config("classifier", recipe.model, classes=source.classes),
        )
