"""`robustmim landscape [RECIPE]`: the loss around a few images, along an attack's gradient and across it."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from robustmim.cli.evaluate import EvaluateOptions, default_folder, opened, prepared
from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.errors import RecipeError
from robustmim.recipe import parse

if TYPE_CHECKING:
    from torch import Tensor

    from robustmim.analysis.landscape import Landscape
    from robustmim.evaluate.run import Evaluator

_CELL, _GAP = 8, 12  # pixels of the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeOptions(EvaluateOptions):
    """Around how many images, and how finely. The gradient is that of the last attack through the whole defence (`only`
    names another), at the recipe's largest budget, which is one unit."""

    count: int = 4
    """Images: the first ones of the data set."""
    side: int = 21
    """Points along each direction, from -1 to 1 budgets; odd."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    recipe, options, name = parse("landscape", EvaluateRecipe, LandscapeOptions, arguments, default="cifar10-linf")
    if options.side < 3 or options.side % 2 == 0 or options.count < 1:
        raise RecipeError(f"side is an odd number from 3, and count at least 1, not {options.side} and {options.count}")
    recipe = prepared(recipe, dataclasses.replace(options, limit=options.count))
    purify = options.purification()

    from robustmim.analysis.landscape import landscape
    from robustmim.cli.console import say
    from robustmim.data.images import write_image
    from robustmim.evaluate.accuracy import in_order
    from robustmim.geometry import Ball
    from robustmim.radius import radius_text
    from robustmim.runs import atomic

    evaluator, source, device = opened(recipe, purify, options)
    attack, radius = chosen(evaluator), max(recipe.radii)
    batch = next(iter(in_order(source, options.count, device)))
    if options.dry_run:
        say(f"{len(batch.ids)} images × {options.side}² points × {attack.eot} draws; nothing was written")
        return 0
    found = landscape(
        evaluator.target(attack, batch, radius),
        batch.images,
        batch.labels,
        Ball(norm=recipe.norm, eps=radius),
        side=options.side,
    )
    folder = Path(options.out or default_folder(name, options, "landscape"))
    write_image(folder / "landscape.png", picture(found))
    with atomic(folder / "landscape.csv") as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "along", "across", "loss", "missed"])
        for i, number in enumerate(batch.ids.tolist()):
            for row, first in enumerate(found.places):
                for column, second in enumerate(found.places):
                    values = (found.loss[i, row, column], found.missed[i, row, column])
                    writer.writerow([number, round(first, 4), round(second, 4), *(f"{float(v):.6g}" for v in values)])
    say(
        f"loss within {radius_text(radius)} ({recipe.norm}) of {len(batch.ids)} images, along the gradient of {attack.name} (down) "
        f"and across it (right), light where it is high, dotted where the answer is wrong: {folder / 'landscape.png'}, "
        f"{folder / 'landscape.csv'}"
    )
    return 0


def chosen(evaluator: Evaluator) -> AttackConfig:
    """Return the last of the attacks by gradient on the defence.

    Raises:
        RecipeError: there is none.
    """
    through = [attack for attack in evaluator.recipe.attacks if evaluator.white_box(attack)]
    if not through:
        raise RecipeError(
            "none of the recipe's attacks goes by gradients through the defence: there is no direction to take"
        )
    return through[-1]


def picture(found: Landscape) -> Tensor:
    """Draw the planes side by side, `[3, H, W]` in [0, 1]; all on one scale."""
    import numpy as np
    import torch

    from robustmim.report.pictures import HEAT

    loss, missed = found.loss.cpu().numpy(), found.missed.cpu().numpy()
    share = (loss - loss.min()) / (float(loss.max() - loss.min()) or 1.0)
    stops = np.linspace(0, 1, len(HEAT))
    panels = []
    for plane, wrong in zip(share, missed, strict=True):
        large = plane.repeat(_CELL, 0).repeat(_CELL, 1)
        colour = np.stack([np.interp(large, stops, HEAT[:, channel]) for channel in range(3)]) / 255
        for row, column in zip(*np.nonzero(wrong >= 0.5), strict=True):
            middle = slice(row * _CELL + 3, row * _CELL + 5), slice(column * _CELL + 3, column * _CELL + 5)
            colour[(slice(None), *middle)] = 1 - colour[(slice(None), *middle)].round()
        panels += [colour, np.ones((3, large.shape[0], _GAP))]
    return torch.from_numpy(np.concatenate(panels[:-1], axis=2)).float()
