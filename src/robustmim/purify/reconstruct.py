"""Purification in one pass: what the masked model predicts for each cell when that cell is hidden.

A prediction that does not see a pixel cannot copy the noise in it (Batson and Royer 2019, Noise2Self), so this is a
denoiser; and it takes forward passes only, 1 / mask ratio of them, where a descent takes gradients step after step. That is
what randomised smoothing can afford for thousands of noisy copies. As a defence it must be attacked through its gradient,
which is exact and cheap (`differentiable`).
"""

from __future__ import annotations

import torch

from robustmim.config import GradientConfig, ReconstructionConfig
from robustmim.data.images import check_images
from robustmim.errors import RecipeError
from robustmim.geometry import EVERYWHERE
from robustmim.models.masked import MaskedModel, PixelModel, RandomisedModel, freeze, with_draws
from robustmim.models.masking import enlarge, hidden_count, partition_masks
from robustmim.purify.amrm import padded_batch
from robustmim.purify.traits import Callback, Traits
from robustmim.registry import register
from robustmim.rng import Keys
from robustmim.types import Images, PerSample


@register("purifier", "reconstruction")
class MaskedReconstruction:
    """Replace each cell by its prediction: (1 − w) · input + w · prediction.

    The cells of an image are dealt at random into disjoint masks, or by one deal for all images; each is hidden once and
    predicted from what the mask leaves visible. Cells that are left over, where the ratio does not divide the grid, keep
    their pixels.

    Args:
        model: any `MaskedModel`; it is frozen and put into evaluation mode.
        config: the ratio of the masks, how they are dealt, and the weight w. At ratio 0 nothing is hidden.

    Raises:
        RecipeError: a ratio outside [0, 1), ratio 0 for a model that does not predict visible pixels, or a weight outside
            [0, 1].
    """

    def __init__(self, model: MaskedModel, config: ReconstructionConfig) -> None:
        if not 0 <= config.blend <= 1:
            raise RecipeError(f"reconstruction: the blend lies between 0 and 1, but this one is {config.blend}")
        if config.mask_ratio:
            hidden_count(2, config.mask_ratio)  # refuses a ratio that no grid can have
        elif not isinstance(model, PixelModel):
            raise RecipeError(
                f"reconstruction: at mask ratio 0 nothing is hidden, and {type(model).__name__} predicts nothing that it sees; "
                "take a masked convolution, or a ratio above 0"
            )
        if isinstance(model, torch.nn.Module):
            freeze(model)
        self.model, self.config = model, config

    @property
    def traits(self) -> Traits:
        """What an attacker must know."""
        noisy = isinstance(self.model, RandomisedModel) and self.model.randomised
        dealt = self.config.masks == "fresh" and self.config.mask_ratio > 0
        return Traits(randomised=dealt or noisy, optimises_at_test_time=False, steps=1)

    @property
    def mask_ratio(self) -> float:
        """Fraction of the cells that its masks hide."""
        return self.config.mask_ratio

    def __call__(self, x: Images, *, keys: Keys, callback: Callback | None = None) -> Images:
        """Return purified images.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample, for its masks.
            callback: told the single step, as by `AMRMPure`: "value" is the mean masked loss, "gradient" what the
                prediction would take away, x − prediction.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        size = len(x)
        if size == 0:
            return x
        check_images(x)
        with torch.inference_mode(False), torch.no_grad():
            predicted, loss = self.predict(x.detach().clone(), keys)
            if callback is not None:
                state = {"step": 0, "x": x, "value": loss, "gradient": x - predicted, "center": x, "ball": EVERYWHERE}
                callback(state)
            return self._blended(x, predicted)

    def differentiable(self, x: Images, *, keys: Keys, gradient: GradientConfig, progress: float = 0.0) -> Images:
        """Return purified images with their exact gradient.

        There is no sign to smooth, no ball and no iteration: every mode but "identity" means the exact gradient here, and
        the other settings have nothing to act on.

        Args:
            x: `[B, C, H, W]` in [0, 1].
            keys: one per sample.
            gradient: not "identity", which `Defended` sees to.
            progress: of the attack; nothing is annealed.

        Raises:
            InputError: images out of range, not finite, or of a size the model does not take.
        """
        check_images(x)
        return self._blended(x, self.predict(x, keys)[0])

    def predict(self, x: Images, keys: Keys) -> tuple[Images, PerSample]:
        """Return the prediction of every cell, and the mean loss over the masks (of all pixels, where nothing is hidden)."""
        size = len(x)
        x, keys = padded_batch(x, keys)
        if not self.config.mask_ratio:
            assert isinstance(self.model, PixelModel)
            nothing = torch.zeros(len(x), 1, *x.shape[-2:], dtype=torch.bool, device=x.device)
            seen = self.model.predict(x, nothing)
            return seen[:size], (seen - x).square().mean((1, 2, 3))[:size]
        dealt = keys.fold("mask") if self.config.masks == "fresh" else keys.shared()
        masks = partition_masks(dealt, self.model.grid(*x.shape[-2:]), self.config.mask_ratio)
        predicted, losses = x, []
        for draw, mask in enumerate(masks):
            found = with_draws(self.model, keys, draw=draw).reconstruct(x, mask, need_pixels=True)
            assert found.pixels is not None
            predicted = torch.where(enlarge(mask, self.model.patch_size), found.pixels, predicted)
            losses.append(found.loss)
        return predicted[:size], torch.stack(losses).mean(0)[:size]

    def _blended(self, x: Images, predicted: Images) -> Images:
        # lerp is exact at both ends, and where the two are equal.
        return torch.lerp(x, predicted, self.config.blend).clamp(0, 1)
