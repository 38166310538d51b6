"""The guided convolution: begins as the convolution it is made from, heeds the guide alone, and never trains it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.cli.main import main
from robustmim.config import GradientConfig, ReconstructionConfig, RobustifyRecipe
from robustmim.data.loader import Batch
from robustmim.models.guided_conv import GuidedConvolution, open_guided
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.zoo import load_model, save_model
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.registry import build
from robustmim.rng import keys
from robustmim.train.robustify import Robustification, merge_low_rank

SHAPE = {"patch_size": 1, "widths": (8, 16), "blocks": (1, 1)}
GUIDE = {"name": "fast-cnn", "options": {"classes": 10, "widths": (8, 8, 8), "whitened": False}}
x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> nn.Module:
    """Move every weight away from where it begins."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def heeding() -> GuidedConvolution:
    model = GuidedConvolution(guide=GUIDE, **SHAPE)
    shaken(model)
    # A guide whose answers differ from image to image.
    model.guide.head.weight.data *= 40
    return model


@pytest.fixture
def saved(tmp_path):
    """Return folders of a masked convolution and of a classifier."""
    torch.manual_seed(0)
    classes = [str(k) for k in range(10)]
    about = {"kind": "masked-model", "name": "masked-conv", "options": SHAPE, "classes": []}
    save_model(tmp_path / "plain", shaken(MaskedConvolution(**SHAPE)), about)
    save_model(tmp_path / "guide", heeding().guide, {"kind": "classifier", "classes": classes, **GUIDE})
    return tmp_path / "plain", tmp_path / "guide"


def test_begins_as_the_convolution_it_is_made_from_with_the_guide_as_it_was_saved(saved, tmp_path):
    model, about = open_guided(*saved)
    hidden = torch.rand(3, 1, 32, 32) < 0.3
    assert torch.equal(model.predict(x, hidden), load_model(saved[0]).predict(x, hidden))
    assert torch.equal(model.guide(x), load_model(saved[1])(x))
    save_model(tmp_path / "guided", shaken(model), about)
    again = load_model(tmp_path / "guided", kind="masked-model")
    assert isinstance(again, GuidedConvolution)
    assert torch.equal(model.predict(x, hidden), again.predict(x, hidden))


def test_another_guide_takes_the_place_of_the_one_there_was(saved, tmp_path):
    before, about = open_guided(*saved)
    before = shaken(before)
    save_model(tmp_path / "guided", before, about)
    pair = {"members": [GUIDE, GUIDE], "classes": 10}
    other = build("classifier", "ensemble", **pair)
    classes = [str(k) for k in range(10)]
    save_model(
        tmp_path / "pair", other, {"kind": "classifier", "classes": classes, "name": "ensemble", "options": pair}
    )
    model, config = open_guided(tmp_path / "guided", tmp_path / "pair")
    assert config["options"]["guide"]["name"] == "ensemble"
    torch.testing.assert_close(model.guide(x), other.eval()(x), rtol=0, atol=0)
    for name, value in before.state_dict().items():
        if not name.startswith("guide."):
            assert torch.equal(model.state_dict()[name], value)


def test_another_belief_makes_another_image():
    model, nothing = heeding(), torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    before = model.predict(x, nothing)
    model.guide.head.weight.data = model.guide.head.weight.flip(0)
    assert not torch.allclose(before, model.predict(x, nothing), atol=1e-4)


def test_what_is_hidden_does_not_reach_the_guide_either():
    model = heeding()
    hidden = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2)) < 0.3
    changed = torch.where(hidden, 1 - x, x)
    assert torch.equal(model.predict(x, hidden), model.predict(changed, hidden))


def test_gradient_through_guide_and_convolution_equals_finite_differences():
    purifier = MaskedReconstruction(heeding().double(), ReconstructionConfig(mask_ratio=0))
    drawn = keys(0, "test", torch.arange(3))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    point = (0.2 + 0.6 * x.double()).requires_grad_()

    def value(image: torch.Tensor) -> torch.Tensor:
        return (weight * purifier.differentiable(image, keys=drawn, gradient=GradientConfig(mode="exact"))).sum()

    (slope,) = torch.autograd.grad(value(point), point)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        change = (value(point + 1e-6 * direction) - value(point - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((slope * direction).sum(), change, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weights", ["all", "decoder", "low-rank"])
def test_the_guide_is_never_trained(weights):
    model = heeding()
    before = {name: value.clone() for name, value in model.guide.state_dict().items()}
    recipe = RobustifyRecipe(
        masked_model="made up", reconstruction=ReconstructionConfig(mask_ratio=0), weights=weights, attack_steps=1
    )
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    objective = Robustification(model, classifier, recipe)
    batch = Batch(x, torch.tensor([0, 1, 2]), torch.arange(3))
    model.train()
    objective(model, batch, keys(0, "step", batch.ids, 0), 0)["loss"].backward()
    with torch.no_grad():
        for weight in objective.parameters:
            assert weight.grad is not None
            weight.sub_(weight.grad)
    merge_low_rank(model)
    assert model.guide.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.guide.state_dict().items())


def test_the_command_trains_what_is_told(saved, tmp_path):
    pytest.importorskip("foolbox")
    words = ["robustify", "guided-conv-cifar10", "--masked_model", str(saved[0]), "--guide", str(saved[1])]
    words += ["--classifier", "fast-cnn-cifar10", "--arch", "null", "--out", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "4", "--run.batch_size", "2"]
    words += ["--validation.name", "samples-cifar10", "--validation.limit", "2", "--run.epochs", "1"]
    assert main(words) == 0
    trained = load_model(tmp_path / "run", kind="masked-model")
    assert isinstance(trained, GuidedConvolution)
    assert any(layer.weight.abs().sum() > 0 for layer in trained.told_down)
    torch.testing.assert_close(trained.guide(x), load_model(saved[1])(x), rtol=0, atol=0)


def test_only_a_masked_convolution_can_be_given_a_guide(saved, capsys, tmp_path):
    words = ["robustify", "guided-conv-cifar10", "--masked_model", "mae-patch4-cifar10", "--guide", str(saved[1])]
    words += ["--classifier", "fast-cnn-cifar10", "--arch", "null", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*words, "--data.name", "samples-cifar10", "--validation.name", "samples-cifar10"]) == 2
    assert "only a masked-conv can be given a guide" in capsys.readouterr().err
