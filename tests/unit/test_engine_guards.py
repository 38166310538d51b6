"""What keeps a run whole: parts of a batch, steps that are skipped, collapse, and the state that a resume needs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robustmim.cli.training import arithmetic, in_words
from robustmim.config import (
    AdversarialTrainingConfig,
    DataConfig,
    GuardConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainRecipe,
)
from robustmim.data.loader import Loader, Replayed
from robustmim.data.sources import ResidentSource
from robustmim.errors import RecipeError
from robustmim.models.fast_cnn import FastCNN
from robustmim.models.vit import VisionTransformer
from robustmim.runs import RunFolder, read_lines
from robustmim.train.classifier import make_classifier, make_objective
from robustmim.train.distributed import World
from robustmim.train.engine import Diverged, fit
from robustmim.train.guard import Guarded
from robustmim.train.methods import make_method

HERE = World(0, 1, torch.device("cpu"))


def source(n: int = 32) -> ResidentSource:
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ResidentSource(
        name="noise", classes=("a", "b"), images=images, labels=torch.arange(n) % 2, ids=torch.arange(n)
    )


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(image_size=16, patch_size=8, width=8, depth=2, heads=2, classes=2, drop_path=0.3)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return FastCNN(widths=(8, 8, 8), classes=2)


def train(folder, model, objective, *, replays=1, evaluate=lambda model: {}, optimizer=None, **run):
    batches = Loader(source(), DataConfig(flip="random"), batch_size=8, seed=1, device=HERE.device)
    status = fit(
        model,
        objective,
        Replayed(batches, replays) if replays > 1 else batches,
        optimizer_config=optimizer or OptimizerConfig(name="sgd", learning_rate=0.1, warmup=0.0),
        run=RunConfig(**{"epochs": 3, "batch_size": 8, "checkpoint_minutes": 0.0} | run),
        folder=RunFolder(folder, recipe={}, kind="train"),
        world=HERE,
        evaluate=evaluate,
    )
    return model, status


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def method(name: str = "n-fgsm", **more):
    return make_method(AdversarialTrainingConfig(method=name, **more), 0.1)


def test_parts_of_a_batch_add_up_to_it(tmp_path):
    whole, _ = train(tmp_path / "whole", vit(), method(), epochs=1)
    parts, _ = train(tmp_path / "parts", vit(), method(), epochs=1, accumulate=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=2e-6, rtol=1e-5)
    losses = [read_lines(tmp_path / name / "log.jsonl")[0]["loss"] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_batches_that_cannot_be_cut_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="8 images cannot be cut into 3"):
        train(tmp_path / "a", vit(), method(), accumulate=3)
    with pytest.raises(RecipeError, match=r"run\.accumulate"):
        train(tmp_path / "b", vit(), method("free", options={"replays": 2}), replays=2, accumulate=2)


class Broken:
    """A loss that is no number at some steps."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.objective = at, method()

    def __call__(self, model, batch, drawn, step):
        if step in self.at:
            model(batch.images * math.nan)  # gets into batch norm's averages
        found = self.objective(model, batch, drawn, step)
        return found | {"loss": found["loss"] * (math.nan if step in self.at else 1.0)}


class Recorded:
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, model):
        self.seen.append(model.head.weight.clone())
        assert all(value.isfinite().all() for value in model.state_dict().values())
        return {}


def test_a_step_without_a_gradient_is_skipped_and_leaves_nothing_behind(tmp_path):
    recorded = Recorded()
    broken, status = train(tmp_path / "run", cnn(), Broken({3, 4, 7}), evaluate=recorded, evaluate_every=0.25, ema=0.9)
    assert status == "finished"
    assert torch.equal(recorded.seen[2], recorded.seen[3])
    assert torch.equal(recorded.seen[3], recorded.seen[4])
    assert not torch.equal(recorded.seen[4], recorded.seen[5])
    assert read_lines(tmp_path / "run" / "log.jsonl")[-2]["skipped"] == 3
    assert all(value.isfinite().all() for value in broken.state_dict().values())


def test_too_many_in_a_row_end_the_run_with_everything_saved_and_it_can_go_on(tmp_path):
    with pytest.raises(Diverged, match=r"4 times in a row, up to step 6.*learning_rate"):
        train(tmp_path / "run", cnn(), Broken({2, 3, 4, 5}), skips=3, checkpoint_minutes=60.0)
    whole, _ = train(tmp_path / "whole", cnn(), Broken({2, 3, 4, 5}), skips=9)
    rest, status = train(tmp_path / "run", cnn(), Broken({2, 3, 4, 5}), skips=9)
    assert status == "finished"
    assert same(whole, rest)


class Collapse:
    """A check whose accuracies are told beforehand."""

    def __init__(self, accuracies: list[float]) -> None:
        self.accuracies, self.weights = list(accuracies), []

    def __call__(self, model) -> float:
        assert not model.training
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return self.accuracies.pop(0)


def test_a_collapse_takes_the_weights_back_and_goes_on_with_a_larger_attack(tmp_path):
    levels, tried = [], []

    def level(number):
        def objective(model, batch, drawn, step):
            levels.append((step, number))
            tried.append({name: value.clone() for name, value in model.state_dict().items()})
            return method()(model, batch, drawn, step)

        return objective

    check = Collapse([0.4, 0.5, 0.1, 0.5, 0.45, 0.2])
    guarded = Guarded([level(0), level(1)], check, every=2, drop=0.2)
    _, status = train(tmp_path, vit(), guarded, ema=0.9)
    assert status == "finished"
    assert [number for _, number in levels] == [0] * 6 + [1] * 6
    good = check.weights[1]  # of step 4
    assert all(torch.equal(tried[6][name], value) for name, value in good.items())
    assert read_lines(tmp_path / "log.jsonl")[-2] | {"guard_level": 1.0} == read_lines(tmp_path / "log.jsonl")[-2]
    # The last check, at step 12, found another collapse, and there is nothing larger left: the weights of step 10.
    assert check.accuracies == []


def test_a_collapse_ends_the_run_at_the_last_good_weights_and_it_stays_ended(tmp_path):
    check = Collapse([0.4, 0.5, 0.1])
    model, status = train(tmp_path, vit(), Guarded([method()], check, every=2, drop=0.2))
    assert status == "finished"
    assert all(torch.equal(model.state_dict()[name], value) for name, value in check.weights[1].items())
    assert read_lines(tmp_path / "log.jsonl")[-1]["step"] == 6
    again, status = train(tmp_path, vit(), Guarded([method()], Collapse([]), every=2, drop=0.2))
    assert status == "finished"
    assert same(model, again)


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_a_guarded_run_resumes_bit_for_bit(tmp_path, killed_at):
    class Killed(Exception):
        pass

    accuracies = [0.4, 0.5, 0.1, 0.5, 0.5, 0.5]

    def guarded(done: int):
        return Guarded([method(), method(steps=2)], Collapse(accuracies[done:]), every=2, drop=0.2)

    whole, _ = train(tmp_path / "whole", vit(), guarded(0), ema=0.9)
    evaluations = 0

    def kill(model):
        nonlocal evaluations
        evaluations += 1
        if evaluations == killed_at:
            raise Killed
        return {}

    # Evaluations are after steps 3, 6, 9 and 12; the checkpoint is of the step before.
    with pytest.raises(Killed):
        train(tmp_path / "killed", vit(), guarded(0), evaluate=kill, evaluate_every=0.75, ema=0.9)
    rest, _ = train(tmp_path / "killed", vit(), guarded((3 * killed_at - 1) // 2), ema=0.9)
    assert same(whole, rest)


@pytest.mark.parametrize("name", ["free", "generalist", "dbat", "trades"])
def test_every_kind_of_method_resumes_bit_for_bit(tmp_path, name):
    recipe = TrainRecipe(
        model=ModelConfig(name="fast-cnn", options={"widths": [8, 8, 8], "whitened": False}),
        adversarial=AdversarialTrainingConfig(
            method=name, options={"replays": 2} if name == "free" else {}, steps=None if name == "free" else 2
        ),
    )

    def run(folder, **more):
        model, _ = make_classifier(recipe, source())
        return train(
            folder, model, make_objective(recipe, source(), HERE.device), replays=2 if name == "free" else 1, **more
        )[0]

    whole = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(model):
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", evaluate=kill, evaluate_every=1.25)
    assert same(whole, run(tmp_path / "killed"))


def test_the_guard_of_a_recipe_checks_pgd_on_training_images_and_enlarges_the_attack():
    recipe = TrainRecipe(
        model=ModelConfig(name="fast-cnn"),
        adversarial=AdversarialTrainingConfig(method="fast", guard=GuardConfig(images=8, steps=2)),
    )
    guarded = make_objective(recipe, source(), HERE.device)
    assert isinstance(guarded, Guarded)
    attacks = [level.attack for level in guarded._levels]
    assert [attack.steps for attack in attacks] == [1, 2, 3]
    assert [attack.steps * attack.step_size for attack in attacks] == pytest.approx([1.25] * 3)
    assert 0 <= guarded._check(cnn().eval()) <= 1
    for config in (
        AdversarialTrainingConfig(method="fast", guard=GuardConfig(action="none")),
        AdversarialTrainingConfig(method="n-fgsm"),
    ):
        plain = TrainRecipe(model=ModelConfig(name="fast-cnn"), adversarial=config)
        assert not isinstance(make_objective(plain, source(), HERE.device), Guarded)
    with pytest.raises(RecipeError, match="can have no guard"):
        make_objective(
            TrainRecipe(
                model=ModelConfig(name="fast-cnn"),
                adversarial=AdversarialTrainingConfig(method="free", guard=GuardConfig(action="stop")),
            ),
            source(),
            HERE.device,
        )


def test_the_run_card_says_how_batch_and_rate_come_about():
    batches = Loader(source(), DataConfig(), batch_size=8, seed=1, device=HERE.device)
    config = OptimizerConfig(learning_rate=0.01, warmup=0.25, layer_decay=0.5)
    run = RunConfig(epochs=3, batch_size=8, accumulate=2)
    facts = arithmetic(vit(), config, run, batches, World(0, 2, HERE.device))
    assert facts["processes"] * facts["parts"] * facts["images_per_part"] == facts["images_per_step"] == 8
    assert (facts["steps"], facts["warmup_steps"]) == (12, 3)
    assert facts["learning_rate_per_256_images"] == pytest.approx(0.01 * 256 / 8)
    assert facts["lowest_learning_rate"] == pytest.approx(0.01 * 0.5**3)  # two blocks and the head above the embedding
    said = in_words(facts)
    assert "8 images = 2 × 2 × 2" in said
    assert "rate 0.01, 0.32 for 256 images, reached after 3 of 12 steps; 0.00125 in the lowest layer" in said
    replayed = arithmetic(vit(), config, RunConfig(epochs=3, batch_size=8), Replayed(batches, 4), HERE)
    assert (replayed["steps"], replayed["replays"]) == (48, 4)
    assert "each batch 4 times in a row" in in_words(replayed)
