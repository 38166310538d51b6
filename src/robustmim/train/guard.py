"""A guard against catastrophic overfitting: training that holds against its own one-step attack and no longer against PGD.

Wong et al. (2020) stop when PGD's accuracy on training images falls; Andriushchenko and Flammarion (2020) show that attacks
of two steps go on where those of one have failed. Training images, since they show the collapse as well as any, and then no
test image decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustmim.data.loader import Batch
from robustmim.rng import Keys
from robustmim.train.objectives import Objective, Training


class Guarded:
    """An objective that is watched; when it has let the model collapse, the weights go back to the last good check.

    Args:
        levels: the objective, and what takes its place after each collapse, in order; after the last one, the run ends.
        check: model, in evaluation mode → accuracy under PGD.
        every: optimiser steps between checks.
        drop: fall of the accuracy below the best so far that counts as a collapse.
    """

    def __init__(
        self, levels: Sequence[Objective], check: Callable[[nn.Module], float], *, every: int, drop: float
    ) -> None:
        self._levels, self._check, self._every, self._drop = levels, check, every, drop
        self._level, self._best, self._last = 0, -torch.inf, -torch.inf
        self._good: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, batch: Batch, keys: Keys, step: int) -> dict[str, Tensor]:
        """Return what the objective of the present level returns, with that level and the last check's accuracy."""
        found = self._levels[self._level](model, batch, keys, step)
        seen = {"guard_level": float(self._level)}
        seen |= {"guard_accuracy": self._last} if self._last >= 0 else {}
        return found | {name: torch.tensor(value) for name, value in seen.items()}

    def after_step(self, training: Training) -> bool:
        """Check where it is time; go back after a collapse; return whether the run ends here."""
        if training.step % self._every:
            return False
        training.model.eval()
        self._last = self._check(training.model)
        training.model.train()
        if not training.world.any(self._best - self._last > self._drop):
            self._best = max(self._best, self._last)
            self._good = {f"model.{name}": value.clone() for name, value in training.model.state_dict().items()}
            self._good |= {f"average.{name}": value.clone() for name, value in training.average.items()}
            return False
        good = {name.removeprefix("model."): value for name, value in self._good.items() if name.startswith("model.")}
        training.model.load_state_dict(good)
        for name, value in training.average.items():
            value.copy_(self._good[f"average.{name}"])
        training.optimizer.state.clear()  # its momentum leads to where the run has just come from
        self._level += 1
        if self._level < len(self._levels):
            return False
        self._level -= 1
        return True

    def state(self) -> dict[str, Tensor]:
        """Return level, accuracies and the weights of the last good check."""
        numbers = torch.tensor([self._level, self._best, self._last], dtype=torch.float64)
        return {"numbers": numbers} | self._good

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        level, self._best, self._last = state["numbers"].tolist()
        self._level = int(level)
        self._good = {name: value for name, value in state.items() if name != "numbers"}
