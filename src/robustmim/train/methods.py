"""Adversarial training methods: one file of objectives, so that a comparison compares methods and not optimisers.

Each is registered under its name, with its options as fields and, in `default`, the attack of its paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.attacks.apgd import APGDCrossEntropy
from robustmim.attacks.target import Target
from robustmim.config import AdversarialTrainingConfig
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.models.double_boundary import DoubleBoundary
from robustmim.models.vit import stochastic_depth
from robustmim.registry import build, builder, register
from robustmim.rng import Keys
from robustmim.train import losses
from robustmim.train.attack import TrainingAttack, attackable
from robustmim.train.losses import Doubled, Goal, Logits
from robustmim.train.objectives import Classification, Objective, accuracy, passed
from robustmim.types import Images, PerSample

Scores = Callable[[Images], Logits]


@register("method", "natural")
@dataclass(frozen=True, kw_only=True)
class Natural:
    """Cross-entropy on images as they are: min E CE(f(x), y)."""

    attack: TrainingAttack
    smoothing: float = 0.0
    default: ClassVar[TrainingAttack] = TrainingAttack(steps=0)

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy of the batch."""
        return Classification(self.smoothing)(model, batch, keys, step)


def worst_cross_entropy(model: nn.Module, batch: Batch, attack: TrainingAttack, keys: Keys) -> Images:
    """Return images of larger cross-entropy; the attacker's labels are never smoothed."""
    goal = batch.goal
    return attack(model, batch.images, lambda x: F.cross_entropy(model(x), goal, reduction="none"), keys)


@dataclass(frozen=True, kw_only=True)
class _OnAttacked:
    """Cross-entropy on attacked images: min E max CE(f(x′), y)."""

    attack: TrainingAttack
    smoothing: float = 0.0

    def attacked(self, model: nn.Module, batch: Batch, keys: Keys) -> Images:
        """Return adversarial images for the batch."""
        return worst_cross_entropy(model, batch, self.attack, keys)

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy on the attacked batch."""
        logits = passed(model, self.attacked(model, batch, keys), keys.fold("attacked"))
        loss = F.cross_entropy(logits, batch.goal, label_smoothing=self.smoothing)
        return {"loss": loss, "accuracy": accuracy(logits, batch)}


@register("method", "pgd-at")
class PGDTraining(_OnAttacked):
    """PGD adversarial training (Madry et al. 2018, Eq. 2.1)."""

    default: ClassVar[TrainingAttack] = TrainingAttack()


@register("method", "n-fgsm")
class NoiseFGSM(_OnAttacked):
    """One step from noise wider than the ball, without projection (N-FGSM, de Jorge et al. 2022)."""

    default: ClassVar[TrainingAttack] = TrainingAttack(
        steps=1, step_size=1.0, start_noise=2.0, project=False, statistics="batch"
    )


@register("method", "fast")
class FastTraining(_OnAttacked):
    """One long step from a random point of the ball (Fast AT or RS-FGSM, Wong et al. 2020); guarded unless told otherwise."""

    default: ClassVar[TrainingAttack] = TrainingAttack(steps=1, step_size=1.25, statistics="batch")


@register("method", "apgd-at")
class APGDTraining(_OnAttacked):
    """Few moves of Auto-PGD (Croce and Hein 2020), as for ImageNet in Singh et al. 2023: it finds its own step size.

    Mixed images are attacked for the label of their larger part.
    """

    default: ClassVar[TrainingAttack] = TrainingAttack(steps=2)

    def attacked(self, model: nn.Module, batch: Batch, keys: Keys) -> Images:
        """Return the images of largest cross-entropy that Auto-PGD has come by."""
        target = Target(scores=lambda x, keys, progress: model(x), keys=keys.fold("start"), drop=False)
        search = APGDCrossEntropy(steps=self.attack.steps + 1, drop=False)  # so many points; moves lie between them
        with attackable(model, self.attack.statistics):
            return search(target, batch.images, batch.likeliest, self.attack.ball)


@dataclass(frozen=True, kw_only=True)
class _OnBoth:
    """A loss of images as they are and attacked; a pass for each, so that batch norm sees them apart."""

    attack: TrainingAttack
    smoothing: float = 0.0

    def scores(self, model: nn.Module) -> Scores:
        """Return what gives the logits that the loss is of."""
        return model

    def aim(self, scores: Scores, batch: Batch, keys: Keys) -> Callable[[Logits], PerSample]:
        """Return what the attack climbs, a function of the logits of the images it tries."""
        raise NotImplementedError

    def loss(self, clean: Logits, attacked: Logits, goal: Goal) -> PerSample:
        """Return what is minimised."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the loss of the batch, and the accuracies on attacked and clean images."""
        scores = self.scores(model)
        with attackable(model, self.attack.statistics):
            climbed = self.aim(scores, batch, keys)
        attacked_images = self.attack(model, batch.images, lambda x: climbed(scores(x)), keys)
        with stochastic_depth(model, keys.fold("clean")):
            clean = scores(batch.images)
        with stochastic_depth(model, keys.fold("attacked")):
            attacked = scores(attacked_images)
        goal = self.goal(clean.shape[1], batch)
        classes = goal.shape[1]
        return {
            "loss": self.loss(clean, attacked, goal).mean(),
            "accuracy": accuracy(attacked, batch, classes),
            "clean_accuracy": accuracy(clean, batch, classes),
        }

    def goal(self, classes: int, batch: Batch) -> Goal:
        """Return the distribution over the classes that each image should have, for so many logits."""
        return losses.one_hot(batch.labels, classes) if batch.mixed is None else batch.mixed


@register("method", "trades")
@dataclass(frozen=True, kw_only=True)
class Trades(_OnBoth):
    """TRADES (Zhang et al. 2019): accuracy, and answers that an attack does not change; see `losses.trades`."""

    beta: float = 6.0
    default: ClassVar[TrainingAttack] = TrainingAttack(
        step_size=0.007 / 0.031, start="normal", start_noise=0.001 / 0.031
    )

    def aim(self, scores: Scores, batch: Batch, keys: Keys) -> Callable[[Logits], PerSample]:
        """Return the divergence from the answers to the images as they are."""
        before = scores(batch.images).detach()
        return lambda logits: losses.divergence(before, logits)

    def loss(self, clean: Logits, attacked: Logits, goal: Goal) -> PerSample:
        """Return the loss of each sample."""
        return losses.trades(clean, attacked, goal, beta=self.beta, smoothing=self.smoothing)


@register("method", "mart")
@dataclass(frozen=True, kw_only=True)
class Mart(_OnBoth):
    """MART (Wang et al. 2020): misclassified images weigh more; see `losses.mart`."""

    beta: float = 6.0
    default: ClassVar[TrainingAttack] = TrainingAttack(
        step_size=0.007 / 0.031, start="normal", start_noise=0.001 / 0.031
    )

    def aim(self, scores: Scores, batch: Batch, keys: Keys) -> Callable[[Logits], PerSample]:
        """Return the cross-entropy."""
        return lambda logits: F.cross_entropy(logits, batch.goal, reduction="none")

    def loss(self, clean: Logits, attacked: Logits, goal: Goal) -> PerSample:
        """Return the loss of each sample."""
        return losses.mart(clean, attacked, goal, beta=self.beta, smoothing=self.smoothing)


@register("method", "score")
@dataclass(frozen=True, kw_only=True)
class Score(_OnBoth):
    """TRADES with SCORE's squared distance (Pang et al. 2022), which the attack climbs too; see `losses.score`."""

    beta: float = 4.0
    default: ClassVar[TrainingAttack] = TrainingAttack()

    def aim(self, scores: Scores, batch: Batch, keys: Keys) -> Callable[[Logits], PerSample]:
        """Return the squared distance from the answers to the images as they are."""
        before = scores(batch.images).detach()
        return lambda logits: losses.squared_distance(before, logits)

    def loss(self, clean: Logits, attacked: Logits, goal: Goal) -> PerSample:
        """Return the loss of each sample."""
        return losses.score(clean, attacked, goal, beta=self.beta, smoothing=self.smoothing)


@register("method", "dbat")
@dataclass(frozen=True, kw_only=True)
class DoubleBoundaryTraining(_OnBoth):
    """DBAT (Levi and Kontorovich 2024): each class is two, of images as they are and attacked; see `losses.double_boundary`.

    The attack is targeted: towards one, drawn for each image, of the 2K − 2 classes that are neither y nor y + K. The model
    is a `DoubleBoundary`.
    """

    default: ClassVar[TrainingAttack] = TrainingAttack(step_size=0.125)

    def scores(self, model: nn.Module) -> Scores:
        """Return what gives the logits of all 2K classes."""
        return cast(DoubleBoundary, model).doubled

    def aim(self, scores: Scores, batch: Batch, keys: Keys) -> Callable[[Logits], PerSample]:
        """Return the log-probability of each image's target class."""
        drawn, label = keys.fold("target class").uniform(1)[:, 0], batch.likeliest

        def climbed(logits: Logits) -> PerSample:
            classes = logits.shape[1] // 2
            # Of the others in order: what is not below y moves up by one, and then what is not below y + K.
            other = (drawn * (2 * classes - 2)).long()
            other = other + (other >= label)
            other = other + (other >= label + classes)
            return -F.cross_entropy(logits, other, reduction="none")

        return climbed

    def goal(self, classes: int, batch: Batch) -> Goal:
        """Return the distribution over the K classes of 2K logits."""
        return super().goal(classes // 2, batch)

    def loss(self, clean: Doubled, attacked: Doubled, goal: Goal) -> PerSample:
        """Return the loss of each sample."""
        return losses.double_boundary(clean, attacked, goal, smoothing=self.smoothing)


def attack_of(config: AdversarialTrainingConfig) -> TrainingAttack:
    """Return the attack of a recipe: the method's own, with what the recipe says otherwise."""
    method = cast(Any, builder("method", config.method))
    return cast(TrainingAttack, method.default).configured(config)


def make_method(
    config: AdversarialTrainingConfig, smoothing: float, *, attack: TrainingAttack | None = None
) -> Objective:
    """Build the objective of a recipe.

    Args:
        config: the method, its options, its attack.
        smoothing: of the labels.
        attack: another attack than the recipe's.

    Raises:
        RecipeError: no such method, or an option it does not take.
    """
    if taken := {"attack", "smoothing"} & config.options.keys():
        raise RecipeError(
            f"{min(taken)!r} is no option of a method; set adversarial.steps and the like, or label_smoothing"
        )
    return cast(
        Objective,
        build("method", config.method, attack=attack or attack_of(config), smoothing=smoothing, **config.options),
    )
