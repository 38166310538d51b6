"""A classifier with folded norms is the same function, and the one it was made of is left alone."""

import pytest
import torch
from torch import nn

from robustmim.config import AttackConfig, EvaluateRecipe
from robustmim.data.loader import Batch
from robustmim.evaluate.run import Evaluator
from robustmim.models.folded import folded
from robustmim.radius import Radius
from robustmim.registry import build


def with_statistics(model):
    """Give the norms averages as if they had been trained."""
    generator = torch.Generator().manual_seed(3)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) / 5)
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
            with torch.no_grad():
                part.weight.copy_(0.5 + torch.rand(part.num_features, generator=generator))
                part.bias.copy_(torch.randn(part.num_features, generator=generator) / 5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [("resnet20", {}, 0), ("fast-cnn", {}, 3), ("wide-resnet", {"depth": 10, "widen": 1}, 4), ("resnet50", {}, 0)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_function_and_its_gradient_stay_and_norms_behind_convolutions_are_gone(name, options, left, unchecked):
    torch.manual_seed(0)
    size = 64 if name == "resnet50" else 32
    # In double precision: in single, a value beside a rectifier's kink falls on the other side of it on some processors.
    model = with_statistics(build("classifier", name, **options)).double()
    x = torch.rand(3, 3, size, size, dtype=torch.double, requires_grad=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    quick = folded(model)

    assert sum(isinstance(part, nn.BatchNorm2d) for part in quick.modules()) == left
    wanted = model(x)
    torch.testing.assert_close(quick(x), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    (found,) = torch.autograd.grad(quick(x).logsumexp(1).sum(), x)
    (wanted,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert type(quick).__name__ == type(model).__name__
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("attack", ["features", "mutual-information"])
@pytest.mark.parametrize("layer", [None, "blocks"])
def test_attacks_find_the_features_of_the_module_that_answers(attack, layer, unchecked):
    """Also those before a layer that folding takes away, as it does all that only contain others."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.head = nn.Linear(4 * 36, 3)

        def forward(self, x):
            return self.head(self.blocks(x).flatten(1))

    torch.manual_seed(0)
    model, x = with_statistics(Small()), torch.rand(5, 3, 8, 8)
    options = {"steps": 2} | ({"layer": layer} if layer else {}) | ({"images": 4} if attack != "features" else {})
    one = AttackConfig(name="one", attack=attack, options=options)
    evaluator = Evaluator(model, None, EvaluateRecipe(radii=(Radius("8/255"),), attacks=(one,)), x)
    assert type(evaluator.classifier).__name__ == "Small"
    assert any(isinstance(part, nn.BatchNorm2d) for part in evaluator.classifier.modules()) == bool(layer)
    batch = Batch(x, model(x).argmax(1), torch.arange(5))
    found, about, _ = evaluator.attacked(one, batch, 8 / 255)
    assert (found != x).flatten(1).any(1).all()
    assert not any(about["failed"])


def test_a_forward_pass_that_depends_on_its_input_is_left_as_it_is():
    class Winding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.mean() > 0.5 else self.conv(x)

    model = Winding().train()
    assert folded(model) is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_norms_there_is_nothing_to_fold():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    assert folded(model) is model
