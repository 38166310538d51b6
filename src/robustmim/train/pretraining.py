"""Masked pre-training: plain (He et al. 2022), adversarial, and MIMIR, which also penalises what the encoding tells.

One objective does all three, by what it is given; its free variant takes the attack's gradient from the training step.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from robustmim.config import FreeAttackConfig, InformationConfig, MaskedAttackConfig, PretrainRecipe, RunConfig
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.geometry import Ball
from robustmim.information.estimators import estimator
from robustmim.models.edm import Denoiser
from robustmim.models.masked import Counted, EncoderModel, MaskedModel, device_of, freeze
from robustmim.models.masked_denoiser import MaskedDiffusion
from robustmim.models.masking import check_scales, enlarge, in_turn, random_mask
from robustmim.models.zoo import open_classifier
from robustmim.rng import Keys
from robustmim.train.bridge import BridgeTraining
from robustmim.train.denoising import Denoising, MaskedDenoising
from robustmim.train.distributed import gathered
from robustmim.train.masked_attack import attack_reconstruction, reconstruction
from robustmim.train.objectives import Objective
from robustmim.train.perturbed_noise import PerturbedNoiseTraining
from robustmim.types import Images, Mask, PerSample, Tokens

NoiseLaw = Literal["uniform", "constant", "gamma"]


class InformationTerm:
    """How much the encodings of a batch tell of its images: I(x; z) of MIMIR's Eq. 8, by any estimator.

    Args:
        config: what is measured, and how.

    Raises:
        RecipeError: no such estimator, or an option it does not take.
    """

    def __init__(self, config: InformationConfig) -> None:
        self.config = config
        self._estimate = estimator(config.estimator, **config.options)

    def __call__(self, *, clean: Images, seen: Images, mask: Mask, tokens: Tokens, patch_size: int) -> Tensor:
        """Return the estimate, a scalar; differentiable in the tokens.

        Args:
            clean: images without the attack.
            seen: images as the encoder gets them.
            mask: what it does not see of them.
            tokens: its tokens, class token first.
            patch_size: pixels on a side of a cell of the mask.
        """
        match self.config.x:
            case "attacked":
                x = seen
            case "clean":
                x = clean
            case "perturbation":
                x = seen - clean
            case "visible":
                x = seen * ~enlarge(mask, patch_size)
        match self.config.z:
            case "tokens":
                z: Tensor = tokens
            case "mean":
                z = tokens[:, 1:].mean(1)
            case "class":
                z = tokens[:, 0]
        x, z = x.detach().flatten(1), z.flatten(1)
        if self.config.batch == "global":
            x, z = gathered(x), gathered(z)
        if self.config.pairing == "other":
            x = x.roll(1, dims=0)
        group = self.config.group or len(x)
        with torch.autocast(x.device.type, enabled=False):
            parts = [self._estimate(a, b) for a, b in zip(x.split(group), z.split(group), strict=True)]
        return torch.stack(parts).mean()


def _loss(
    model: nn.Module,
    clean: Images,
    seen: Images,
    mask: Mask,
    loss_over: Counted,
    information: InformationTerm | None,
) -> dict[str, Tensor]:
    """Return MIMIR's Eq. 8, or its first term alone: reconstruct the clean image from what is seen, plus the penalty."""
    layer = None if information is None else information.config.layer
    found = reconstruction(model, seen, mask, target=clean, loss_over=loss_over, need_tokens=layer)
    mean = found.loss.mean()
    if information is None:
        return {"loss": mean}
    assert found.tokens is not None
    patch_size = cast(MaskedModel, model).patch_size
    estimate = information(clean=clean, seen=seen, mask=mask, tokens=found.tokens, patch_size=patch_size)
    return {"loss": mean + information.config.weight * estimate, "reconstruction": mean, "information": estimate}


def noise_deviations(keys: Keys, scale: float, law: NoiseLaw) -> PerSample:
    """Draw a deviation for each sample: uniform from 0 to `scale`, `scale` itself, or gamma of shape 25 with that mean."""
    if law == "constant":
        return torch.full((len(keys),), scale, device=keys.values.device)
    if law == "uniform":
        return keys.uniform(1)[:, 0] * scale
    # A gamma variable of whole shape k is the sum of k exponential ones.
    return -torch.log1p(-keys.uniform(25)).mean(1) * scale


class MaskedPretraining:
    """Mean squared error of the patches under fresh masks, of images as they are, noisy, or attacked.

    Args:
        ratios: fractions hidden, taken in turns, step by step.
        input_noise: largest deviation of Gaussian noise on the visible part; each sample draws its own from zero up. The
            target stays clean.
        noise_law: how a sample draws its deviation instead; see `PretrainRecipe.noise_law`.
        loss_over: which patches count.
        attack: on what the network sees; its target stays clean.
        information: penalty; the model is then an `EncoderModel`.
        scales: of the masks, taken in turns as well, once all ratios have had theirs.
    """

    def __init__(
        self,
        ratios: tuple[float, ...],
        input_noise: float = 0.0,
        *,
        noise_law: NoiseLaw = "uniform",
        loss_over: Counted = "hidden",
        attack: MaskedAttackConfig | None = None,
        information: InformationTerm | None = None,
        scales: tuple[int, ...] = (1,),
    ) -> None:
        self.scales = scales
        self.ratios, self.input_noise, self.noise_law, self.loss_over = ratios, input_noise, noise_law, loss_over
        self.attack, self.information = attack, information

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch."""
        ratio, scale = in_turn(self.ratios, self.scales, step)
        clean = batch.images
        grid = cast(MaskedModel, model).grid(*clean.shape[-2:])
        if ratio:
            mask = random_mask(keys.fold("mask"), grid, ratio, scale)
        else:
            mask = torch.zeros(len(clean), *grid, dtype=torch.bool, device=clean.device)
        seen = clean
        if self.input_noise:
            drawn = keys.fold("noise")
            deviation = noise_deviations(drawn.fold("deviation"), self.input_noise, self.noise_law).view(-1, 1, 1, 1)
            seen = seen + deviation * drawn.normal(*seen.shape[1:])
            seen = seen.clamp(0, 1) if self.noise_law == "uniform" else seen
        if self.attack is not None:
            seen = attack_reconstruction(
                model, clean, mask, keys, self.attack, ratio=ratio, scale=scale, loss_over=self.loss_over
            )
        return _loss(model, clean, seen, mask, self.loss_over, self.information)


class FreeMaskedPretraining:
    """Adversarial pre-training that costs what plain pre-training costs (after Shafahi et al. 2019); see `FreeAttackConfig`.

    The image is a leaf of the training step, whose backward pass leaves the gradient of the whole loss in it; the next step
    on the same batch moves along it. The perturbation is thus one step of the weights old. Batches must come from
    `robustmim.data.loader.Replayed`, and each call must be followed by a backward pass.

    Args:
        ratios: fractions hidden, batch by batch.
        attack: the ball, the step, the replays.
        loss_over, information, scales: as for `MaskedPretraining`.
    """

    def __init__(
        self,
        ratios: tuple[float, ...],
        attack: FreeAttackConfig,
        *,
        loss_over: Counted = "hidden",
        information: InformationTerm | None = None,
        scales: tuple[int, ...] = (1,),
    ) -> None:
        self.ratios, self.scales = ratios, scales
        self.attack, self.loss_over, self.information = attack, loss_over, information
        self._ball = Ball(norm=attack.norm, eps=attack.radius)
        self._last: tuple[Images, Mask] | None = None

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch."""
        turn, replay = divmod(step, self.attack.replays)
        clean = batch.images
        if self._last is None or replay == 0:
            seen, mask = self._ball.random(clean, keys.fold("attack start")), None
        else:
            before, mask = self._last
            assert before.grad is not None, "a backward pass must follow each step"
            # A step that was skipped because its gradient was not a number leaves the image where it was.
            ahead = self.attack.step_size * self._ball.steepest(before.grad.nan_to_num(0, 0, 0))
            seen = self._ball.project(before.detach() + ahead, clean)
        if mask is None or self.attack.mask == "fresh":
            grid = cast(MaskedModel, model).grid(*clean.shape[-2:])
            mask = random_mask(keys.fold("mask"), grid, *in_turn(self.ratios, self.scales, turn))
        seen = seen.detach().requires_grad_(True)
        self._last = seen, mask
        return _loss(model, clean, seen, mask, self.loss_over, self.information)


def _adversarial_denoising(recipe: PretrainRecipe, model: nn.Module) -> Objective:
    bridge, perturbed = recipe.bridge, recipe.perturbed_noise
    if bridge is not None and perturbed is not None:
        raise RecipeError("`bridge` and `perturbed_noise` exclude each other: choose ADBM or ADDT")
    if not isinstance(model, Denoiser) or isinstance(model, MaskedDiffusion):
        raise RecipeError(f"`bridge` and `perturbed_noise` train a denoiser, such as unet; {recipe.model.name} is none")
    if recipe.attack is not None or recipe.free is not None or recipe.input_noise or any(recipe.mask_ratios):
        raise RecipeError("`bridge` and `perturbed_noise` go with no other attack, no input_noise and mask_ratios [0]")
    chosen = bridge or perturbed
    assert chosen is not None
    if chosen.steps < 1:
        raise RecipeError(f"the classifier's slope is taken at least once, not {chosen.steps} times")
    classifier = freeze(open_classifier(chosen.classifier, chosen.arch, device=device_of(model)))
    if bridge is not None:
        return BridgeTraining(classifier, bridge)
    assert perturbed is not None
    return PerturbedNoiseTraining(classifier, perturbed)


def _check_groups(information: InformationConfig, run: RunConfig, processes: int) -> None:
    """Refuse to measure dependence over other samples than a recipe says: a process holds one part of its share at a time."""
    parts, group, together = run.accumulate, information.group, information.batch == "global"
    if parts > 1 and (together or group is None):
        raise RecipeError(
            f"run.accumulate is {parts}, and the information term would be over parts of a batch: set it to 1, or say which "
            "samples belong together by information.batch: process and information.group"
        )
    size = run.batch_size if together else run.batch_size // processes // parts
    if group is not None and (group < 2 or size % group):
        raise RecipeError(
            f"information.group is {group}, which does not divide the {size} images that the term is taken over into groups"
        )


def pretraining_objective(recipe: PretrainRecipe, model: nn.Module, *, processes: int = 1) -> Objective:
    """Return what a recipe minimises.

    Args:
        recipe: what to train, and how.
        model: what is trained.
        processes: that share each batch.

    Raises:
        RecipeError: settings that exclude each other, or that the model cannot serve.
    """
    attack, free, information = recipe.attack, recipe.free, recipe.information
    check_scales(recipe.mask_scales)
    if recipe.bridge is not None or recipe.perturbed_noise is not None:
        return _adversarial_denoising(recipe, model)
    if isinstance(model, Denoiser):
        if attack is not None or free is not None or recipe.input_noise:
            raise RecipeError(f"{recipe.model.name} is trained to denoise: leave attack, free and input_noise out")
        if isinstance(model, MaskedDiffusion):
            return MaskedDenoising(recipe.mask_ratios, recipe.denoising, recipe.mask_scales)
        if any(recipe.mask_ratios):
            raise RecipeError(f"{recipe.model.name} has no masks: set mask_ratios to [0]")
        return Denoising(recipe.denoising)
    if attack is not None and free is not None:
        raise RecipeError("`attack` and `free` exclude each other: choose the attack, or the free variant of it")
    if recipe.input_noise and (attack is not None or free is not None):
        raise RecipeError("`input_noise` and an attack exclude each other")
    if 0 in recipe.mask_ratios and (recipe.loss_over != "all" or attack is not None or free is not None):
        raise RecipeError("mask_ratios: 0 hides nothing, and so asks for loss_over: all, without an attack")
    if free is not None and free.replays < 2:
        raise RecipeError(f"free.replays is {free.replays}, but a gradient can only be reused in a second step")
    if attack is not None and attack.steps < 1:
        raise RecipeError(f"attack.steps is {attack.steps}; for no attack, leave `attack` out")
    if attack is not None and attack.mask_ratio is not None and attack.mask == "shared":
        raise RecipeError(
            "attack.mask_ratio is of fresh masks, but the attack shares the step's: set attack.mask to fresh"
        )
    if information is not None and information.x == "perturbation" and attack is None and free is None:
        raise RecipeError("information.x is the perturbation, but nothing is perturbed: set `attack` or `free`")
    looks_inside = {
        "loss_over: all": recipe.loss_over == "all",
        "information": information is not None,
        "attack.target: latent": attack is not None and attack.target == "latent",
        "attack.units: pixels": attack is not None and attack.units == "pixels",
    }
    for name, asked in looks_inside.items():
        if asked and not isinstance(model, EncoderModel):
            raise RecipeError(f"{name} needs a model with an encoder, such as mae; {recipe.model.name} has none")
    if information is not None and not 0 <= information.layer <= cast(EncoderModel, model).depth:
        raise RecipeError(
            f"information.layer is {information.layer}, but the encoder has {cast(EncoderModel, model).depth} blocks"
        )
    if information is not None:
        _check_groups(information, recipe.run, processes)
    term = None if information is None else InformationTerm(information)
    if free is not None:
        return FreeMaskedPretraining(
            recipe.mask_ratios, free, loss_over=recipe.loss_over, information=term, scales=recipe.mask_scales
        )
    return MaskedPretraining(
        recipe.mask_ratios,
        recipe.input_noise,
        noise_law=recipe.noise_law,
        loss_over=recipe.loss_over,
        attack=attack,
        information=term,
        scales=recipe.mask_scales,
    )
