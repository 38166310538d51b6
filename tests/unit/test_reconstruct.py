"""Purification in one pass: what is drawn, and what is not."""

import pytest
import torch

from robustmim.config import GradientConfig, ReconstructionConfig
from robustmim.errors import RecipeError
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.rng import keys
from tests import toys


def reconstruct(**options):
    return MaskedReconstruction(toys.Neighbours(), ReconstructionConfig(mask_ratio=0.5, **options))


def test_one_deal_of_masks_for_all_makes_a_deterministic_defence():
    x = toys.images(4)
    still, drawn = reconstruct(masks="fixed-global"), reconstruct()
    first, second = keys(0, "a", torch.arange(4)), keys(1, "b", torch.arange(4))
    assert torch.equal(still(x, keys=first), still(x, keys=second))
    assert not torch.equal(drawn(x, keys=first), drawn(x, keys=second))
    assert not still.traits.randomised
    assert drawn.traits.randomised
    # The same masks for every image, too.
    twice = x[:1].expand(2, -1, -1, -1)
    purified = still(twice, keys=first[:2])
    assert torch.equal(purified[0], purified[1])


def test_every_pixel_is_predicted_from_others_once():
    x = toys.images(2)
    still = reconstruct(masks="fixed-global", blend=1.0)
    drawn = keys(0, "a", torch.arange(2))
    changed = x.clone()
    changed[:, :, 3, 3] = 1 - changed[:, :, 3, 3]
    # No pixel's result follows from the pixel itself.
    assert torch.equal(still(x, keys=drawn)[:, :, 3, 3], still(changed, keys=drawn)[:, :, 3, 3])
    assert not torch.equal(still(x, keys=drawn), still(changed, keys=drawn))


def test_the_gradient_of_the_deterministic_pass_is_its_slope():
    x = (0.3 + 0.4 * toys.images(2)).double().requires_grad_(True)
    still = reconstruct(masks="fixed-global", blend=0.5)
    drawn = keys(0, "a", torch.arange(2))

    def function(images):
        return still.differentiable(images, keys=drawn, gradient=GradientConfig(mode="exact"))

    assert torch.autograd.gradcheck(function, (x,), eps=1e-6, atol=1e-6)


def test_a_blend_outside_zero_and_one_is_refused():
    with pytest.raises(RecipeError, match="between 0 and 1"):
        reconstruct(blend=1.5)
