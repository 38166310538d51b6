"""What an evaluation will cost, before it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from robustmim.attacks.objectives import Logits, cross_entropy
from robustmim.attacks.parts import KnowingAttack
from robustmim.clock import seconds
from robustmim.data.loader import Batch
from robustmim.data.sources import Source
from robustmim.evaluate.accuracy import in_order
from robustmim.evaluate.run import Evaluator
from robustmim.evaluate.table import defences_of, radii_of
from robustmim.geometry import Ball
from robustmim.rng import Keys
from robustmim.types import Images


def estimate(evaluator: Evaluator, source: Source, device: torch.device) -> tuple[float, list[dict[str, Any]]]:
    """Return seconds for all images, and for each attack its passes and seconds; an upper bound.

    How many passes an attack takes is counted on a stand-in that never falls and costs nothing; what a pass costs is
    timed on two batches of the defence as it is.
    """
    recipe, purified = evaluator.recipe, evaluator.purifier is not None
    batch = next(iter(in_order(source, min(4, len(source), recipe.batch_size), device)))
    rows: list[dict[str, Any]] = []
    total = 0.0
    for attack in recipe.attacks:
        radii = radii_of(attack, recipe)
        if not radii:
            continue
        target = evaluator.target(attack, batch, radii[0])
        knowing = isinstance(evaluator.attacks[attack.name], KnowingAttack)

        def firm(x: Images, drawn: Keys, progress: float, batch: Batch = batch, knowing: bool = knowing) -> Logits:
            labels = batch.labels.repeat(len(x) // len(batch.labels) + 1)[: len(x)]
            logits = torch.nn.functional.one_hot(labels, len(source.classes)).to(x.dtype) * 10
            # Who looks into the classifier must find it at work.
            return logits + 0 * (evaluator.classifier(x) if knowing else x.flatten(1).sum(1, keepdim=True))

        counted = replace(target, scores=firm, chunk=1)
        evaluator.attacks[attack.name](counted, batch.images, batch.labels, Ball(norm=recipe.norm, eps=radii[0]))
        forward, backward = (count / len(batch.ids) for count in (counted.cost.forward, counted.cost.backward))
        target = replace(target, draws=1, chunk=1)
        timed = {}
        for what, ask in (("forward", target.value), ("backward", target.gradient)):
            ask(batch.images, batch.labels, cross_entropy, 0)
            began = seconds(device)
            ask(batch.images, batch.labels, cross_entropy, 1)
            timed[what] = (seconds(device) - began) / len(batch.ids)
        verdicts = len(defences_of(attack, purified=purified)) * (2 * recipe.draws if evaluator.randomised else 1)
        needed = backward * timed["backward"] + (max(0.0, forward - backward) + verdicts) * timed["forward"]
        images = min(len(source), attack.images or len(source)) * len(radii)
        rows.append(
            {
                "attack": attack.name,
                "forward": forward,
                "backward": backward,
                "images": images,
                "seconds": needed * images,
            }
        )
        total += needed * images
    return total, rows
