"""Noisy image modelling (NIM; You et al. 2023): an autoencoder that has learnt to undo noise instead of masks.

Its defence, De³, adds noise to an image, lets the autoencoder denoise it, and classifies the result. What the released code
trains is a masked autoencoder that sees all of a noised image and predicts each patch normalised; when it purifies, it takes
the mean and the deviation of each patch from the *attacked* image, before the noise, so that an attack of low frequency passes
untouched. So it does here with such a network; one whose target is pixels leaves no way around. The published networks are of
ImageNet size; `pretrain/nim-mae-cifar10` trains a small one, and the paper's numbers are not reproduced.
"""

from __future__ import annotations

import torch
from torch import nn

from robustmim.errors import RecipeError
from robustmim.models.edm import Denoiser, to_signed, to_unit
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import freeze
from robustmim.purify.amrm import padded_batch
from robustmim.purify.baselines.one_pass import OnePass
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images


@register("purifier", "nim")
class NoisyImageModelling(OnePass):
    """Add noise, and let one pass of the network take it away.

    Args:
        model: a masked autoencoder that was trained on all patches of noised images, none hidden; or a `Denoiser`, which is told
            the noise level. It is frozen. With a normalised target, each patch gets the mean and the deviation that it has in
            the image as it came.
        noise: deviation of the noise in pixel fractions; the paper purifies with 70/255 and 140/255.

    Raises:
        RecipeError: a deviation that is not above zero, or a model that cannot denoise.
    """

    randomised = True

    def __init__(self, model: nn.Module, *, noise: float = 70 / 255) -> None:
        if not noise > 0:
            raise RecipeError(f"nim: noise is a standard deviation above 0, but this one is {noise}")
        if not isinstance(model, MaskedAutoencoder | Denoiser):
            raise RecipeError(f"nim needs a masked autoencoder or a denoiser, and a {type(model).__name__} is neither")
        freeze(model)
        self.network: MaskedAutoencoder | Denoiser = model
        self.noise = noise

    def purified(self, x: Images, keys: Keys) -> Images:
        """Return denoised images; see `OnePass`."""
        size = len(x)
        x, keys = padded_batch(x, keys)
        noised = x + self.noise * keys.fold("noise").normal(*x.shape[1:]).to(x)
        if isinstance(self.network, MaskedAutoencoder):
            grid = self.network.grid(*x.shape[-2:])
            nothing = torch.zeros(len(x), *grid, dtype=torch.bool, device=x.device)
            found = self.network.render(noised, nothing, reference=x)
        else:
            level = x.new_full((len(x),), 2 * self.noise)
            found = to_unit(self.network.denoise(to_signed(noised), level)).clamp(0, 1)
        return found[:size]
