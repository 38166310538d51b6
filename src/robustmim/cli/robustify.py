"""`robustmim robustify RECIPE`: fine-tune a masked model through the purification and a classifier (RAMRM)."""

from __future__ import annotations

from robustmim.cli.arguments import JobOptions
from robustmim.config import RobustifyRecipe
from robustmim.recipe import parse


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("robustify", RobustifyRecipe, JobOptions, arguments)

    import torch

    from robustmim.cli.training import open_loader, open_source, run_training
    from robustmim.config import AttackConfig, EvaluateRecipe, GradientConfig
    from robustmim.errors import CheckpointError, RecipeError
    from robustmim.evaluate.accuracy import in_order
    from robustmim.evaluate.run import Evaluator
    from robustmim.models.guided_conv import open_guided
    from robustmim.models.masked import MaskedModel
    from robustmim.models.masked_denoiser import MaskedDenoiser, MaskedDiffusion
    from robustmim.models.zoo import about_model, load_model, open_classifier
    from robustmim.train.distributed import world
    from robustmim.train.robustify import Robustification, merge_low_rank

    if recipe.reconstruction is None and recipe.gradient.mode in ("identity", "exact"):
        raise RecipeError(
            f"through gradient mode {recipe.gradient.mode} no weight of the masked model has a gradient; "
            "set gradient.mode to tanh, rational, straight-through or normalised"
        )
    attack = {"attack": "pgd", "options": {"steps": 10}}
    measured = EvaluateRecipe(
        norm=recipe.norm,
        radii=(recipe.radius,),
        attacks=(
            AttackConfig(name="gray-box", against="classifier", **attack),  # type: ignore[arg-type]
            AttackConfig(name="white-box", gradient=GradientConfig(mode="tanh"), **attack),  # type: ignore[arg-type]
        ),
    )
    with world(options.device) as here:
        torch.manual_seed(
            recipe.run.seed
        )  # every draw is keyed; libraries that are not would at least repeat themselves
        model: torch.nn.Module
        if recipe.guide is not None:
            model, about = open_guided(recipe.masked_model, recipe.guide, device=here.device)
        else:
            model = load_model(recipe.masked_model, kind="masked-model", device=here.device)
            about = about_model(recipe.masked_model)
        masked = MaskedDenoiser(model, recipe.denoiser) if isinstance(model, MaskedDiffusion) else model
        if not isinstance(masked, MaskedModel):
            raise CheckpointError(f"{recipe.masked_model} does not reconstruct from masks")
        classifier = open_classifier(recipe.classifier, recipe.arch).to(here.device)
        validation = open_source(recipe.validation, here.device)
        objective = Robustification(masked, classifier, recipe)

        def evaluate(trained: torch.nn.Module) -> dict[str, float]:
            """Return accuracies on purified images: clean, gray box, and PGD-10 through the purification."""
            evaluator = Evaluator(classifier, objective.purifier, measured)
            right: dict[str, list[int]] = {}
            for batch in in_order(validation, 64, here.device):
                for records, _ in evaluator.evaluate(batch):
                    if records[0]["defence"] == "purified":
                        right.setdefault(records[0]["attack"], []).extend(record["right"] for record in records)
            names = {"none": "clean", "gray-box": "gray_box", "white-box": "white_box"}
            return {names[attack]: sum(found) / len(found) for attack, found in right.items()}

        return run_training(
            kind="robustify",
            name=name,
            recipe=recipe,
            options=options,
            here=here,
            model=model,
            objective=objective,
            batches=open_loader(recipe.data, recipe.run, here, open_source(recipe.data, here.device)),
            evaluate=evaluate,
            saved_config={key: about[key] for key in ("kind", "name", "options", "classes")},
            finish=merge_low_rank,
        )
