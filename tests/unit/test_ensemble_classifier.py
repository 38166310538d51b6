"""An ensemble is the mean of its members' log-probabilities on all views, is saved whole, and trains as one network."""

import pytest
import torch

from robustmim.attacks.parts import Parts
from robustmim.attacks.target import Target
from robustmim.config import ModelConfig
from robustmim.errors import CheckpointError, RecipeError
from robustmim.evaluate.planted import plant
from robustmim.geometry import Ball
from robustmim.models.folded import folded
from robustmim.models.zoo import load_model, save_model, saved_config
from robustmim.registry import build
from robustmim.rng import keys

SMALL = {"name": "fast-cnn", "options": {"classes": 3, "widths": [4, 4, 4], "whitened": False}}
BALL = Ball(norm="linf", eps=0.03)
CLASSES = ("a", "b", "c")


def ensemble(members=(SMALL, SMALL), **options):
    torch.manual_seed(0)
    return build("classifier", "ensemble", members=members, classes=3, **options).eval()


def images(n=4):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_answer_is_the_mean_over_members_and_views(mirrored):
    model, x = ensemble(mirrored=mirrored), images()
    views = [x, x.flip(-1)] if mirrored else [x]
    each = [member(view).log_softmax(1) for member in model.members for view in views]
    torch.testing.assert_close(model(x), sum(each) / len(each))
    torch.testing.assert_close(folded(ensemble(mirrored=mirrored))(x), model(x), rtol=1e-4, atol=1e-5)


def test_mirrored_it_gives_an_image_and_its_mirror_image_the_same_answer():
    x = images()
    torch.testing.assert_close(ensemble(mirrored=True)(x), ensemble(mirrored=True)(x.flip(-1)))
    assert not torch.allclose(ensemble()(x), ensemble()(x.flip(-1)))


def test_in_training_mode_no_view_is_added():
    model = ensemble(mirrored=True).train()
    seen = []
    model.members[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    model(images(6))
    assert seen == [6]


def test_begins_with_the_weights_of_named_members_and_is_loaded_without_them(tmp_path):
    for number in (0, 1):
        torch.manual_seed(number)
        member = build("classifier", SMALL["name"], **SMALL["options"])
        about = ModelConfig(name=SMALL["name"], options={k: v for k, v in SMALL["options"].items() if k != "classes"})
        save_model(tmp_path / str(number), member, saved_config("classifier", about, classes=CLASSES))
    named = [str(tmp_path / "0"), str(tmp_path / "1")]
    model, x = ensemble(named), images()
    torch.testing.assert_close(model.members[1](x), load_model(named[1])(x), rtol=0, atol=0)
    config = saved_config("classifier", ModelConfig(name="ensemble", options={"members": named}), classes=CLASSES)
    save_model(tmp_path / "both", model, config)
    for name in named:
        (tmp_path / name / "model.safetensors").unlink()
        (tmp_path / name / "config.json").unlink()
    torch.testing.assert_close(load_model(tmp_path / "both")(x), model(x), rtol=0, atol=0)


def test_what_looks_for_features_of_an_image_is_told_that_there_are_several_views():
    """And the check that plants examples among them is passed over."""
    model, x = ensemble(mirrored=True), images(4)
    target = Target(
        scores=lambda z, drawn, progress: model(z), keys=keys(0, "a", torch.arange(4)), parts=Parts(classifier=model)
    )
    with pytest.raises(RecipeError, match="sees 8 inputs for 4 images"):
        build("attack", "features", steps=2)(target, x, model(x).argmax(1), BALL)
    with pytest.raises(RecipeError, match="several views"):
        plant(target, build("attack", "pgd", steps=2), target.parts, x, BALL, target.keys)


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(RecipeError, match="at least one member"):
        ensemble(())
    with pytest.raises(RecipeError, match="tell 3 classes apart, but fast-cnn has 10"):
        ensemble(("fast-cnn-cifar10",))
    with pytest.raises(CheckpointError, match="neither a folder with a model nor in the zoo"):
        ensemble(("fast-cnn-cifar",))
