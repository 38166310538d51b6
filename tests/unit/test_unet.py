"""The U-Net that denoises: preconditioning, training, and what the commands do with a denoiser that knows no masks."""

from __future__ import annotations

import pytest
import torch

from robustmim.cli.main import main
from robustmim.config import DenoisingConfig, DiffusionConfig, ModelConfig, PretrainRecipe, PurifyRecipe
from robustmim.data.images import read_image
from robustmim.data.loader import Batch
from robustmim.errors import InputError, RecipeError
from robustmim.models.edm import Denoiser, ImageDenoiser, precondition
from robustmim.models.masked import MaskedModel
from robustmim.models.masked_denoiser import MaskedDiffusion
from robustmim.models.unet import UNet
from robustmim.models.zoo import load_model, save_model, saved_config
from robustmim.purify.load import describe, make_purifier
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.runs import read_json, read_lines
from robustmim.train.denoising import Denoising
from robustmim.train.pretraining import pretraining_objective

OPTIONS = {"image_size": 16, "widths": [8, 16], "blocks": [1, 1], "condition_width": 8}
KEYS = keys(0, "test", torch.arange(5))
x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def tiny(**options):
    torch.manual_seed(0)
    model = UNet(**{**OPTIONS, "widths": (8, 16), "blocks": (1, 1), **options})
    for parameter in model.parameters():  # away from the zeros it begins with
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def saved(folder, **options):
    save_model(folder, tiny(**options), saved_config("denoiser", ModelConfig(name="unet", options=OPTIONS | options)))
    return str(folder)


def test_it_begins_as_the_best_linear_denoiser_and_is_no_masked_model():
    model = UNet(widths=(8, 16), blocks=(1, 1))
    noised, sigma = KEYS.normal(3, 16, 16), torch.tensor([0.01, 0.2, 1.0, 5.0, 80.0])
    best = precondition(sigma).skip.view(-1, 1, 1, 1) * noised
    torch.testing.assert_close(model.denoise(noised, sigma), best)
    assert isinstance(model, Denoiser) and isinstance(model, ImageDenoiser)
    assert not isinstance(model, MaskedModel | MaskedDiffusion)


def test_little_noise_leaves_an_image_as_it_is_and_levels_are_told_apart():
    model, noised = tiny(), KEYS.normal(3, 16, 16)
    near = model.denoise(noised, torch.full((5,), 1e-4))
    torch.testing.assert_close(near, noised, atol=1e-3, rtol=0)
    network = [model._network(noised, torch.full((5,), value), None) for value in (-1.0, 0.5)]
    assert (network[0] - network[1]).abs().max() > 1e-2


def test_every_layer_can_be_differentiated_twice():
    model = tiny().double()
    noised, sigma = KEYS[:1].normal(3, 8, 8).double(), torch.tensor([0.3], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: model.denoise(z, sigma), noised.requires_grad_(), fast_mode=True)


def test_sizes_and_classes():
    model = tiny(classes=3)
    noised, sigma = KEYS.normal(3, 20, 12), torch.full((5,), 0.3)
    assert model.denoise(noised, sigma).shape == noised.shape
    none = torch.full((5,), 3)
    assert torch.equal(model.denoise(noised, sigma), model.denoise(noised, sigma, labels=none))
    assert not torch.equal(model.denoise(noised, sigma), model.denoise(noised, sigma, labels=none - 1))
    with pytest.raises(InputError, match="multiples of 4"):
        model.denoise(KEYS.normal(3, 18, 16), sigma)
    with pytest.raises(InputError, match="without classes"):
        tiny().denoise(noised, sigma, labels=none)
    for wrong in ({"blocks": (1,)}, {"widths": (8, 12)}, {"classes": -1}):
        with pytest.raises(RecipeError, match="unet"):
            tiny(**wrong)


def test_training_brings_the_loss_down():
    torch.manual_seed(0)
    model = UNet(widths=(16, 32), blocks=(1, 1), condition_width=16)
    smooth = torch.linspace(0.2, 0.8, 16).expand(16, 3, 16, 16).contiguous()
    batch = Batch(smooth, torch.zeros(16, dtype=torch.int64), torch.arange(16))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective, fixed = Denoising(DenoisingConfig(log_deviation=0.5)), keys(1, "check", batch.ids)
    before = objective(model, batch, fixed, 0)["loss"].item()
    for step in range(40):
        loss = objective(model, batch, keys(0, "step", batch.ids, step), step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert objective(model, batch, fixed, 0)["loss"].item() < 0.7 * before


def test_an_objective_without_masks():
    recipe = PretrainRecipe(model=ModelConfig(name="unet"), mask_ratios=(0.0,))
    assert isinstance(pretraining_objective(recipe, tiny()), Denoising)
    for wrong, says in (
        ({"mask_ratios": (0.5,)}, "no masks"),
        ({"input_noise": Radius("8/255")}, "trained to denoise"),
    ):
        with pytest.raises(RecipeError, match=says):
            pretraining_objective(
                PretrainRecipe(model=ModelConfig(name="unet"), **({"mask_ratios": (0.0,)} | wrong)), tiny()
            )


def test_some_labels_are_dropped():
    model, seen = tiny(classes=3), []
    model.denoise = lambda noised, sigma, labels=None: seen.append(labels) or noised  # type: ignore[method-assign]
    batch = Batch(torch.rand(400, 3, 4, 4), torch.full((400,), 1), torch.arange(400))
    Denoising(DenoisingConfig(label_dropout=0.3))(model, batch, keys(0, "step", batch.ids), 0)
    assert set(seen[0].tolist()) == {1, 3}
    assert (seen[0] == 3).float().mean().item() == pytest.approx(0.3, abs=0.1)


def test_purification_by_a_saved_one_is_each_samples_own(tmp_path):
    recipe = PurifyRecipe(
        masked_model=saved(tmp_path / "unet"), diffusion=DiffusionConfig(steps=3, solver="vp-sde", spacing="vp")
    )
    purifier = make_purifier(recipe)
    together = purifier(x, keys=KEYS)
    assert torch.equal(purifier(x[3:4], keys=KEYS[3:4])[0], together[3])
    assert together.min() >= 0 and together.max() <= 1
    assert "solver vp-sde, spacing vp" in describe(recipe)


def test_pretrain_and_sample_take_it(tmp_path, capsys):
    pytest.importorskip("foolbox")
    words = ["pretrain", "unet-micro-cifar10", "--out", str(tmp_path / "run"), "--device", "cpu", "--run.epochs", "1"]
    words += ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "8", "--run.batch_size", "4"]
    words += ["--validation.name", "samples-cifar10", "--validation.limit", "4"]
    options = "{image_size: 32, widths: [8, 16], blocks: [1, 1], condition_width: 8}"
    assert main([*words, "--model.options", options, "--probe.classifier", "fast-cnn-cifar10"]) == 2
    assert "no masks to be probed" in capsys.readouterr().err
    assert main([*words, "--model.options", options]) == 0
    assert read_lines(tmp_path / "run" / "log.jsonl")[-1]["denoising_loss"] > 0
    assert read_json(tmp_path / "run" / "config.json")["kind"] == "denoiser"
    assert isinstance(load_model(tmp_path / "run"), UNet)
    out = tmp_path / "samples.png"
    assert (
        main(["sample", str(tmp_path / "run"), "--out", str(out), "--count", "2", "--steps", "2", "--device", "cpu"])
        == 0
    )
    assert read_image(out).shape == (3, 32, 64)
