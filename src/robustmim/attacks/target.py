"""What an attack sees of a defence: values, gradients and answers, each an expectation over the defence's draws.

Expectation over transformation (EOT, Athalye et al. 2018) lives here and nowhere else: an attack asks a `Target` and is
thereby aware of randomness. The draws of a sample at a query derive from its key, so they do not depend on its batch;
none of them is ever used for a verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from robustmim.attacks.objectives import Logits, Loss
from robustmim.attacks.parts import Parts
from robustmim.clock import seconds
from robustmim.geometry import Ball
from robustmim.purify.traits import Callback
from robustmim.rng import Keys
from robustmim.types import Images, Labels, PerSample

Scores = Callable[[Images, Keys, float], Logits]
"""(images, keys of the defence's draws, progress of the attack in [0, 1]) → logits. The progress lets a surrogate
gradient be annealed; whoever has none ignores it."""
Chunks = dict[tuple[int, tuple[int, ...], int], int]
"""(draws, shape of an image, binary digits of the batch's size) → draws at once that were fastest."""


@dataclass(frozen=True)
class Slope:
    """One query of a target.

    Attributes:
        value: the loss, averaged over the draws.
        logits: averaged over the draws.
        missed: share of the draws that were classified wrongly.
        gradient: of `value` in the images; None if it was not asked for. Not-a-number is replaced by zero, so that a
            sample whose loss has no gradient stays where it is.
    """

    value: PerSample
    logits: Logits
    missed: PerSample
    gradient: Images | None = None

    @property
    def ascent(self) -> Images:
        """The gradient, when it was asked for."""
        assert self.gradient is not None
        return self.gradient


@dataclass
class Cost:
    """Images that went through the defence, forward and backward, and the seconds that took."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


class Interrupted(Exception):
    """An attack was asked to end before it was done; what it had found so far is lost."""


def until(max_seconds: float, stop: Callable[[], bool] = lambda: False) -> Callable[[], None]:
    """Return a function that raises `Interrupted` once so many seconds have passed from now, or `stop` says so."""
    began = time.monotonic()

    def interrupt() -> None:
        if time.monotonic() - began > max_seconds or stop():
            raise Interrupted

    return interrupt


def _go_on() -> None:
    """Interrupt nothing."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A defence under attack.

    Attributes:
        scores: the defence.
        keys: the attacker's own, one per sample.
        draws: draws averaged in a query (EOT); 1 for a deterministic defence.
        average: what is averaged before the gradient is taken: each draw's loss (Athalye et al. 2018), or the logits.
        randomised: whether answers depend on the draws. If not, one miss is a break; if so, a break must be confirmed.
        confirmations: fresh draws on which a break must be confirmed.
        drop: whether a sample that has fallen may be left alone; not where its image will be judged on another model, such
            as a classifier's behind a purifier, since an attack that stops at the boundary carries over least.
        known: keys of the defence's own draws, where the attacker knows them: every query uses these and no others.
        parts: what an attacker who knows the defence can reach of it; None where a target was made without.
        terms: how many of the scores' columns, the last ones, are no logits but what an attack climbs besides (see `asking`).
        chunk: draws computed at once; None finds out which is fastest.
        chunks: what was found out, by draws, image shape and size of the batch; targets of one defence share it.
        interrupt: called before each query; it raises `Interrupted` where the attack must end.
        cost: counted over all parts of this target.
    """

    scores: Scores
    keys: Keys
    draws: int = 1
    average: Literal["loss", "logits"] = "loss"
    randomised: bool = False
    confirmations: int = 8
    drop: bool = True
    known: Keys | None = None
    parts: Parts | None = None
    terms: int = 0
    chunk: int | None = 1
    chunks: Chunks = field(default_factory=dict)
    interrupt: Callable[[], None] = _go_on
    cost: Cost = field(default_factory=Cost)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Bool[Tensor, " batch"] | Int[Tensor, " some"]) -> Target:
        """Return the target of some of the samples."""
        return replace(self, keys=self.keys[index], known=None if self.known is None else self.known[index])

    def asking(self, scores: Scores, x: Images, *, terms: int = 0) -> Target:
        """Return a target that asks the defence for something else, under the same draws.

        Args:
            scores: what is asked for; it may call the scores of this target, and then has as many samples a draw.
            x: images like those it will be asked about, on which an open number of draws at once is settled.
            terms: how many of its columns, the last ones, are no logits.
        """
        chunk = tuned_chunk(self, x) if self.chunk is None else self.chunk
        return replace(self, scores=scores, terms=terms, chunk=chunk)

    def _logits(self, scores: Tensor) -> Tensor:
        return scores[..., : scores.shape[-1] - self.terms]

    def _drawn(self, purpose: str, query: int, draw: int) -> Keys:
        if self.known is not None:
            return self.known.fold("draw", draw) if self.draws > 1 else self.known
        return self.keys.fold(purpose, query, draw)

    def _queries(self, x: Images, query: int, progress: float, purpose: str = "eot") -> Iterator[tuple[Logits, int]]:
        """Yield scores `[B · c, classes + terms]`, draw after draw, and how many draws c they hold."""
        chunk = self.chunk if self.chunk is not None else tuned_chunk(self, x)
        for first in range(0, self.draws, chunk):
            some = range(first, min(first + chunk, self.draws))
            drawn = Keys(torch.cat([self._drawn(purpose, query, draw).values for draw in some]))
            self.interrupt()
            began = time.perf_counter()
            logits = self.scores(x.repeat(len(some), 1, 1, 1) if len(some) > 1 else x, drawn, progress)
            self.cost.seconds += time.perf_counter() - began
            self.cost.forward += len(x) * len(some)
            yield logits, len(some)

    def gradient(self, x: Images, y: Labels, loss: Loss, query: int, *, progress: float = 0.0) -> Slope:
        """Return the loss and its gradient, averaged over the draws of this query.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            y: true classes `[B]`.
            loss: of (scores, y): logits, and behind them the terms if there are any.
            query: number of this query in the attack; another number, other draws.
            progress: of the attack, 0 at its start and 1 at its end.
        """
        return self._query(x, y, loss, query, progress, need_gradient=True)

    def value(self, x: Images, y: Labels, loss: Loss, query: int, *, progress: float = 0.0) -> Slope:
        """Return the loss alone: what an attack without gradients may ask."""
        return self._query(x, y, loss, query, progress, need_gradient=False)

    def _query(self, x: Images, y: Labels, loss: Loss, query: int, progress: float, *, need_gradient: bool) -> Slope:
        leaf = x.detach().requires_grad_(need_gradient)
        gradient = torch.zeros_like(x) if need_gradient else None
        value = missed = torch.zeros(len(x), device=x.device)
        parts: list[Tensor] = []
        with torch.set_grad_enabled(need_gradient):
            for logits, count in self._queries(leaf, query, progress):
                per_draw = logits.unflatten(0, (count, len(x)))
                losses = torch.stack([loss(own, y) for own in per_draw])
                value = value + losses.detach().sum(0) / self.draws
                missed = missed + (self._logits(per_draw.detach()).argmax(2) != y).sum(0) / self.draws
                parts.append(per_draw if self.average == "logits" else per_draw.detach())
                if gradient is not None and self.average == "loss":
                    gradient += self._backward(losses.sum() / self.draws, leaf)
            logits = torch.cat(parts).mean(0)
            if self.average == "logits":
                averaged = loss(logits, y)
                value = averaged.detach()
                if gradient is not None:
                    gradient = self._backward(averaged.sum(), leaf)
        if gradient is not None:
            whole = gradient.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
            gradient = torch.where(whole, gradient, torch.zeros_like(gradient))
        return Slope(value, self._logits(logits.detach()), missed, gradient)

    def _backward(self, total: Tensor, leaf: Images) -> Images:
        if not total.requires_grad:  # a defence that is cut off from its input; the honesty checks will say so
            return torch.zeros_like(leaf)
        began = time.perf_counter()
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
        self.cost.seconds += time.perf_counter() - began
        self.cost.backward += len(leaf) * (self.draws if self.average == "logits" else 1)
        return torch.zeros_like(leaf) if gradient is None else gradient

    def fallen(self, x: Images, y: Labels, slope: Slope, query: int) -> Bool[Tensor, " batch"]:
        """Say which samples may be left alone: broken, and not by luck.

        Every draw of the query must have missed, and for a random defence every one of some fresh draws too: a sample
        that falls in half of the draws can be brought to fall in more.

        Args:
            x: the images that the query was about.
            y: true classes.
            slope: the query's result.
            query: its number.
        """
        wrong = (slope.missed > 1 - 1e-6) & torch.tensor(self.drop, device=x.device)
        if not self.randomised or self.known is not None or not wrong.any():
            return wrong
        some = self[wrong]
        again = replace(some, draws=self.confirmations, average="loss")
        missed = torch.zeros(len(some), device=x.device)
        with torch.no_grad():
            for logits, count in again._queries(x[wrong].detach(), query, 1.0, purpose="confirm"):
                missed += (self._logits(logits).unflatten(0, (count, len(some))).argmax(2) != y[wrong]).sum(0)
        confirmed = wrong.clone()
        confirmed[wrong] = missed == self.confirmations
        return confirmed


def tuned_chunk(target: Target, x: Images) -> int:
    """Return how many draws at once are fastest for images like `x`; batches within a factor of two count as alike."""
    if target.draws == 1:
        return 1
    place = (target.draws, tuple(x.shape[1:]), len(x).bit_length())
    if place not in target.chunks:

        def spent(chunk: int) -> float:
            target.interrupt()
            began = seconds(x.device)
            with torch.no_grad():
                target.scores(x.repeat(chunk, 1, 1, 1), target.keys.fold("tune").repeat(chunk), 0.0)
            return seconds(x.device) - began

        spent(1)  # the first call of all also warms up
        speed: dict[int, float] = {}
        chunk = 1
        while chunk <= target.draws:
            speed[chunk] = spent(chunk) / chunk
            if speed[chunk] > 1.1 * min(speed.values()):
                break
            chunk *= 2
        target.chunks[place] = min(speed, key=speed.__getitem__)
    return target.chunks[place]


@runtime_checkable
class Attack(Protocol):
    """One attack: built from its options by the registry, called on a batch.

    Attributes:
        norms: norms of the balls it can work in.
        black_box: whether it only asks for answers, never for gradients.
    """

    norms: tuple[str, ...]
    black_box: bool

    def __call__(self, target: Target, x: Images, y: Labels, ball: Ball, *, callback: Callback | None = None) -> Images:
        """Return adversarial images in the ball around `x`, each the best the attack found.

        A sample's result depends on its pixels, label and key alone. Samples that have fallen are dropped early.

        Args:
            target: the defence, with the attacker's randomness in `target.keys`.
            x: `[B, C, H, W]` in [0, 1].
            y: true classes `[B]`.
            ball: the budget.
            callback: told of each step {"step", "x", "value", "gradient", "center", "ball"}; the gradient is absent from
                black-box attacks.
        """
