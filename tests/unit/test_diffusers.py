"""A DDPM network of `diffusers` as a denoiser: schedule and prediction against closed forms, files against the package."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from robustmim.config import DiffusionConfig, PurifyRecipe
from robustmim.errors import CheckpointError, InputError
from robustmim.models.diffusers_unet import DiffusersUNet, open_diffusers
from robustmim.models.edm import ImageDenoiser
from robustmim.models.zoo import load_model
from robustmim.purify.load import make_purifier
from robustmim.rng import keys

MEAN, DEVIATION = -0.1, 0.2
KEPT = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
DRAWN = keys(0, "test", torch.arange(4))


class KnownNoise(torch.nn.Module):
    """The best answers for Gaussian data N(m, s²), at whole steps of the schedule: x_t is N(√ᾱ m, ᾱ s² + 1 − ᾱ)."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction

    def forward(self, scaled, steps):
        assert torch.equal(steps, steps.round())
        kept = KEPT[steps.long()].view(-1, 1, 1, 1)
        surprise = (scaled - kept.sqrt() * MEAN) / (kept * DEVIATION**2 + 1 - kept)
        noise = (1 - kept).sqrt() * surprise
        clean = MEAN + kept.sqrt() * DEVIATION**2 * surprise
        answer = {"epsilon": noise, "sample": clean, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean}
        learned_variance = torch.full_like(scaled, torch.nan)
        return SimpleNamespace(sample=torch.cat([answer[self.prediction], learned_variance], dim=1))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_each_prediction_becomes_the_best_denoiser(prediction):
    model = DiffusersUNet(KnownNoise(prediction), KEPT, prediction=prediction)
    assert isinstance(model, ImageDenoiser)
    sigma = model.levels[[0, 99, 400, 999]]
    noised = DRAWN.normal(3, 4, 4).double() * sigma.view(-1, 1, 1, 1)
    square = sigma.view(-1, 1, 1, 1).square()
    best = (DEVIATION**2 * noised + square * MEAN) / (DEVIATION**2 + square)
    torch.testing.assert_close(model.denoise(noised, sigma), best)


def test_levels_between_two_steps_are_interpolated_and_others_kept_inside():
    model = DiffusersUNet(KnownNoise("epsilon"), KEPT)
    between = math.sqrt(model.levels[100] * model.levels[101])
    found = model.steps(torch.tensor([between, 1e-5, 1e4, model.levels[7]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([100.5, 0.0, 999.0, 7.0], dtype=torch.float64))


def test_mistakes_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="flow"):
        DiffusersUNet(KnownNoise("epsilon"), KEPT, prediction="flow")
    with pytest.raises(InputError, match="no labels"):
        DiffusersUNet(KnownNoise("epsilon"), KEPT).denoise(
            torch.zeros(1, 3, 4, 4), torch.ones(1), labels=torch.zeros(1).long()
        )
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("{}")
    for config, says in (
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"_class_name": "UNet2DModel", "num_class_embeds": 10}, "classes"),
        ({"_class_name": "UNet2DModel"}, "pickled"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=says):
            load_model(tmp_path)
    with pytest.raises(CheckpointError, match="masked-model"):
        load_model(tmp_path, kind="masked-model")


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_a_saved_pipeline_answers_as_the_package_does(tmp_path, flat):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=8,
    ).eval()
    schedule = diffusers.DDPMScheduler(num_train_timesteps=1000)
    diffusers.DDPMPipeline(network, schedule).save_pretrained(tmp_path)
    if flat:
        for file in [*(tmp_path / "unet").iterdir(), *(tmp_path / "scheduler").iterdir()]:
            file.rename(tmp_path / file.name)
    model = open_diffusers(tmp_path)
    clean, noise, step = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16), torch.tensor([60, 60])
    scaled = schedule.add_noise(clean, noise, step)
    sigma = model.levels[step].float()
    with torch.no_grad():
        told = network(scaled, step).sample
        expected = schedule.step(told, 60, scaled, generator=torch.Generator()).pred_original_sample
        estimate = model.denoise(clean + sigma.view(-1, 1, 1, 1) * noise, sigma)
    # The package clips its estimate.
    torch.testing.assert_close(estimate.clamp(-1, 1), expected, atol=1e-4, rtol=1e-4)
    recipe = PurifyRecipe(masked_model=str(tmp_path), diffusion=DiffusionConfig(sigma=0.1, steps=2, spacing="vp"))
    purified = make_purifier(recipe)(clean / 2 + 0.5, keys=DRAWN[:2])
    assert purified.shape == clean.shape and purified.min() >= 0 and purified.max() <= 1
