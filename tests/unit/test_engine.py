"""The engine: exact resume, clean stop, averages, schedules, divergence."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from robustmim.config import (
    AdversarialTrainingConfig,
    DataConfig,
    MaskedAttackConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainRecipe,
)
from robustmim.data.loader import Loader, Mixture
from robustmim.data.sources import ResidentSource
from robustmim.errors import CheckpointError, InputError, RecipeError
from robustmim.models.fast_cnn import FastCNN
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.vit import Block
from robustmim.runs import RunFolder, read_json, read_lines
from robustmim.train.distributed import World
from robustmim.train.engine import Diverged, fit
from robustmim.train.objectives import Classification
from robustmim.train.pretraining import MaskedPretraining
from robustmim.train.schedule import learning_rate_factor, make_optimizer

HERE = World(0, 1, torch.device("cpu"))
RUN = RunConfig(epochs=3, batch_size=8, ema=0.9, evaluate_every=1, checkpoint_minutes=0.0)


def source(n: int = 32) -> ResidentSource:
    images = torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ResidentSource(
        name="noise", classes=("a", "b"), images=images, labels=torch.arange(n) % 2, ids=torch.arange(n)
    )


def batches(**changes) -> Loader:
    config = DataConfig(padding=2, flip="random", cutout=4, **changes)
    return Loader(source(), config, batch_size=8, seed=1, device=HERE.device)


def masked_model() -> MaskedConvolution:
    torch.manual_seed(0)
    return MaskedConvolution(widths=(8, 16), blocks=(1, 1))


def classifier() -> FastCNN:
    torch.manual_seed(0)
    return FastCNN(widths=(8, 8, 8), classes=2)


JOBS = {
    "masked-adamw": (masked_model, MaskedPretraining((0.25, 0.5)), OptimizerConfig(learning_rate=1e-3, clip=1.0)),
    "classifier-sgd": (classifier, Classification(0.1), OptimizerConfig(name="sgd", learning_rate=0.05)),
}


def train(folder, job="masked-adamw", evaluate=lambda model: {}, run=RUN, **options):
    make, objective, optimizer = JOBS[job]
    model = make()
    status = fit(
        model,
        objective,
        batches(),
        optimizer_config=optimizer,
        run=run,
        folder=RunFolder(folder, recipe={"job": job}, kind="train"),
        world=HERE,
        evaluate=evaluate,
        **options,
    )
    return model, status


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("job", JOBS)
def test_resumes_to_the_same_weights_bit_for_bit(tmp_path, job):
    whole, status = train(tmp_path / "whole", job)
    assert status == "finished"

    class Killed(Exception):
        pass

    def kill(model):
        raise Killed

    with pytest.raises(Killed):  # dies in the first evaluation, with the checkpoint of the step before
        train(tmp_path / "killed", job, evaluate=kill)
    resumed, status = train(tmp_path / "killed", job)
    assert status == "finished"
    assert same(whole, resumed)
    steps = [row["step"] for row in read_lines(tmp_path / "killed" / "log.jsonl") if "loss" in row]
    assert steps == sorted(set(steps))


def test_a_time_limit_stops_cleanly_and_can_be_resumed(tmp_path):
    whole, _ = train(tmp_path / "whole")
    statuses = []
    for _ in range(40):
        model, status = train(tmp_path / "pieces", max_seconds=0.0)
        statuses.append(status)
        if status == "finished":
            break
    assert statuses.count("stopped") >= 5
    assert statuses[-1] == "finished"
    assert same(whole, model)


def test_the_average_is_what_is_evaluated_and_returned(tmp_path):
    seen = []
    model, _ = train(tmp_path / "a", evaluate=lambda m: seen.append(m.stem.weight.clone()) or {"x": 1.0})
    assert torch.equal(seen[-1], model.stem.weight)
    plain, _ = train(tmp_path / "b", run=RunConfig(epochs=3, batch_size=8, ema=0.0))
    assert not same(model, plain)


def test_log_holds_losses_and_evaluations(tmp_path):
    held = torch.zeros(2**25)  # 128 MiB
    train(tmp_path, evaluate=lambda model: {"accuracy": 0.5})
    rows = read_lines(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows if row.get("evaluation")] == [4, 8, 12]
    assert all(row["accuracy"] == 0.5 for row in rows if row.get("evaluation"))
    assert {"loss", "learning_rate", "images_per_second", "seconds"} <= rows[0].keys()
    memory = [row["peak_memory_mib"] for row in rows if "loss" in row]
    assert memory == sorted(memory)
    assert held.nbytes / 2**20 < memory[0] < 2**20


def test_divergence_stops_with_advice_and_keeps_the_checkpoint(tmp_path):
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e12, warmup=0.0)
    model = masked_model()
    with pytest.raises(Diverged, match="learning_rate"):
        fit(
            model,
            MaskedPretraining((0.25,)),
            batches(),
            optimizer_config=optimizer,
            run=RUN,
            folder=RunFolder(tmp_path, recipe={}, kind="train"),
            world=HERE,
            evaluate=lambda model: {},
        )


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path, max_seconds=0.0)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="delete it to start over"):
        train(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path, max_seconds=0.0)
    with pytest.raises(CheckpointError, match="another model"):
        fit(
            classifier(),
            Classification(),
            batches(),
            optimizer_config=OptimizerConfig(),
            run=RUN,
            folder=RunFolder(tmp_path, recipe={"job": "masked-adamw"}, kind="train"),
            world=HERE,
            evaluate=lambda model: {},
        )


def test_a_run_folder_refuses_another_recipe_but_not_another_way_to_watch(tmp_path):
    RunFolder(tmp_path, recipe={"run": {"seed": 0}, "probe": {"images": 1}}, kind="train")
    with pytest.raises(RecipeError, match=r"run\.seed"):
        RunFolder(tmp_path, recipe={"run": {"seed": 1}, "probe": {"images": 1}}, kind="train", harmless=("probe",))
    RunFolder(tmp_path, recipe={"run": {"seed": 0}, "probe": {"images": 9}}, kind="train", harmless=("probe",))
    with pytest.raises(RecipeError, match="kind of job"):
        RunFolder(tmp_path, recipe={"run": {"seed": 0}, "probe": {"images": 9}}, kind="evaluate")
    assert read_json(tmp_path / "run.json")["environment"]["torch"] == torch.__version__


def test_unwritable_and_damaged_folders_are_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        RunFolder(blocked / "run", recipe={}, kind="train")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        RunFolder(tmp_path, recipe={}, kind="train")


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_lines(path) == [{"step": 1}]


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(warmup=0.1, schedule="cosine", final=0.1)
    assert learning_rate_factor(config, 0.0) == 0
    assert learning_rate_factor(config, 0.05) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0.1) == pytest.approx(1)
    assert learning_rate_factor(config, 0.55) == pytest.approx(0.55)
    assert learning_rate_factor(config, 1.0) == pytest.approx(0.1)
    assert learning_rate_factor(OptimizerConfig(warmup=0.0, schedule="linear"), 0.25) == pytest.approx(0.75)
    assert learning_rate_factor(OptimizerConfig(warmup=0.0, schedule="constant"), 0.9) == 1


def test_biases_and_norms_do_not_decay_and_frozen_parameters_are_left_out():
    model = classifier()
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1, bias_scale=4.0, learning_rate=0.5))
    matrices, vectors = optimizer.param_groups
    assert all(parameter.ndim >= 2 for parameter in matrices["params"])
    assert vectors["weight_decay"] == 0
    assert vectors["peak"] == 2.0
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.whiten.weight) not in held


def test_loader_is_a_pure_function_of_the_step_and_drops_the_incomplete_batch():
    first, second = batches(), batches()
    second.batch(3)
    for step in (0, 5, 2):
        assert torch.equal(first.batch(step).images, second.batch(step).images)
    assert torch.cat([first.batch(step).ids for step in range(4)]).sort().values.tolist() == list(range(32))
    assert not torch.equal(first.batch(0).images, first.batch(4).images)


def test_processes_share_a_batch_without_overlap():
    parts = [
        Loader(source(), DataConfig(flip="random"), batch_size=8, seed=1, device=HERE.device, rank=rank, world=2)
        for rank in range(2)
    ]
    whole = Loader(source(), DataConfig(flip="random"), batch_size=8, seed=1, device=HERE.device)
    joined = torch.cat([part.batch(3).images for part in parts])
    assert torch.equal(joined, whole.batch(3).images)
    with pytest.raises(RecipeError, match="multiple"):
        Loader(source(), DataConfig(), batch_size=9, seed=1, device=HERE.device, world=2)
    with pytest.raises(RecipeError, match="fewer"):
        Loader(source(4), DataConfig(), batch_size=8, seed=1, device=HERE.device)


def test_alternate_flip_shows_each_side_every_second_epoch():
    loader = Loader(source(8), DataConfig(flip="alternate"), batch_size=8, seed=1, device=HERE.device)
    epochs = []
    for epoch in range(3):
        batch = loader.batch(epoch)
        epochs.append(batch.images[batch.ids.argsort()])
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0].flip(3), epochs[1])


def test_whitening_layer_whitens():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(200, 3, 20, 20, generator=generator), 5, stride=1)
    model = classifier()
    model.initialise_from(smooth)
    features = model.whiten(model.normalise(smooth)).transpose(0, 1).flatten(1)[:12]
    covariance = torch.cov(features)
    kept = covariance.diagonal() > 0.5  # directions with hardly any variance are damped, not blown up
    assert kept.sum() >= 3
    assert math.isclose(covariance.diagonal()[kept].mean().item(), 1.0, abs_tol=0.2)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 0.05


def test_a_mixture_takes_turns_by_share_and_never_mixes_sizes():
    small = source(16)
    large = ResidentSource(
        name="large",
        classes=("a",),
        images=torch.zeros(24, 3, 20, 20, dtype=torch.uint8),
        labels=torch.zeros(24, dtype=torch.int64),
        ids=torch.arange(24),
    )
    loaders = [
        Loader(small, DataConfig(share=2), batch_size=8, seed=1, device=HERE.device),
        Loader(large, DataConfig(share=1), batch_size=8, seed=1, device=HERE.device),
    ]
    mixture = Mixture(loaders)
    assert mixture.steps_per_epoch == 3  # two steps of the first, and one of the second between them
    sizes = [mixture.batch(step).images.shape[-1] for step in range(6)]
    assert sizes == [16, 16, 20] * 2
    seen = torch.cat([mixture.batch(step).ids for step in (0, 1)])
    assert seen.sort().values.tolist() == list(range(16))
    assert torch.equal(mixture.batch(5).ids, loaders[1].batch(1).ids)


def test_input_noise_is_on_what_is_seen_and_not_on_the_target():
    from robustmim.models.masking import random_mask
    from robustmim.rng import keys

    model, batch = masked_model(), batches().batch(0)
    drawn = keys(0, "step", batch.ids)
    plain = MaskedPretraining((0.25,))(model, batch, drawn, 0)["loss"]
    noisy = MaskedPretraining((0.25,), input_noise=0.2)(model, batch, drawn, 0)["loss"]
    assert noisy != plain
    mask = random_mask(drawn.fold("mask"), (16, 16), 0.25)
    torch.testing.assert_close(plain, model.reconstruct(batch.images, mask).loss.mean())
    constant = type(batch)(torch.full_like(batch.images, 0.5), batch.labels, batch.ids)
    assert MaskedPretraining((0.25,))(model, constant, drawn, 0)["loss"] < 1e-6
    assert MaskedPretraining((0.25,), input_noise=0.2)(model, constant, drawn, 0)["loss"] < 0.2**2 / 2


def test_a_run_folder_of_an_older_version_is_resumed_if_new_keys_have_their_defaults(tmp_path):
    recipe = TrainRecipe(model=ModelConfig(name="fast-cnn"), adversarial=AdversarialTrainingConfig(steps=1))
    RunFolder(tmp_path, recipe={"train": recipe}, kind="train")
    about = read_json(tmp_path / "run.json")
    for part, key in (("run", "precision"), ("data", "share"), ("adversarial", "project")):
        del about["recipe"]["train"][part][key]  # as if written before the key was there
    (tmp_path / "run.json").write_text(json.dumps(about))
    RunFolder(tmp_path, recipe={"train": recipe}, kind="train")
    (tmp_path / "run.json").write_text(json.dumps(about))
    with pytest.raises(RecipeError, match=r"run\.precision"):
        RunFolder(tmp_path, recipe={"train": replace(recipe, run=RunConfig(precision="bfloat16"))}, kind="train")


def test_compiled_blocks_take_the_same_steps(tmp_path, unchecked, monkeypatch):
    # What is captured, without the minutes that generating code for it takes.
    monkeypatch.setattr(Block, "compile", lambda block: torch.nn.Module.compile(block, backend="aot_eager"))
    objective = MaskedPretraining((0.5,), attack=MaskedAttackConfig())

    def trained(folder, compile):
        torch.manual_seed(0)
        sizes = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
        model = MaskedAutoencoder(image_size=16, patch_size=4, **sizes)
        run = replace(RUN, epochs=1, compile=compile)
        status = fit(
            model,
            objective,
            batches(),
            optimizer_config=OptimizerConfig(name="sgd", learning_rate=0.05),
            run=run,
            folder=RunFolder(folder, recipe={"run": run}, kind="pretrain"),
            world=HERE,
            evaluate=lambda model: {},
        )
        assert status == "finished"
        return model.state_dict()

    plain, compiled = trained(tmp_path / "plain", False), trained(tmp_path / "compiled", True)
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)


def test_there_is_nothing_to_compile_in_a_convolutional_network(tmp_path):
    with pytest.raises(RecipeError, match=r"run\.compile is for transformers, and MaskedConvolution has no blocks"):
        train(tmp_path, run=replace(RUN, compile=True))
