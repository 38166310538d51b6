"""Active checks: a few more attacks on a few images, only to see whether they find more than the evaluation did.

What their results mean is for `robustmim.evaluate.honesty` to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from robustmim.attacks.objectives import Logits, cross_entropy
from robustmim.attacks.parts import KnowingAttack
from robustmim.config import AttackConfig
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.errors import RecipeError
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.memory import halving
from robustmim.evaluate.planted import Planted, plant
from robustmim.evaluate.run import Evaluator
from robustmim.evaluate.slope import slope_agreement
from robustmim.evaluate.table import Cell, radii_of
from robustmim.evaluate.verdict import Judged
from robustmim.geometry import Ball
from robustmim.radius import Radius, radius_text
from robustmim.registry import build
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder, read_json, write_json
from robustmim.types import Images

SO_FAR = "checks-so-far.json"
"""Results of the checks that have ended, while others have not."""


def by_gradient(evaluator: Evaluator) -> list[AttackConfig]:
    """Return the attacks by gradient on the defence or on a stand-in for it, with fresh draws."""
    return [
        attack
        for attack in evaluator.recipe.attacks
        if not evaluator.attacks[attack.name].black_box
        and attack.randomness == "fresh"
        and (attack.against == "defence" or evaluator.purifier is None)
    ]


def through(evaluator: Evaluator) -> list[AttackConfig]:
    """Return the attacks by gradient on the defence itself, with fresh draws."""
    return [attack for attack in by_gradient(evaluator) if evaluator.white_box(attack)]


def active_checks(
    evaluator: Evaluator, source: Source, folder: RunFolder, *, device: torch.device
) -> list[dict[str, Any]]:
    """Run the active checks that the recipe asks for, once; their results are kept in checks.json.

    The attacks among them repeat the last of the recipe's attacks by gradient on the defence, at the middle budget. What is
    interrupted goes on after the last check that ended.
    """
    path = folder.path / "checks.json"
    if path.exists():
        return read_json(path)
    images = min(max(2, evaluator.recipe.checks.images or 16), len(source))
    rows = halving(images, lambda count: _ActiveChecks(evaluator, source, device, count).run(folder.path))
    write_json(path, rows)
    (folder.path / SO_FAR).unlink()
    return rows


class _ActiveChecks:
    """The checks of one evaluation on its first images; what several of them need is computed once, when it is first asked for."""

    def __init__(self, evaluator: Evaluator, source: Source, device: torch.device, images: int) -> None:
        self.evaluator, self.recipe = evaluator, evaluator.recipe
        self.batch = next(iter(in_order(source, images, device)))
        self.n = len(self.batch.ids)
        middle = self.recipe.radii[len(self.recipe.radii) // 2] if self.recipe.radii else None
        faced = [a for a in through(evaluator) if middle is not None and middle in radii_of(a, self.recipe)]
        self.with_attacks = bool(faced) and self.recipe.checks.images > 0
        if self.with_attacks:
            assert middle is not None
            self.attack, self.radius = dataclasses.replace(faced[-1], images=None), middle
            self.own = {"n": self.n, "radius": radius_text(middle), "attack": self.attack.name}

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Run the checks that no earlier try has ended, and return what all of them say."""
        path = folder / SO_FAR
        so_far = read_json(path) if path.exists() else {}
        if so_far.get("images") != self.n:
            so_far = {"images": self.n, "rows": {}}
        for name, check in self.wanted().items():
            if name not in so_far["rows"]:
                found = check()
                so_far["rows"][name] = None if found is None else {"check": name} | found
                write_json(path, so_far)
        return [row for row in so_far["rows"].values() if row is not None]

    def wanted(self) -> dict[str, Callable[[], dict[str, Any] | None]]:
        """Return the checks by name, in the order they are run and told in; some find that they do not apply."""
        found: dict[str, Callable[[], dict[str, Any] | None]] = {
            "not-repeatable": self.repeated,
            "probabilities": self.probabilities,
        }
        if not self.with_attacks:
            return found
        found |= {"noise-suffices": self.noise, "rounding": self.rounding}
        if self.evaluator.randomised:
            found["draws-disagree"] = self.disagreement
        found |= {
            "slope-differs": self.slope,
            "saturation": self.saturation,
            "large-budget": self.large_budget,
            "planted-missed": self.planted,
        }
        built = self.evaluator.attacks[self.attack.name]
        for option in ("steps", "restarts"):
            count = getattr(built, option, None)
            if isinstance(count, int):
                options = self.attack.options | {option: count * self.recipe.checks.factor}
                found[f"more-{option}"] = partial(self.stronger, dataclasses.replace(self.attack, options=options))
        if self.evaluator.randomised:
            eot = self.attack.eot * self.recipe.checks.factor
            found["more-draws"] = partial(self.stronger, dataclasses.replace(self.attack, eot=eot))
        return found

    @cached_property
    def clean(self) -> Judged:
        """Verdicts without an attack."""
        return self.judged_as(Cell("none", 0.0, self.defence), self.batch.images)

    @cached_property
    def attacked(self) -> Images:
        """The attack's images."""
        return _attacked(self.evaluator, self.attack, self.batch, self.radius)

    @cached_property
    def fallen(self) -> Judged:
        """Verdicts on the attack's images."""
        return self.judged(self.attacked)

    @property
    def defence(self) -> Literal["bare", "purified"]:
        return "bare" if self.evaluator.purifier is None else "purified"

    def judged_as(self, cell: Cell, x: Images) -> Judged:
        return self.evaluator.judge(self.batch, x, cell, None)

    def judged(self, x: Images, radius: Radius | None = None) -> Judged:
        """Return verdicts on images as those of the attack, at its radius or at another one."""
        return self.judged_as(Cell(self.attack.name, self.radius if radius is None else radius, self.defence), x)

    def repeated(self) -> dict[str, Any]:
        again = self.judged_as(Cell("none", 0.0, self.defence), self.batch.images)
        return {"n": self.n, "different": int((_counts(self.clean) != _counts(again)).sum())}

    def probabilities(self) -> dict[str, Any]:
        logits = self.evaluator.classify(self.batch.images)
        ones = (logits.sum(1) - 1).abs().max() < 1e-3
        return {"n": self.n, "probabilities": bool(ones and logits.min() >= 0)}

    def noise(self) -> dict[str, Any]:
        ball = Ball(norm=self.recipe.norm, eps=self.radius)
        noise = self.judged(ball.random(self.batch.images, keys(self.recipe.seed, "noise", self.batch.ids)))
        shares = {"clean": self.clean, "noise": noise, "attacked": self.fallen}
        return self.own | {name: float(_standing(judged).float().mean()) for name, judged in shares.items()}

    def rounding(self) -> dict[str, Any]:
        rounded = self.judged((self.attacked * 255).round() / 255)
        return self.own | {"restored": int((_standing(rounded) & ~_standing(self.fallen)).sum())}

    def disagreement(self) -> dict[str, Any]:
        target = self.evaluator.target(self.attack, self.batch, self.radius)
        first, second = (
            target.gradient(self.attacked, self.batch.labels, cross_entropy, query).ascent for query in (0, 1)
        )
        cosine = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1))
        # Where both are zero there is no disagreement: that is another check's affair.
        alive = (first.flatten(1).norm(dim=1) > 0) | (second.flatten(1).norm(dim=1) > 0)
        alike = float(cosine[alive].mean()) if alive.any() else 1.0
        return self.own | {"draws": self.attack.eot, "cosine": alike}

    def slope(self) -> dict[str, Any] | None:
        agreement = _slopes(self.evaluator, self.attack, self.batch, self.radius)
        return None if agreement is None else self.own | {"cosine": agreement}

    def saturation(self) -> dict[str, Any] | None:
        """Say how many pixels end on the surface of the purifier's own ball, where it has one."""
        edge = None if self.evaluator.purifier is None else self.evaluator.purifier.traits.ball
        if edge is None:
            return None
        purified = self.evaluator.purify(self.attacked, keys(self.recipe.seed, "saturation", self.batch.ids))
        far = (purified - self.attacked).abs() >= edge.eps * (1 - 1e-4) if edge.norm == "linf" else torch.zeros(1)
        return {"n": self.n, "share": float(far.float().mean())}

    def large_budget(self) -> dict[str, Any]:
        large = self.recipe.checks.large_radius
        found = self.judged(_attacked(self.evaluator, self.attack, self.batch, large), large)
        return self.own | {"radius": radius_text(large), "accuracy": float(_standing(found).float().mean())}

    def planted(self) -> dict[str, Any] | None:
        ball = Ball(norm=self.recipe.norm, eps=self.radius)
        planted = _planted(self.evaluator, self.attack, self.batch, ball)
        return None if planted is None else self.own | dataclasses.asdict(planted)

    def stronger(self, attack: AttackConfig) -> dict[str, Any]:
        """Count the samples that a stronger attack breaks and the attack did not, less those it lost."""
        found = self.judged(_attacked(self.evaluator, attack, self.batch, self.radius))
        before, after = _standing(self.fallen), _standing(found)
        fallen = int((before & ~after).sum() - (~before & after).sum())
        return self.own | {"factor": self.recipe.checks.factor, "fallen": fallen}


def _slopes(evaluator: Evaluator, attack: AttackConfig, batch: Batch, radius: Radius) -> float | None:
    """Compare the attack's gradient with differences of the defence itself."""

    def answer(x: Images, drawn: Keys) -> Logits:
        return evaluator.classify(x if evaluator.purifier is None else evaluator.purify(x, drawn))

    target, drawn = evaluator.target(attack, batch, radius), keys(evaluator.recipe.seed, "slope", batch.ids)
    return slope_agreement(target, answer, batch.images, batch.labels, drawn)


def _planted(evaluator: Evaluator, attack: AttackConfig, batch: Batch, ball: Ball) -> Planted | None:
    """Plant adversarial examples; None where that cannot be.

    The attack may climb something else or not be made for two classes, and the classifier may have no linear readout.
    """
    built = evaluator.attacks[attack.name]
    if isinstance(built, KnowingAttack):
        return None
    target = evaluator.target(attack, batch, Radius(ball.eps))
    drawn = keys(evaluator.recipe.seed, "planted", batch.ids)
    try:
        return plant(target, built, evaluator.parts, batch.images, ball, drawn)
    except RecipeError:
        return None


def _counts(judged: Judged) -> torch.Tensor:
    return judged.right if judged.again is None else judged.right + judged.again


def _standing(judged: Judged) -> torch.Tensor:
    sets = 1 if judged.again is None else 2
    return 2 * _counts(judged) > judged.draws * sets


def _attacked(evaluator: Evaluator, attack: AttackConfig, batch: Batch, radius: Radius) -> torch.Tensor:
    built = build("attack", attack.attack, **attack.options)
    return built(
        evaluator.target(attack, batch, radius),
        batch.images,
        batch.labels,
        Ball(norm=evaluator.recipe.norm, eps=radius),
    )
