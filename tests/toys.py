"""A defence small enough to be known by heart: a quadratic masked model, a purifier that descends it, a classifier with features."""

from __future__ import annotations

import torch
from torch import nn

from robustmim.attacks.parts import Parts
from robustmim.attacks.target import Target
from robustmim.config import AMRMConfig
from robustmim.models.masked import Reconstruction, hidden_mean
from robustmim.models.masking import enlarge
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.defended import Defended
from robustmim.radius import Radius
from robustmim.rng import content_ids, keys

CLASSES = 3


class Neighbours:
    """Predicts a hidden pixel as the mean of its row and column neighbours, so that the loss is a square in the pixels."""

    patch_size = 1

    def grid(self, height, width):
        return height, width

    def reconstruct(self, x, mask, *, target=None, need_pixels=False, need_attention=False):
        target = x if target is None else target
        hidden = enlarge(mask, 1)
        visible = x * ~hidden
        around = sum(visible.roll(shift, dims) for shift, dims in ((1, 2), (-1, 2), (1, 3), (-1, 3)))
        count = sum((~hidden).to(x).roll(shift, dims) for shift, dims in ((1, 2), (-1, 2), (1, 3), (-1, 3)))
        predicted = around / count.clamp(min=1)
        pixels = torch.where(hidden, predicted, x) if need_pixels else None
        return Reconstruction(loss=hidden_mean((predicted - target).square(), hidden), pixels=pixels)


def network(seed=0):
    """Two linear layers with a bend between; their weights come from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return layers.eval().requires_grad_(False)


def images(n=6, seed=1):
    """Smooth images, some pixels of which are black or white."""
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (2 * x - 0.5).clamp(0, 1)


def purifier(**options):
    settings = {"steps": 2, "step_size": Radius("4/255"), "mask_ratio": 0.25} | options
    return AMRMPure(Neighbours(), AMRMConfig(**settings))


def target_of(x, *, through=None, reference=None, classifier=None, gradient=None, **options):
    """Return what an attack sees of the toy classifier, behind a purifier if there is one."""
    classifier = network() if classifier is None else classifier
    scores = (lambda z, drawn, progress: classifier(z)) if through is None else Defended(through, classifier)
    if gradient is not None:
        scores = Defended(through, classifier, gradient=gradient)
    parts = Parts(classifier=classifier, purifier=through, reference=reference)
    drawn = keys(0, "attack", content_ids(x))
    return Target(scores=scores, keys=drawn, parts=parts, randomised=through is not None, **options)
