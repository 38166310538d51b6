"""RAMRM: what moves, what the examples are, and that one step teaches what the full graph would."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustmim.cli.main import main
from robustmim.config import AMRMConfig, GradientConfig, ReconstructionConfig, RobustifyRecipe
from robustmim.data.loader import Batch
from robustmim.errors import RecipeError
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.purify.load import load_purifier
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.train.robustify import Robustification, choose_weights, merge_low_rank

RECIPE = RobustifyRecipe(
    masked_model="made up",
    amrm=AMRMConfig(steps=2, step_size=Radius("6/255"), radius=Radius("16/255")),
    attack_steps=2,
    anchor=0.5,
)


def parts():
    torch.manual_seed(0)
    model = MaskedConvolution(widths=(8,), blocks=(1,))
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 64, 3))
    batch = Batch(torch.rand(4, 3, 8, 8) * 0.6 + 0.2, torch.tensor([0, 1, 2, 0]), torch.arange(4) + 5)
    return model, classifier, batch


def loss_of(objective, batch, step=0):
    return objective(objective.purifier.model, batch, keys(0, "step", batch.ids, step), step)


@pytest.mark.parametrize("examples", ["online", "static", "gray-box"])
def test_weights_get_a_gradient_whose_descent_lowers_the_loss(examples):
    model, classifier, batch = parts()
    # A hard sign has kinks everywhere: the smooth purifier's own loss is what its gradient descends.
    gradient = GradientConfig(mode="tanh", forward="smooth", product="hessian")
    objective = Robustification(
        model, classifier, replace(RECIPE, examples=examples, gradient=gradient, attack_steps=0)
    )
    found = loss_of(objective, batch)
    slopes = torch.autograd.grad(found["loss"], objective.parameters)
    with torch.no_grad():
        norm = torch.stack([slope.square().sum() for slope in slopes]).sum()
        assert norm > 0
        for weight, slope in zip(objective.parameters, slopes, strict=True):
            weight.sub_(1e-3 / norm.sqrt() * slope)
    fallen = found["loss"].item() - loss_of(objective, batch)["loss"].item()
    assert fallen == pytest.approx(1e-3 * norm.sqrt().item(), rel=0.3)


def test_examples_are_harder_stay_in_the_ball_and_static_ones_do_not_follow_the_weights():
    model, classifier, batch = parts()
    ball = float(RECIPE.radius)
    x, y, drawn = batch.images, batch.labels, keys(0, "step", batch.ids)
    found = {}
    for examples in ("online", "static", "gray-box"):
        own = copy.deepcopy(model)
        objective = Robustification(own, classifier, replace(RECIPE, examples=examples, attack_steps=5))
        before = objective.adversarial(x, y, drawn)
        assert (before - x).abs().max() <= ball + 1e-6
        assert before.min() >= 0
        assert before.max() <= 1
        assert F.cross_entropy(classifier(before), y) > F.cross_entropy(classifier(x), y)
        with torch.no_grad():
            for weight in own.parameters():
                weight.add_(torch.randn_like(weight))
        found[examples] = (before - objective.adversarial(x, y, drawn)).abs().max()
        alone = objective.adversarial(x[1:2], y[1:2], drawn[torch.tensor([1])])
        torch.testing.assert_close(alone, objective.adversarial(x, y, drawn)[1:2], rtol=0, atol=1e-5)
    assert found["online"] > 0
    assert found["static"] == found["gray-box"] == 0


def test_static_examples_are_the_same_in_every_epoch_and_online_ones_are_not():
    model, classifier, batch = parts()
    for examples, same in (("static", True), ("gray-box", True), ("online", False)):
        objective = Robustification(copy.deepcopy(model), classifier, replace(RECIPE, examples=examples))
        seen = []
        objective.purifier.differentiable = lambda x, seen=seen, **rest: seen.append(x) or x  # type: ignore[method-assign]
        for step in (0, 7):
            loss_of(objective, batch, step)
        assert torch.equal(*seen) == same


def test_only_the_decoder_moves_if_only_it_is_asked_for():
    model, classifier, batch = parts()
    objective = Robustification(model, classifier, replace(RECIPE, weights="decoder"))
    loss_of(objective, batch)["loss"].backward()
    moved = {
        name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0
    }
    assert moved
    assert all(name.startswith(("up.", "decoder", "head.")) for name in moved)


def test_low_rank_changes_begin_at_nothing_and_merge_into_the_weights():
    model, classifier, batch = parts()
    x, mask = batch.images, torch.rand(4, 8, 8) < 0.5
    mask = mask[:1].expand(4, -1, -1)
    names = set(model.state_dict())
    before = model.reconstruct(x, mask).loss.detach()
    objective = Robustification(model, classifier, replace(RECIPE, weights="low-rank", rank=2))
    torch.testing.assert_close(model.reconstruct(x, mask).loss, before)
    optimizer = torch.optim.SGD(objective.parameters, 0.1)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(objective, batch, step)["loss"].backward()
        optimizer.step()
    after = model.reconstruct(x, mask).loss.detach()
    assert not torch.allclose(after, before)
    merge_low_rank(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model.reconstruct(x, mask).loss, after)


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(RecipeError, match="no decoder to train; set weights to all"):
        choose_weights(nn.Sequential(nn.Linear(2, 2)), replace(RECIPE, weights="decoder"))


def test_clean_images_are_left_as_they_are():
    model, classifier, batch = parts()
    objective = Robustification(model, classifier, replace(RECIPE, clean_share=0.5))
    seen = []
    objective.purifier.differentiable = lambda x, **rest: seen.append(x) or x  # type: ignore[method-assign]
    loss_of(objective, batch)
    same = (seen[0] == batch.images).flatten(1).all(1)
    assert same.tolist() == [True, True, False, False]


def test_a_gradient_that_teaches_nothing_is_refused(capsys, tmp_path):
    words = ["robustify", "masked-conv-robust-cifar10", "--gradient.mode", "exact", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "no weight of the masked model has a gradient" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["decoder", "low-rank"])
def test_the_command_trains_saves_and_measures(tmp_path, weights):
    pytest.importorskip("foolbox")
    words = ["robustify", "masked-conv-robust-cifar10", "--out", str(tmp_path), "--device", "cpu", "--weights", weights]
    words += ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "4", "--run.batch_size", "2"]
    words += ["--validation.name", "samples-cifar10", "--validation.limit", "2", "--run.epochs", "1"]
    words += ["--amrm.steps", "2", "--attack_steps", "1", "--run.evaluate_every", "1"]
    assert main(words) == 0
    from robustmim.models.zoo import load_model
    from robustmim.runs import read_lines

    last = read_lines(tmp_path / "log.jsonl")[-1]
    assert last["step"] == 2
    assert {"clean", "gray_box", "white_box"} <= last.keys()
    trained, before = load_model(tmp_path), load_model("masked-conv-noise-cifar10")
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert moved
    if weights == "decoder":
        assert all(name.startswith(("up.", "decoder", "head.")) for name in moved)


def test_one_pass_is_trained_by_the_exact_gradient_of_the_classification():
    model, classifier, batch = parts()
    model, classifier = model.double(), classifier.double()
    batch = Batch(batch.images.double(), batch.labels, batch.ids)
    recipe = replace(
        RECIPE,
        reconstruction=ReconstructionConfig(mask_ratio=0.5, blend=0.7),
        attack_gradient=GradientConfig(mode="exact"),
        anchor=0.0,
    )
    objective = Robustification(model, classifier, recipe)
    drawn = keys(0, "step", batch.ids, 0)
    attacked = objective.adversarial(batch.images, batch.labels, drawn)
    at_start = F.cross_entropy(classifier(objective.purifier(batch.images, keys=drawn.fold("purify"))), batch.labels)
    found = loss_of(objective, batch)
    assert found["loss"] > at_start  # what is learnt from is attacked
    assert (attacked - batch.images).abs().max() <= 8 / 255 + 1e-9
    slopes = torch.autograd.grad(found["loss"], objective.parameters)
    weight, slope = objective.parameters[0], slopes[0]

    def loss(shift):
        with torch.no_grad():
            weight.view(-1)[3] += shift
            purified = objective.purifier(attacked, keys=drawn.fold("purify"))
            value = F.cross_entropy(classifier(purified), batch.labels).item()
            weight.view(-1)[3] -= shift
        return value

    assert slope.view(-1)[3].item() == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("student", [{"reconstruction": ReconstructionConfig(mask_ratio=0.0)}, {}])
def test_a_teacher_is_imitated_and_not_the_labels(student):
    model, classifier, batch = parts()
    recipe = replace(RECIPE, teacher="recommended-cifar10", anchor=0.0, examples="gray-box", **student)
    objective = Robustification(model, classifier, recipe)
    drawn = keys(0, "step", batch.ids, 0)
    attacked = objective.adversarial(batch.images, batch.labels, keys(0, "static", batch.ids))
    wanted = load_purifier("recommended-cifar10")(attacked, keys=drawn.fold("teach"))
    purified = objective.purifier(attacked, keys=drawn.fold("purify"))
    found = loss_of(objective, batch)
    torch.testing.assert_close(found["loss"], F.mse_loss(purified, wanted), rtol=1e-4, atol=1e-7)
    assert not wanted.requires_grad
    optimizer = torch.optim.Adam(objective.parameters, 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        now = loss_of(objective, batch)
        now["loss"].backward()
        optimizer.step()
    assert now["distance"] < 0.9 * found["distance"]


def test_a_teacher_that_is_not_there_is_named():
    model, classifier, _ = parts()
    with pytest.raises(RecipeError, match="recommended-cifar10"):
        Robustification(model, classifier, replace(RECIPE, teacher="recomended-cifar10"))


def test_the_command_distils(tmp_path):
    pytest.importorskip("foolbox")
    words = ["robustify", "masked-conv-distilled-cifar10", "--out", str(tmp_path), "--device", "cpu"]
    words += ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "4", "--run.batch_size", "2"]
    words += ["--validation.name", "samples-cifar10", "--validation.limit", "2", "--run.epochs", "1"]
    assert main(words) == 0
    from robustmim.runs import read_lines

    rows = read_lines(tmp_path / "log.jsonl")
    assert any("distance" in row for row in rows)
    assert {"clean", "gray_box", "white_box"} <= rows[-1].keys()


def test_the_budget_grows_from_nothing():
    model, classifier, batch = parts()
    objective = Robustification(model, classifier, replace(RECIPE, radius_warmup=10, anchor=0.0))
    seen = []
    objective.purifier.differentiable = lambda x, **rest: seen.append(x) or x  # type: ignore[method-assign]
    for step in (0, 4, 9, 30):
        loss_of(objective, batch, step)
    moved = [float((x - batch.images).abs().max()) for x in seen]
    wanted = [float(RECIPE.radius) * share for share in (0.1, 0.5, 1.0, 1.0)]
    assert moved == pytest.approx(wanted, abs=1e-6)


def test_where_nothing_is_hidden_the_anchor_is_the_distance_from_the_clean_images():
    model, classifier, batch = parts()
    recipe = replace(RECIPE, reconstruction=ReconstructionConfig(mask_ratio=0.0), anchor=2.0)
    objective = Robustification(model, classifier, recipe)
    drawn = keys(0, "step", batch.ids, 0)
    attacked = objective.adversarial(batch.images, batch.labels, drawn)
    apart = F.mse_loss(objective.purifier(attacked, keys=drawn), batch.images)
    found = loss_of(objective, batch)
    torch.testing.assert_close(found["reconstruction"], apart)
    torch.testing.assert_close(found["loss"], found["classification"] + 2 * apart)


def test_the_temperature_softens_the_answers_that_the_loss_is_of():
    model, classifier, batch = parts()
    recipe = replace(RECIPE, reconstruction=ReconstructionConfig(mask_ratio=0.0), anchor=0.0, temperature=4.0)
    objective = Robustification(model, classifier, recipe)
    drawn = keys(0, "step", batch.ids, 0)
    logits = classifier(objective.purifier(objective.adversarial(batch.images, batch.labels, drawn), keys=drawn))
    torch.testing.assert_close(loss_of(objective, batch)["loss"], F.cross_entropy(logits / 4, batch.labels))
    with pytest.raises(RecipeError, match="above zero"):
        Robustification(model, classifier, replace(recipe, temperature=0.0))


@pytest.mark.parametrize("recipe", ["masked-conv-one-pass-robust-cifar10", "masked-conv-still-robust-cifar10"])
def test_the_command_trains_one_pass(recipe, tmp_path):
    pytest.importorskip("foolbox")
    words = ["robustify", recipe, "--out", str(tmp_path), "--device", "cpu"]
    words += ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "4", "--run.batch_size", "2"]
    words += ["--validation.name", "samples-cifar10", "--validation.limit", "2", "--run.epochs", "1"]
    assert main(words) == 0
    from robustmim.runs import read_lines

    assert {"clean", "gray_box", "white_box"} <= read_lines(tmp_path / "log.jsonl")[-1].keys()


def test_a_maskdit_is_fine_tuned_too(tmp_path):
    pytest.importorskip("foolbox")
    samples = ["--data.name", "samples-cifar10", "--data.split", "test", "--data.limit", "4", "--run.batch_size", "2"]
    samples += ["--validation.name", "samples-cifar10", "--validation.split", "test", "--validation.limit", "2"]
    samples += ["--run.epochs", "1", "--device", "cpu"]
    probe = ["--probe.classifier", "null"]
    assert main(["pretrain", "maskdit-micro-cifar10", *samples, *probe, "--out", str(tmp_path / "before")]) == 0
    words = ["robustify", "masked-conv-robust-cifar10", *samples, "--masked_model", str(tmp_path / "before")]
    words += ["--amrm.steps", "1", "--attack_steps", "1", "--weights", "decoder", "--out", str(tmp_path / "after")]
    assert main(words) == 0
    from robustmim.models.zoo import load_model

    before, after = (load_model(tmp_path / name).state_dict() for name in ("before", "after"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("decoder", "mask_token")) for name in moved)
