"""What a masked model is for, measured while it trains: does its loss see an attack, and does its descent undo it?

The figure of merit of a purifier is not its loss on clean images but the ratio of the loss on attacked images to it.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from robustmim.attacks.pgd import PGD
from robustmim.attacks.target import Target
from robustmim.config import ProbeConfig
from robustmim.data import sources
from robustmim.evaluate.accuracy import in_order
from robustmim.geometry import Ball
from robustmim.models.masked import MaskedModel, freeze, with_draws
from robustmim.models.masking import random_mask
from robustmim.models.zoo import open_classifier
from robustmim.purify.amrm import AMRMPure
from robustmim.radius import radius_text
from robustmim.rng import Keys, keys
from robustmim.types import Images, Labels

_BATCH = 64


class PurificationProbe:
    """A fixed set of images, clean and attacked once by PGD on a bare classifier (gray box).

    Args:
        config: which images, which classifier, which budgets.
        device: where to.
        seed: of the attack and of the masks.
    """

    def __init__(self, config: ProbeConfig, *, device: torch.device, seed: int) -> None:
        if config.classifier is None:
            raise ValueError("a probe needs a classifier")
        source = sources.load(config.data, config.split, limit=config.images, part=config.part)
        self._classifier = freeze(open_classifier(config.classifier, config.arch).to(device))
        self._config, self._seed = config, seed
        batches = list(in_order(source, _BATCH, device))
        self._labels: list[Labels] = [batch.labels for batch in batches]
        self._keys: list[Keys] = [keys(seed, "probe", batch.ids) for batch in batches]
        self._images: dict[str, list[Images]] = {"clean": [batch.images for batch in batches]}
        attack = PGD(steps=config.attack_steps)
        for radius in config.radii:
            ball = Ball(norm="linf", eps=radius)
            self._images[radius_text(radius)] = [
                attack(self._target(drawn), batch.images, batch.labels, ball)
                for batch, drawn in zip(batches, self._keys, strict=True)
            ]

    def _target(self, drawn: Keys) -> Target:
        return Target(scores=lambda x, keys, progress: self._classifier(x), keys=drawn, drop=False)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return for each budget loss attacked / clean ("sees 8/255") and purified accuracy ("purified 8/255")."""
        model = copy.deepcopy(model)  # a purifier freezes what it is given, and training goes on
        assert isinstance(model, MaskedModel)
        purifier = AMRMPure(model, self._config.amrm)
        found: dict[str, float] = {}
        losses: dict[str, float] = {}
        for name, batches in self._images.items():
            loss, right, count = 0.0, 0, 0
            for x, y, drawn in zip(batches, self._labels, self._keys, strict=True):
                grid = model.grid(*x.shape[-2:])
                with torch.no_grad():
                    mask = random_mask(drawn.fold("mask"), grid, self._config.amrm.mask_ratio)
                    loss += float(with_draws(model, drawn.fold("mask")).reconstruct(x, mask).loss.sum())
                    purified = purifier(x, keys=drawn.fold("purify"))
                    right += int((self._classifier(purified).argmax(1) == y).sum())
                count += len(x)
            losses[name] = loss / count
            found[f"purified {name}"] = right / count
            if name != "clean":
                found[f"sees {name}"] = losses[name] / losses["clean"]
        return found
