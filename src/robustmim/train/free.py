"""Free adversarial training (Shafahi et al. 2019): the weights' backward pass gives the image's gradient too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.train.attack import TrainingAttack
from robustmim.train.objectives import accuracy, passed
from robustmim.types import Images


@register("method", "free")
@dataclass(kw_only=True, eq=False)
class Free:
    """Each batch is trained on several times in a row (Shafahi et al. 2019, Algorithm 1), every time a step further attacked.

    The image is a leaf of the training step; the next replay moves along the gradient that the step has left in it. Batches
    must come from `robustmim.data.loader.Replayed`, and each call must be followed by a backward pass. The perturbation
    begins at a random point for each batch, where the paper keeps the last batch's, of other images: so a run that is
    resumed between batches goes on to the same weights.

    Attributes:
        attack: ball and step.
        smoothing: of the labels.
        replays: m; an epoch has so many times more steps, so divide the epochs by it.
    """

    attack: TrainingAttack
    smoothing: float = 0.0
    replays: int = 8
    default: ClassVar[TrainingAttack] = TrainingAttack(steps=1, step_size=1.0, statistics="batch")
    _last: Images | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.replays < 2:
            raise RecipeError(f"replays is {self.replays}, but a gradient can only be reused in a second step")
        if self.attack.steps != 1:
            raise RecipeError("free training takes one step in each replay: leave `steps` out, and set replays instead")

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return loss and accuracy of the batch as it is attacked by now."""
        ball = self.attack.ball
        if self._last is None or step % self.replays == 0:
            seen = ball.project(self.attack.begin(batch.images, keys.fold("start")), batch.images)
        else:
            gradient = self._last.grad
            assert gradient is not None, "a backward pass must follow each step"
            # A step that was skipped because its gradient was not a number leaves the image where it was.
            ahead = self.attack.step_size * ball.eps * ball.steepest(gradient.nan_to_num(0, 0, 0))
            seen = ball.project(self._last.detach() + ahead, batch.images)
        self._last = seen.detach().requires_grad_(True)
        logits = passed(model, self._last, keys.fold("attacked"))
        loss = F.cross_entropy(logits, batch.goal, label_smoothing=self.smoothing)
        return {"loss": loss, "accuracy": accuracy(logits, batch)}
