"""RAMRM (AMRM-Pure, appendix D.1): fine-tune a masked model through the purification and a classifier.

    min_θ  Σ L_C(P_θ(x'), y)                                                              (Eq. 7)

As printed Eq. 7 leaves out P_θ, and with the sign of Algorithm 1 its gradient in θ is zero (docs/paper-versus-code, A16, A17).
Here the classifier sees the purified image, and a smooth function's derivative stands for the sign's. The steps are walked
backwards (`robustmim.adjoint`), so that memory does not grow with their number.

A purification in one pass (`MaskedReconstruction`) is trained in the same way, ours: it has no sign and its gradient is exact,
so that the attack of training is as strong as the one that judges it. With a `teacher`, a slow purifier is distilled instead into
one of fewer steps or of one: min_θ Σ ‖P_θ(x') − P(x')‖², whose minimum is the mean of P over its draws.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustmim.config import RobustifyRecipe
from robustmim.data.loader import Batch
from robustmim.descent import projected_descent
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.models.folded import folded
from robustmim.models.masked import MaskedModel, device_of, freeze, with_draws
from robustmim.models.masking import random_mask
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.defended import Defended
from robustmim.purify.load import load_purifier
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.traits import Purifier
from robustmim.rng import Keys
from robustmim.rng import keys as keys_of
from robustmim.types import Images, Labels, PerSample

T = TypeVar("T")

DECODER = ("decoder", "mask_token", "up.", "told_up.", "head.")
"""How the names of a decoder's weights begin: those of transformers, then those of the masked convolution."""

GUIDE = "guide."
"""How the names of a guide's weights begin, which are never trained here."""


class _LowRank(nn.Module):
    """W + B A: a change of the weight of a given rank (Hu et al. 2022). B begins at zero."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight)


def _own(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Leave out what belongs to a guide."""
    return ((name, part) for name, part in named if not name.startswith(GUIDE))


def choose_weights(model: nn.Module, recipe: RobustifyRecipe) -> tuple[nn.Parameter, ...]:
    """Make the weights that a recipe trains trainable, all others not; return them.

    Raises:
        RecipeError: a model without a decoder whose decoder is to be trained.
    """
    freeze(model)
    if recipe.weights == "low-rank":
        generator = torch.Generator().manual_seed(recipe.run.seed)
        layers = [layer for _, layer in _own(model.named_modules()) if isinstance(layer, nn.Linear | nn.Conv2d)]
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", _LowRank(layer.weight, recipe.rank, generator))
        chosen = [factor for part in model.modules() if isinstance(part, _LowRank) for factor in part.parameters()]
    else:
        chosen = [
            weight
            for name, weight in _own(model.named_parameters())
            if recipe.weights == "all" or name.removeprefix("network.").startswith(DECODER)
        ]
    if not chosen:
        raise RecipeError(f"{recipe.masked_model} has no decoder to train; set weights to all or low-rank")
    for weight in chosen:
        weight.requires_grad_(True)
    return tuple(chosen)


def merge_low_rank(model: nn.Module) -> None:
    """Add low-rank changes to the weights they are changes of, so that the model is saved as it always is."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _purifier(model: MaskedModel, recipe: RobustifyRecipe) -> AMRMPure | MaskedReconstruction:
    if recipe.reconstruction is not None:
        return MaskedReconstruction(model, recipe.reconstruction)
    return AMRMPure(model, recipe.amrm)


class Robustification:
    """RAMRM's loss: of the classifier on purified images, and of reconstruction on clean ones as an anchor.

    With a teacher, the distance to its purified images instead of the classification; teacher and model draw differently.

    Args:
        model: the masked model, trained in place; what the recipe does not train is frozen.
        classifier: logits from [0, 1] images; frozen.
        recipe: attack, purification, which weights.

    Raises:
        RecipeError: a model without a decoder whose decoder is to be trained; a teacher's recipe that is not there; a
            temperature that is not above zero.
        CheckpointError: the teacher's model cannot be loaded.
    """

    def __init__(self, model: MaskedModel, classifier: nn.Module, recipe: RobustifyRecipe) -> None:
        if not recipe.temperature > 0:
            raise RecipeError(
                f"temperature: the logits are divided by it, so it is above zero, not {recipe.temperature:g}"
            )
        module = cast(nn.Module, model)
        self.classifier, self.recipe = folded(classifier), recipe
        at_start = _purifier(cast(MaskedModel, copy.deepcopy(module)), recipe) if recipe.examples == "static" else None
        self.purifier = _purifier(model, recipe)
        device = device_of(module)
        self.teacher = None if recipe.teacher is None else load_purifier(recipe.teacher, device=device)
        self.parameters = choose_weights(module, recipe)
        self._attacked: Purifier | None = {"gray-box": None, "static": at_start, "online": self.purifier}[
            recipe.examples
        ]

    def adversarial(self, x: Images, y: Labels, drawn: Keys, *, share: float = 1.0) -> Images:
        """Return attacked images: PGD from Gaussian noise, as in stage I (Eq. 6); `share` is that of the budget, in (0, 1]."""
        recipe = self.recipe
        ball = Ball(norm=recipe.norm, eps=recipe.radius * share)

        def loss(images: Images, step: int) -> PerSample:
            if self._attacked is None:
                return F.cross_entropy(self.classifier(images), y, reduction="none")
            defended = Defended(self._attacked, self.classifier, gradient=recipe.attack_gradient)
            return F.cross_entropy(defended(images, drawn.fold("attack", step)), y, reduction="none")

        noise = share * recipe.start_noise * drawn.fold("start").normal(*x.shape[1:]).to(x)
        return projected_descent(
            loss,
            x,
            ball,
            steps=recipe.attack_steps,
            step_size=lambda step: recipe.attack_step_size * ball.eps,
            maximise=True,
            start=ball.project(x + noise, x),
        ).last

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of a batch with its parts: "classification", "distance" to the teacher, "reconstruction", and the
        share of the ball used.

        What is attacked once and for all (static, gray-box) draws from the sample alone: the same noise in every epoch.
        """
        recipe = self.recipe
        x, y = batch.images, batch.labels
        clean = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        clean[: round(recipe.clean_share * len(x))] = True
        attacked = x.clone()
        if not clean.all():
            drawn = keys if recipe.examples == "online" else keys_of(recipe.run.seed, "static", batch.ids)
            share = min(1.0, (step + 1) / recipe.radius_warmup) if recipe.radius_warmup else 1.0
            attacked[~clean] = self.adversarial(x[~clean], y[~clean], drawn[~clean], share=share)
        drawn = keys.fold("purify")
        found: dict[str, Tensor] = {}
        if isinstance(self.purifier, AMRMPure):
            purified = self.purifier.differentiable(
                attacked, keys=drawn, gradient=recipe.gradient, parameters=self.parameters
            )
            moved = (purified.detach() - attacked.detach()).abs().flatten(1)
            # Where the ball clips, its exact derivative is zero and nothing is learnt.
            found["saturated"] = (moved > recipe.amrm.radius * (1 - 1e-4)).float().mean()
        else:
            purified = self.purifier.differentiable(attacked, keys=drawn, gradient=recipe.gradient)
        logits = self.classifier(purified)
        classification = F.cross_entropy(logits / recipe.temperature, y)
        found["classification"] = classification.detach()
        found["accuracy"] = (logits.argmax(1) == y).float().mean()
        loss = classification
        if self.teacher is not None:
            loss = F.mse_loss(purified, self.teacher(attacked, keys=keys.fold("teach")))
            found["distance"] = loss.detach()
        if recipe.anchor:
            reconstruction = self._reconstruction(x, purified, keys.fold("anchor"))
            found["reconstruction"] = reconstruction.detach()
            loss = loss + recipe.anchor * reconstruction
        return {"loss": loss, **found}

    def _reconstruction(self, x: Images, purified: Images, drawn: Keys) -> Tensor:
        """Return the masked loss of clean images; where nothing is hidden, how far the purified images are from them."""
        if not self.purifier.mask_ratio:
            return F.mse_loss(purified, x)
        mask = random_mask(drawn, self.purifier.model.grid(*x.shape[-2:]), self.purifier.mask_ratio)
        return with_draws(self.purifier.model, drawn).reconstruct(x.detach(), mask).loss.mean()
