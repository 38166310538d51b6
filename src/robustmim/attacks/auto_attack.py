"""AutoAttack as its authors run it, through the optional package pyautoattack, for comparison with papers.

The library assumes a deterministic classifier, changes the process it runs in, and takes a single lucky miss of a random
defence for a break. The first two are contained here; the third is what the literal attack is, so judge what it returns
on fresh draws.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustmim.attacks.target import Target
from robustmim.errors import EnvironmentUnusable, RecipeError
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, Labels

_NORMS: dict[str, Any] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class _Answers(nn.Module):
    """A target as a module that returns logits: one draw a call, and other draws in the next.

    The library hands over images without saying whose they are, so a draw's key comes from the number of the call and
    the place in it. That is fresh randomness whatever the library does to the global generator.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target, self.calls = target, 0

    def forward(self, x: Images) -> Tensor:
        keys, cost = self.target.keys, self.target.cost
        self.target.interrupt()
        self.calls += 1
        places = torch.arange(len(x), device=keys.values.device) % len(keys)
        drawn = self.target.known
        if drawn is None:
            drawn = Keys(keys.values[places]).fold("auto-attack", self.calls).fold_each(torch.arange(len(x)))
        began = time.perf_counter()
        logits = self.target.scores(x, drawn, 0.0)
        cost.seconds += time.perf_counter() - began
        cost.forward += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.target.cost.backward += len(gradient)


@contextmanager
def contained(library: Any) -> Iterator[None]:
    """Leave the process as it was: the global generators, the tracer, and the level of the library's logger.

    Its test for defences that take gradients themselves counts in a module-wide table, and would hold one defence's
    gradients against the next: the table starts at zero.
    """
    logger, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    level, handlers = logger.level, list(logger.handlers)
    counts: dict[str, int] = library.checks.funcs
    for name in counts:
        counts[name] = 0
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        sys.settrace(tracer)
        logger.setLevel(level)
        logger.handlers[:] = handlers


@register("attack", "auto-attack")
class AutoAttack:
    """AutoAttack, literally (Croce and Hein 2020): `standard` for deterministic defences, `rand` for random ones.

    Standard is APGD-CE, targeted APGD, FAB-T and Square in turn; rand is APGD-CE and APGD-DLR, each step averaged over 20
    draws. Its findings about the defence (random, gradients of its own, outputs that are no logits) go to the logger
    "auto-attack". Where the attacker knows the defence's draws, images are attacked one by one.

    Args:
        version: standard or rand.
        batch_size: images attacked at once.

    Raises:
        RecipeError: no such version.
        EnvironmentUnusable: pyautoattack is not installed.
    """

    norms = ("linf", "l2", "l1")
    black_box = False

    def __init__(self, *, version: Literal["standard", "rand"] = "standard", batch_size: int = 250) -> None:
        if version not in ("standard", "rand"):
            raise RecipeError(f"AutoAttack comes as standard or rand, not {version!r}")
        self.version, self.batch_size = version, batch_size

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return what the library calls broken as it left it, and the rest as it was; see `Attack`.

        The callback is told nothing: the library shows no steps.

        Raises:
            EnvironmentUnusable: pyautoattack is not installed.
            RecipeError: an infinite budget, or fewer than four classes, for which its losses are not defined.
        """
        try:
            import pyautoattack
        except ImportError as error:
            raise EnvironmentUnusable(
                "the attack 'auto-attack' comes with a package that is missing: pip install 'robustmim[aa]'"
            ) from error
        if ball.eps == float("inf"):
            raise RecipeError("AutoAttack needs a finite budget")
        single = target.known is not None
        parts = torch.arange(len(x), device=x.device).split(1 if single else max(len(x), 1))
        with contained(pyautoattack):
            attacked = [self._attack(pyautoattack, target[part], x[part], y[part], ball) for part in parts]
        return torch.cat(attacked) if attacked else x.clone()

    def _attack(self, library: Any, target: Target, x: Images, y: Labels, ball: Ball) -> Images:
        answers = _Answers(target)
        with torch.no_grad():
            classes = answers(x[:1] if target.known is None else x).shape[1]
        if classes < 4:
            raise RecipeError(f"AutoAttack's losses need at least four classes, not {classes}")
        runner = library.AutoAttack(
            answers,
            norm=_NORMS[ball.norm],
            eps=ball.eps,
            version=self.version,
            device=x.device,
            seed=int(target.keys.fold("seed").values[0]) & 0x7FFFFFFF,
        )
        for part in (runner.apgd_targeted, runner.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        attacked, _ = runner.run_standard_evaluation(x, y, batch_size=self.batch_size)
        return attacked.detach()
