"""Active checks: a few more attacks on a few images, only to see whether they find more than the evaluation did.

What their results mean is for `robustmim.evaluate.honesty` to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
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
from robustmim.evaluate.table import Cell, cells, radii_of
from robustmim.evaluate.verdict import Judged
from robustmim.geometry import Ball
from robustmim.radius import Radius, radius_text
from robustmim.registry import build
from robustmim.rng import Keys, keys
from robustmim.runs import RunFolder, read_json, write_json
from robustmim.types import Images


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

    The attacks among them repeat the last of the recipe's attacks by gradient on the defence, at the middle budget.
    """
    path = folder.path / "checks.json"
    if path.exists():
        return read_json(path)
    images = min(max(2, evaluator.recipe.checks.images or 16), len(source))
    rows = halving(images, lambda count: list(_run_checks(evaluator, source, device, count)))
    write_json(path, rows)
    return rows


def _run_checks(evaluator: Evaluator, source: Source, device: torch.device, images: int) -> Iterator[dict[str, Any]]:
    recipe, config = evaluator.recipe, evaluator.recipe.checks
    batch = next(iter(in_order(source, images, device)))
    n = len(batch.ids)
    cell = cells(recipe, purified=evaluator.purifier is not None)[-1 if evaluator.purifier is None else 1]
    known = Cell("none", 0.0, cell.defence)
    once, twice = (evaluator.judge(batch, batch.images, known, None) for _ in range(2))
    yield {"check": "not-repeatable", "n": n, "different": int((_counts(once) != _counts(twice)).sum())}
    logits = evaluator.classify(batch.images)
    ones = (logits.sum(1) - 1).abs().max() < 1e-3
    yield {"check": "probabilities", "n": n, "probabilities": bool(ones and logits.min() >= 0)}

    faced = [
        a for a in through(evaluator) if recipe.radii and recipe.radii[len(recipe.radii) // 2] in radii_of(a, recipe)
    ]
    if not faced or config.images == 0:
        return
    attack = dataclasses.replace(faced[-1], images=None)
    radius = recipe.radii[len(recipe.radii) // 2]
    ball = Ball(norm=recipe.norm, eps=radius)
    clean = _standing(once)
    attacked = _attacked(evaluator, attack, batch, radius)
    base = _judged(evaluator, attack, batch, radius, attacked)
    noise = ball.random(batch.images, keys(recipe.seed, "noise", batch.ids))
    shaken = _judged(evaluator, attack, batch, radius, noise)
    own = {"n": n, "radius": radius_text(radius), "attack": attack.name}
    yield own | {
        "check": "noise-suffices",
        "clean": float(clean.float().mean()),
        "noise": float(_standing(shaken).float().mean()),
        "attacked": float(_standing(base).float().mean()),
    }
    rounded = _standing(_judged(evaluator, attack, batch, radius, (attacked * 255).round() / 255))
    yield own | {"check": "rounding", "restored": int((rounded & ~_standing(base)).sum())}
    if evaluator.randomised:
        target = evaluator.target(attack, batch, radius)
        first, second = (target.gradient(attacked, batch.labels, cross_entropy, query).ascent for query in (0, 1))
        cosine = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1))
        # Where both are zero there is no disagreement: that is another check's affair.
        alive = (first.flatten(1).norm(dim=1) > 0) | (second.flatten(1).norm(dim=1) > 0)
        alike = float(cosine[alive].mean()) if alive.any() else 1.0
        yield own | {"check": "draws-disagree", "draws": attack.eot, "cosine": alike}
    agreement = _slopes(evaluator, attack, batch, radius)
    if agreement is not None:
        yield own | {"check": "slope-differs", "cosine": agreement}
    if evaluator.purifier is not None and evaluator.purifier.traits.ball is not None:
        edge = evaluator.purifier.traits.ball
        purified = evaluator.purify(attacked, keys(recipe.seed, "saturation", batch.ids))
        far = (purified - attacked).abs() >= edge.eps * (1 - 1e-4) if edge.norm == "linf" else torch.zeros(1)
        yield {"check": "saturation", "n": n, "share": float(far.float().mean())}
    large = config.large_radius
    found = _judged(evaluator, attack, batch, large, _attacked(evaluator, attack, batch, large))
    yield own | {
        "check": "large-budget",
        "radius": radius_text(large),
        "accuracy": float(_standing(found).float().mean()),
    }
    built = evaluator.attacks[attack.name]
    planted = _planted(evaluator, attack, batch, ball)
    if planted is not None:
        yield own | {"check": "planted-missed"} | dataclasses.asdict(planted)
    for option in ("steps", "restarts"):
        count = getattr(built, option, None)
        if isinstance(count, int):
            stronger = dataclasses.replace(attack, options=attack.options | {option: count * config.factor})
            yield (
                own
                | {"check": f"more-{option}", "factor": config.factor}
                | _gain(evaluator, stronger, batch, radius, base)
            )
    if evaluator.randomised:
        stronger = dataclasses.replace(attack, eot=attack.eot * config.factor)
        yield own | {"check": "more-draws", "factor": config.factor} | _gain(evaluator, stronger, batch, radius, base)


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


def _judged(evaluator: Evaluator, attack: AttackConfig, batch: Batch, radius: Radius, x: torch.Tensor) -> Judged:
    defence: Literal["bare", "purified"] = "bare" if evaluator.purifier is None else "purified"
    return evaluator.judge(batch, x, Cell(attack.name, radius, defence), None)


def _gain(evaluator: Evaluator, stronger: AttackConfig, batch: Batch, radius: Radius, base: Judged) -> dict[str, Any]:
    """Count the samples that a stronger attack breaks and the base did not, less those it lost."""
    found = _judged(evaluator, stronger, batch, radius, _attacked(evaluator, stronger, batch, radius))
    before, after = _standing(base), _standing(found)
    return {"fallen": int((before & ~after).sum() - (~before & after).sum())}
