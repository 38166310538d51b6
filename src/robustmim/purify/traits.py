"""What every purifier is, and what it says of itself so that an evaluation can choose the attacks it must face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from robustmim.config import GradientConfig
from robustmim.geometry import Ball
from robustmim.models.masked import MaskedModel
from robustmim.rng import Keys
from robustmim.types import Images

Callback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How a purifier works, as far as an attacker must know.

    Attributes:
        randomised: its result depends on random draws, so attacks and verdicts must average over them.
        optimises_at_test_time: it takes gradients of its own while purifying.
        steps: iterations for one image.
        ball: how far it moves an image at most; None for anywhere in [0, 1].
    """

    randomised: bool
    optimises_at_test_time: bool
    steps: int
    ball: Ball | None = None


@runtime_checkable
class Purifier(Protocol):
    """Anything that maps possibly attacked images to cleaner ones of the same shape."""

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Purify images `[B, C, H, W]` in [0, 1]; a sample's result depends on its pixels and its key alone."""


@runtime_checkable
class DifferentiablePurifier(Purifier, Protocol):
    """A purifier that offers attackers more than the identity as its gradient."""

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Purify with a gradient of the attacker's choice; see `GradientConfig`."""


@runtime_checkable
class MaskedPurifier(Purifier, Protocol):
    """A purifier that goes by what a masked model says: a part that an attacker can reach."""

    @property
    def model(self) -> MaskedModel:
        """The masked model."""

    @property
    def mask_ratio(self) -> float:
        """Fraction of the cells that its masks hide."""
