"""`robustmim train RECIPE`: train a classifier, or fine-tune a masked autoencoder's encoder into one."""

from __future__ import annotations

from robustmim.cli.arguments import JobOptions
from robustmim.config import TrainRecipe
from robustmim.recipe import parse


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("train", TrainRecipe, JobOptions, arguments)

    from torch import nn

    from robustmim.cli.training import open_generated, open_loader, open_source, run_training
    from robustmim.data.loader import Batches, Replayed
    from robustmim.evaluate.accuracy import attacked_accuracy, classifier_accuracy
    from robustmim.geometry import Ball
    from robustmim.models.zoo import saved_config
    from robustmim.train.classifier import make_classifier, make_objective
    from robustmim.train.distributed import world
    from robustmim.train.free import Free
    from robustmim.train.generalist import TwoLearners
    from robustmim.train.methods import attack_of

    with world(options.device) as here:
        source = open_source(recipe.data, here.device)
        validation = open_source(recipe.validation, here.device)
        model, built = make_classifier(recipe, source)
        model.to(here.device)
        objective = make_objective(recipe, source, here.device)
        batches: Batches = (
            open_loader(recipe.data, recipe.run, here, source)
            if recipe.generated is None
            else open_generated(recipe.generated, recipe.data, recipe.run, here, source)
        )
        if isinstance(objective, Free):
            batches = Replayed(batches, objective.replays)
        adversarial = recipe.adversarial

        def evaluate(trained: nn.Module) -> dict[str, float]:
            found = {"accuracy": classifier_accuracy(trained, validation, device=here.device)}
            if adversarial is not None:
                ball = Ball(norm=adversarial.norm, eps=adversarial.radius)
                limit, steps = adversarial.validation_images, adversarial.validation_steps
                found["robust_accuracy"] = attacked_accuracy(
                    trained, validation, ball, limit=limit, device=here.device, steps=steps
                )
            return found

        return run_training(
            kind="train",
            name=name,
            recipe=recipe,
            options=options,
            here=here,
            model=model,
            objective=objective,
            batches=batches,
            evaluate=evaluate,
            saved_config=saved_config("classifier", built, classes=source.classes),
            product=model.mixed if isinstance(model, TwoLearners) else None,
            about=None if adversarial is None else {"attack": attack_of(adversarial)},
        )
