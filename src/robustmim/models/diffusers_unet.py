"""A DDPM checkpoint of the `diffusers` package as a denoiser: any `UNet2DModel`, such as google/ddpm-cifar10-32.

Such a network knows images x_t = √ᾱ x + √(1 − ᾱ) n at steps t = 0 … T − 1 of a schedule. An image y = x + σ n divided by
√(1 + σ²) is one of them, at the step where σ = √((1 − ᾱ) / ᾱ); between two steps t is interpolated in ln σ. The answer ε, x or
v is turned into an estimate of the clean image (Ho et al. 2020, Eq. 15; Salimans and Ho 2022, section 4):

    D = y − σ ε,    D = x,    D = y / (1 + σ²) − σ v / √(1 + σ²)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustmim.errors import CheckpointError, EnvironmentUnusable, InputError
from robustmim.models.edm import per_pixel
from robustmim.runs import read_json
from robustmim.types import Labels, PerSample, Signed


class DiffusersUNet(nn.Module):
    """A discrete-time network of `diffusers` as a `Denoiser`, unconditional.

    Noise levels beyond the schedule's last, or below its first, get the step at its end. The bits of a result may depend on
    the size of the batch, as the network embeds its step in one matrix product for all samples.

    Args:
        network: called with scaled images and steps `[B]`; its answer has a field `sample`.
        kept: ᾱ of each step, falling.
        prediction: what it answers: "epsilon", "sample" or "v_prediction".
        image_size: height and width of the images it draws, in pixels.

    Raises:
        CheckpointError: another prediction.
    """

    levels: Tensor

    def __init__(self, network: nn.Module, kept: Tensor, *, prediction: str = "epsilon", image_size: int = 32) -> None:
        super().__init__()
        if prediction not in ("epsilon", "sample", "v_prediction"):
            raise CheckpointError(
                f"a network that predicts {prediction!r} is not known: epsilon, sample or v_prediction"
            )
        self.network, self.prediction = network, prediction
        self.image_size, self.classes = image_size, 0
        kept = kept.double()
        self.register_buffer("levels", ((1 - kept) / kept).sqrt(), persistent=False)

    def steps(self, sigma: PerSample) -> PerSample:
        """Return the step of each noise level, between two of them a fraction."""
        known, wanted = self.levels.log(), sigma.double().log()
        last = len(known) - 1
        after = torch.searchsorted(known, wanted).clamp(1, last)
        part = (wanted - known[after - 1]) / (known[after] - known[after - 1])
        return (after - 1 + part).clamp(0, last).to(sigma)

    def denoise(self, noised: Signed, sigma: PerSample, *, labels: Labels | None = None) -> Signed:
        """Estimate the clean image.

        Args:
            noised: images in [-1, 1] plus Gaussian noise.
            sigma: its deviation, above 0.
            labels: none.

        Raises:
            InputError: labels, which the network does not take.
        """
        if labels is not None:
            raise InputError("this network was trained without classes and takes no labels")
        level = per_pixel(sigma)
        size = (1 + level.square()).sqrt()
        answer = self.network(noised / size, self.steps(sigma)).sample
        # A network that learns its variance answers twice as many channels.
        answer = answer[:, : noised.shape[1]].to(noised.dtype)
        if self.prediction == "epsilon":
            return noised - level * answer
        if self.prediction == "sample":
            return answer
        return noised / size.square() - level / size * answer


def is_diffusers(folder: str | Path) -> bool:
    """Tell whether a folder holds a pipeline of `diffusers`."""
    return (Path(folder) / "model_index.json").exists()


def _part(folder: Path, name: str, file: str) -> Path:
    # Older pipelines keep the parts side by side in one folder.
    for place in (folder / name, folder):
        if (place / file).exists():
            return place
    raise CheckpointError(f"{folder} holds no {name}/{file}: it is no DDPM pipeline of diffusers")


def open_diffusers(folder: str | Path) -> DiffusersUNet:
    """Load a DDPM pipeline from its folder: U-Net as safetensors, and schedule.

    Raises:
        CheckpointError: parts are missing or damaged, or the network is another or knows classes.
        EnvironmentUnusable: the package is not installed.
    """
    folder = Path(folder)
    network_folder, schedule_folder = (
        _part(folder, "unet", "config.json"),
        _part(folder, "scheduler", "scheduler_config.json"),
    )
    config: dict[str, Any] = read_json(network_folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(
            f"{folder} holds a {config.get('_class_name')}, but only a UNet2DModel denoises pixels here"
        )
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise CheckpointError(f"{folder} is told classes; only unconditional networks purify here")
    if not (network_folder / "diffusion_pytorch_model.safetensors").exists():
        raise CheckpointError(
            f"{network_folder} holds no diffusion_pytorch_model.safetensors; pickled weights are not read, save them again "
            "with safe_serialization=True"
        )
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ImportError as error:
        raise EnvironmentUnusable(
            f"{folder} needs the package diffusers: pip install 'robustmim[diffusers]'"
        ) from error
    try:
        network = UNet2DModel.from_pretrained(network_folder, use_safetensors=True, local_files_only=True)
        schedule = DDPMScheduler.from_config(read_json(schedule_folder / "scheduler_config.json"))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return DiffusersUNet(
        network,
        schedule.alphas_cumprod,
        prediction=schedule.config.prediction_type,
        image_size=int(config.get("sample_size") or 32),
    )
