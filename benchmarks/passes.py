"""How many images pass through a purifier's networks, forward and backward, counted where the image enters.

A layer is no place to count: the first one to run may see the noise level alone, through which no gradient goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.models.edm import Denoiser
from robustmim.models.masked import MaskedModel
from robustmim.models.masked_denoiser import MaskedDenoiser

DOORS = ("denoise", "reconstruct", "predict", "render", "tokens")
"""Methods by which masked models and denoisers are asked, images first. One may be behind another; the outer one counts."""


@dataclass
class Count:
    """Images through a network."""

    forward: int = 0
    backward: int = 0

    def entered(self, x: Tensor) -> Tensor:
        """Count images; return them in a place of their own, where a gradient that arrives is counted too."""
        self.forward += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._left)
        return x

    def _left(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def networks_of(purifier: object) -> list[nn.Module]:
    """Return the networks that a purifier holds, itself, in its parts or in the closures of its functions."""
    found: list[nn.Module] = []
    seen: list[object] = []
    waiting = [purifier]
    while waiting:
        part = waiting.pop()
        if any(part is other for other in seen):
            continue
        seen.append(part)
        if isinstance(part, MaskedDenoiser):  # made anew for each draw, around the network
            waiting.append(part.network)
        elif isinstance(part, nn.Module):
            found.append(part)
        elif isinstance(part, FunctionType):
            waiting += [cell.cell_contents for cell in part.__closure__ or ()]
        elif type(part).__module__.startswith("robustmim"):
            waiting += getattr(part, "__dict__", {}).values()
    return found


class Passes:
    """Counts inside the block.

    Attributes:
        network: of the masked model or the denoiser.
        classifier: of a classifier that the purifier asks.

    Raises:
        RuntimeError: at the end, a network that was asked by no door known here.
    """

    def __init__(self, purifier: object) -> None:
        self.network, self.classifier = Count(), Count()
        self._networks = networks_of(purifier)
        self._asked: set[int] = set()
        self._inside = False
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Passes:
        for network in self._networks:
            if isinstance(network, Denoiser | MaskedModel):
                for door in DOORS:
                    if callable(getattr(network, door, None)):
                        self._watch(network, door)
            else:
                self._undo.append(network.register_forward_pre_hook(self._called).remove)
        return self

    def _called(self, classifier: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        self._asked.add(id(classifier))
        return self.classifier.entered(given[0]), *given[1:]

    def _watch(self, network: nn.Module, door: str) -> None:
        ask = getattr(network, door)

        def counted(x: Tensor, *others: Any, **options: Any) -> Any:
            if self._inside:
                return ask(x, *others, **options)
            self._asked.add(id(network))
            self._inside = True
            try:
                return ask(self.network.entered(x), *others, **options)
            finally:
                self._inside = False

        setattr(network, door, counted)
        self._undo.append(lambda: delattr(network, door))

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for undo in self._undo:
            undo()
        missed = [type(network).__name__ for network in self._networks if id(network) not in self._asked]
        if missed and failed is None:
            raise RuntimeError(f"passes through {', '.join(missed)} were not counted: by which method is it asked?")
