"""A masked diffusion model as a `MaskedModel`: what AMRM-Pure must choose to descend one (A12 and A13).

MaskDiT predicts from a noised image, so a reconstruction needs a noise level and noise. Both are drawn here, from keys; the
network is asked under the mask that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustmim.config import DenoiserConfig
from robustmim.errors import RecipeError
from robustmim.models.edm import (
    SIGMA_DATA,
    Denoiser,
    level_at,
    log_normal_levels,
    per_pixel,
    precondition,
    to_signed,
    to_unit,
)
from robustmim.models.masked import MaskedModel, Reconstruction
from robustmim.models.masking import enlarge
from robustmim.models.record import AttentionRecorder
from robustmim.models.vit import patchify, unpatchify
from robustmim.rng import Keys
from robustmim.types import Images, Labels, Mask, PerSample, Signed

_DEFAULT = DenoiserConfig()


@runtime_checkable
class MaskedDiffusion(Denoiser, Protocol):
    """A denoiser that can be asked with patches hidden, such as MaskDiT.

    Attributes:
        patch_size: pixels on a side of a patch.
        image_size: height and width of its images in pixels.
        target: what it predicts for hidden patches: pixels, or pixels normalised by the patch's mean and deviation.
    """

    patch_size: int
    image_size: int
    target: Literal["pixels", "normalised"]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask for an image of this size; InputError where it does not fit."""

    def denoise(
        self, noised: Signed, sigma: PerSample, *, mask: Mask | None = None, labels: Labels | None = None
    ) -> Signed:
        """Estimate the clean image from the visible patches; nothing of the hidden ones may reach the estimate."""


@dataclass(frozen=True, kw_only=True)
class DenoisingError:
    """What a masked diffusion model got wrong.

    Attributes:
        denoising: `[B]`, squared error of the visible pixels with EDM's weight λ(σ) (EDM, Eq. 2 and 8).
        hidden: `[B]`, squared error of the hidden patches, in units of σ_data² or, normalised, as in He et al. 2022; 0
            where nothing is hidden.
        estimate: the network's estimate with hidden patches in the units of pixels.
    """

    denoising: PerSample
    hidden: PerSample
    estimate: Signed


def denoising_error(
    network: MaskedDiffusion,
    seen: Signed,
    target: Signed,
    mask: Mask | None,
    *,
    sigma: PerSample,
    noise: Signed,
    labels: Labels | None = None,
    hidden_target: Literal["clean", "noised"] = "clean",
) -> DenoisingError:
    """Noise an image, have it denoised under a mask, and compare.

    Args:
        network: the model.
        seen: images that are noised and shown, in [-1, 1].
        target: clean images that the estimate is compared with.
        mask: what is hidden; None for nothing.
        sigma: noise level of each sample.
        noise: standard normal.
        labels: classes, where the model knows any.
        hidden_target: what hidden patches are compared with: `target`, or `target` with the same noise.
    """
    added = per_pixel(sigma) * noise
    estimate = network.denoise(seen + added, sigma, mask=mask, labels=labels)
    size, grid = network.patch_size, network.grid(*seen.shape[-2:])
    if mask is None:
        mask = torch.zeros(len(seen), *grid, dtype=torch.bool, device=seen.device)
    found = patchify(estimate, size)
    wrong = (found - patchify(target, size)).square().mean(-1)
    denoising = precondition(sigma).weight * _mean_where(~mask, wrong)

    goal = patchify(target if hidden_target == "clean" else target + added, size)
    if network.target == "pixels":
        missed = (found - goal).square().mean(-1) / SIGMA_DATA**2
    else:
        mean, deviation = goal.mean(-1, keepdim=True), (goal.var(-1, keepdim=True) + 1e-6).sqrt()
        missed = (found - (goal - mean) / deviation).square().mean(-1)
        # A normalised prediction tells nothing of a patch's mean and deviation: they are taken from the goal.
        hidden = mask.flatten(1)[..., None]
        estimate = unpatchify(torch.where(hidden, found * deviation + mean, found), size, grid)
    return DenoisingError(denoising=denoising, hidden=_mean_where(mask, missed), estimate=estimate)


def _mean_where(chosen: Mask, values: Float[Tensor, "batch patches"]) -> PerSample:
    weight = chosen.flatten(1).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)


class MaskedDenoiser(nn.Module):
    """A masked diffusion model with the choices of a `DenoiserConfig`.

    Without keys (see `drawn`), noise and level are those of one fixed draw, the same for every sample.

    Args:
        network: the model; it is told no class (A14).
        config: noise level, draws and loss.

    Raises:
        RecipeError: a noise level that is not above zero, or one that rises.
    """

    def __init__(
        self,
        network: MaskedDiffusion,
        config: DenoiserConfig = _DEFAULT,
        *,
        keys: Keys | None = None,
        draw: int = 0,
        progress: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < config.final_sigma <= config.sigma and config.noise_level == "descending":
            raise RecipeError(
                f"denoiser: noise falls from sigma to final_sigma, above 0, but here from {config.sigma} to {config.final_sigma}"
            )
        if config.sigma <= 0:
            raise RecipeError(f"denoiser: the noise level sigma is above 0, but this one is {config.sigma}")
        self.network, self.config = network, config
        self.patch_size, self.image_size = network.patch_size, network.image_size
        self.randomised = config.draws != "global"
        self._keys, self._draw, self._progress = keys, draw, progress

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of the mask for an image of this size; InputError where it does not fit."""
        return self.network.grid(height, width)

    def drawn(self, keys: Keys, *, draw: int = 0, progress: float = 0.0) -> MaskedModel:
        """Return the model with the noise of one draw.

        Args:
            keys: one per sample.
            draw: number of the draw.
            progress: of the descent in [0, 1], for a descending level.
        """
        return MaskedDenoiser(self.network, self.config, keys=keys, draw=draw, progress=progress)

    def _draws(self, x: Signed) -> tuple[PerSample, Signed]:
        """Return noise level and standard normal noise of each sample."""
        config = self.config
        keys = Keys(torch.zeros(len(x), dtype=torch.int64, device=x.device)) if self._keys is None else self._keys
        if config.draws == "global":
            keys = keys.shared()
        keys = keys.fold("denoiser", 0 if config.draws == "fixed" else self._draw)
        if config.noise_level == "log-normal":
            sigma = log_normal_levels(keys.fold("level"), config.log_mean, config.log_deviation).to(x)
        elif config.noise_level == "descending":
            sigma = x.new_full((len(x),), level_at(self._progress, config.sigma, config.final_sigma))
        else:
            sigma = x.new_full((len(x),), config.sigma)
        return sigma, keys.fold("noise").normal(*x.shape[1:]).to(x)

    def reconstruct(
        self,
        x: Images,
        mask: Mask,
        *,
        target: Images | None = None,
        need_pixels: bool = False,
        need_attention: bool = False,
    ) -> Reconstruction:
        """Noise `x`, predict, and compare with `target` (default: `x`).

        With the loss "hidden" this is what `MaskedModel` promises; the two others look at visible pixels, by design. The
        pixels returned are the visible ones of `x` with the predictions put in, whatever the loss.

        Raises:
            InputError: an image or a mask of the wrong size.
        """
        seen, goal = to_signed(x), to_signed(x if target is None else target)
        sigma, noise = self._draws(seen)
        config = self.config

        def compare() -> DenoisingError:
            return denoising_error(
                self.network, seen, goal, mask, sigma=sigma, noise=noise, hidden_target=config.hidden_target
            )

        attention: list[Tensor] | None = None
        if need_attention:
            with AttentionRecorder(self) as recorder:
                error = compare()
            attention = recorder.maps
        else:
            error = compare()
        loss = {
            "hidden": error.hidden,
            "denoising": error.denoising,
            "own": error.denoising + config.hidden_weight * error.hidden,
        }[config.loss]
        pixels = None
        if need_pixels:
            pixels = torch.where(enlarge(mask, self.patch_size), to_unit(error.estimate), x).clamp(0, 1)
        return Reconstruction(loss=loss, pixels=pixels, attention=attention)
