"""Generalist (Wang and Wang 2023): one learner for attacked images, one for clean ones, and the mean of their weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.data.loader import Batch
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.train.attack import TrainingAttack
from robustmim.train.methods import worst_cross_entropy
from robustmim.train.objectives import Training, accuracy, passed
from robustmim.types import Images


class TwoLearners(nn.Module):
    """Two copies of a network that learn, and their mixture, which answers.

    Args:
        model: both begin with its weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.robust = model
        self.natural = copy.deepcopy(model)
        self.mixed = copy.deepcopy(model).requires_grad_(False)

    def forward(self, x: Images) -> Float[Tensor, "batch classes"]:
        """Return the logits of the mixture."""
        return self.mixed(x)

    @torch.no_grad()
    def mix(self, robust_share: float, decay: float) -> None:
        """Move the mixture: θ_g ← α θ_g + (1 − α) (γ θ_r + (1 − γ) θ_n), batch norm's averages included.

        Args:
            robust_share: γ.
            decay: α.
        """
        robust, natural = self.robust.state_dict(), self.natural.state_dict()
        for name, value in self.mixed.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(torch.lerp(natural[name], robust[name], robust_share), 1 - decay)
            else:
                value.copy_(robust[name])

    def communicate(self) -> None:
        """Let both learners go on from the mixture."""
        for learner in (self.robust, self.natural):
            learner.load_state_dict(self.mixed.state_dict())


@register("method", "generalist")
@dataclass(frozen=True, kw_only=True)
class Generalist:
    """min CE(f_r(x′), y) + CE(f_n(x), y), each over its own weights, which meet in a mixture (their Algorithm 1).

    The learners share nothing in a step, so one optimiser serves both; a clipped gradient is that of both together. The
    model is a `TwoLearners`, of which the mixture is evaluated and saved.

    Attributes:
        attack: on the robust learner.
        smoothing: of the labels.
        decay: of the mixture, α; the first steps are forgotten faster.
        robust_share: γ, the robust learner's weight in what is mixed in, at the end of the run.
        mix_from: fraction of the run until which γ is one; from there it falls linearly.
        communicate_from: fraction of the run from which the learners are reset to the mixture now and then.
        communicate_every: after each so many epochs. (The authors' code resets them after every step of such an epoch.)
    """

    attack: TrainingAttack
    smoothing: float = 0.0
    decay: float = 0.999
    robust_share: float = 0.4
    mix_from: float = 2 / 3
    communicate_from: float = 0.625
    communicate_every: int = 5
    default: ClassVar[TrainingAttack] = TrainingAttack(step_size=0.007 / 0.031)

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return the sum of both losses, the robust learner's accuracy on attacked and the other's on clean images."""
        pair = cast(TwoLearners, model)
        attacked = worst_cross_entropy(pair.robust, batch, self.attack, keys)
        robust = passed(pair.robust, attacked, keys.fold("attacked"))
        natural = passed(pair.natural, batch.images, keys.fold("clean"))
        loss = sum(F.cross_entropy(logits, batch.goal, label_smoothing=self.smoothing) for logits in (robust, natural))
        return {
            "loss": cast(Tensor, loss),
            "accuracy": accuracy(robust, batch),
            "clean_accuracy": accuracy(natural, batch),
        }

    def share_at(self, progress: float) -> float:
        """Return γ at a fraction of the run."""
        fallen = (progress - self.mix_from) / max(1 - self.mix_from, 1e-9)
        return 1 - (1 - self.robust_share) * min(max(fallen, 0.0), 1.0)

    def after_step(self, training: Training) -> bool:
        """Mix, and let the learners go on from the mixture where it is time."""
        pair = cast(TwoLearners, training.model)
        step, progress = training.step, training.step / training.total
        pair.mix(self.share_at(progress), min(self.decay, (1 + step) / (10 + step)))
        epoch, rest = divmod(step, training.steps_per_epoch)
        if rest == 0 and epoch % self.communicate_every == 0 and progress >= self.communicate_from:
            pair.communicate()
        return False
