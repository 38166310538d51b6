"""`robustmim pretrain RECIPE`: train a masked model or a denoiser."""

from __future__ import annotations

from robustmim.cli.arguments import JobOptions
from robustmim.config import PretrainRecipe
from robustmim.recipe import parse


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("pretrain", PretrainRecipe, JobOptions, arguments)

    import torch

    from robustmim.cli.training import open_loader, open_source, run_training
    from robustmim.data.loader import Batches, Mixture, Replayed
    from robustmim.errors import RecipeError
    from robustmim.evaluate.accuracy import denoising_errors, masked_loss
    from robustmim.models.edm import Denoiser
    from robustmim.models.masked import MaskedModel
    from robustmim.models.zoo import copy_weights, saved_config
    from robustmim.registry import Kind, build, names
    from robustmim.train.distributed import world
    from robustmim.train.pretraining import pretraining_objective
    from robustmim.train.probe import PurificationProbe

    kind: Kind = "denoiser" if recipe.model.name in names("denoiser") else "masked-model"
    if kind == "denoiser" and recipe.probe.classifier is not None:
        raise RecipeError(f"{recipe.model.name} has no masks to be probed with: leave probe.classifier out")
    with world(options.device) as here:
        validation = open_source(recipe.validation, here.device)
        torch.manual_seed(recipe.run.seed)  # the initial weights; every later draw is keyed
        model = build(kind, recipe.model.name, **recipe.model.options).to(here.device)
        if recipe.start_from is not None:
            copy_weights(recipe.start_from, model)
        objective = pretraining_objective(recipe, model, processes=here.size)
        loaders = [
            open_loader(config, recipe.run, here, open_source(config, here.device))
            for config in (recipe.data, *recipe.mixture)
        ]
        batches: Batches = Mixture(loaders) if len(loaders) > 1 else loaders[0]
        wants_probe = recipe.probe.classifier is not None and here.leads and not options.dry_run
        probe = PurificationProbe(recipe.probe, device=here.device, seed=recipe.run.seed) if wants_probe else None

        def evaluate(trained: torch.nn.Module) -> dict[str, float]:
            if isinstance(trained, Denoiser) and not isinstance(trained, MaskedModel):
                errors = denoising_errors(
                    trained, validation, config=recipe.denoising, seed=recipe.run.seed, device=here.device
                )
                return {"denoising_loss": float(errors.mean())}
            assert isinstance(trained, MaskedModel)
            loss = masked_loss(
                trained, validation, ratio=recipe.validation_ratio, seed=recipe.run.seed, device=here.device
            )
            return {"masked_loss": loss} | (probe(trained) if probe else {})

        return run_training(
            kind="pretrain",
            name=name,
            recipe=recipe,
            options=options,
            here=here,
            model=model,
            objective=objective,
            batches=batches if recipe.free is None else Replayed(batches, recipe.free.replays),
            evaluate=evaluate,
            saved_config=saved_config(kind, recipe.model),
        )
