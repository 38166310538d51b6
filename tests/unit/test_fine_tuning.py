"""From a masked autoencoder to a classifier: what is taken over, who learns how fast, and which paths are dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustmim.config import ModelConfig, OptimizerConfig, PretrainRecipe, TrainRecipe
from robustmim.data.sources import load
from robustmim.errors import CheckpointError, RecipeError
from robustmim.models.encoder import load_encoder, take_encoder
from robustmim.models.fast_cnn import FastCNN
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.vit import VisionTransformer, stochastic_depth
from robustmim.models.zoo import save_model
from robustmim.recipe import load_recipe, recipe_names
from robustmim.registry import build
from robustmim.rng import keys
from robustmim.train.classifier import make_classifier
from robustmim.train.generalist import TwoLearners
from robustmim.train.schedule import make_optimizer

SIZES = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
DECODER = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def images(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = MaskedAutoencoder(**SIZES, **DECODER).eval()
    save_model(tmp_path, model, {"kind": "masked-model", "name": "mae", "options": SIZES | DECODER, "classes": []})
    return tmp_path, model


def test_the_encoder_is_taken_over_and_norm_and_head_are_new(saved):
    folder, source = saved
    torch.manual_seed(1)
    model = VisionTransformer(**SIZES, classes=5).eval()
    head = model.head.weight.clone()
    load_encoder(folder, model)
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    tokens = source.tokens(images(), nothing, layer=3)  # before any norm
    expected = model.head(model.fc_norm(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(model(images()), expected)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.fc_norm.weight, torch.ones(16))
    assert model.pos_embed.requires_grad


def test_the_encoders_own_norm_can_be_kept(saved):
    folder, source = saved
    torch.manual_seed(1)
    torch.nn.init.normal_(source.norm.weight)
    save_model(folder, source, {"kind": "masked-model", "name": "mae", "options": SIZES | DECODER, "classes": []})
    model = VisionTransformer(**SIZES, classes=5).eval()
    load_encoder(folder, model, keep_norm=True)
    tokens = source.tokens(images(), torch.zeros(4, 4, 4, dtype=torch.bool), layer=3)
    torch.testing.assert_close(model(images()), model.head(source.norm(tokens[:, 1:].mean(1))))
    recipe = TrainRecipe(model=ModelConfig(name="vit", options=SIZES), start_from=str(folder), start_norm="kept")
    tuned, _ = make_classifier(recipe, load("samples-cifar10", "test"))
    assert torch.equal(tuned.fc_norm.weight, source.norm.weight)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 32}, r"has width: 32.*\{width: 16\}"),
        ({"depth": 2, "heads": 4}, r"depth: 2, heads: 4.*\{depth: 3, heads: 2\}"),
        ({"patch_size": 8}, r"\{patch_size: 4\}"),
        ({"image_size": 32}, r"\{image_size: 16\}"),
        ({"mlp_ratio": 2.0}, r"\{mlp_ratio: 4.0\}"),
        ({"statistics": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}, r"statistics: \[\[0.4914"),
    ],
)
def test_other_sizes_are_refused_with_what_to_set(saved, changes, says):
    with pytest.raises(CheckpointError, match=says):
        load_encoder(saved[0], VisionTransformer(**SIZES | changes))


def test_what_is_no_autoencoder_and_no_transformer_is_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit a FastCNN"):
        load_encoder(saved[0], FastCNN(widths=(8, 8, 8)))
    options = {"widths": [8, 16], "blocks": [1, 1]}
    save_model(
        tmp_path / "conv",
        MaskedConvolution(widths=(8, 16), blocks=(1, 1)),
        {"kind": "masked-model", "name": "masked-conv", "options": options, "classes": []},
    )
    with pytest.raises(CheckpointError, match="MaskedConvolution, which has no encoder"):
        load_encoder(tmp_path / "conv", VisionTransformer(**SIZES))


RECIPES = recipe_names()
FINE_TUNED = {
    name: start
    for name, path in RECIPES.items()
    if path.parent.name == "train"
    and (start := Path(load_recipe(TrainRecipe, name).start_from or "").name) in RECIPES
    and RECIPES[start].parent.name == "pretrain"
}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_recipes_of_fine_tuning_fit_the_encoders_they_begin_with(name):
    tuned, source = load_recipe(TrainRecipe, name), load_recipe(PretrainRecipe, FINE_TUNED[name])
    model = build("classifier", tuned.model.name, **tuned.model.options)
    encoder = build("masked-model", source.model.name, **source.model.options)
    take_encoder(encoder, model, name=FINE_TUNED[name])
    assert torch.equal(model.blocks[-1].mlp.fc2.weight, encoder.blocks[-1].mlp.fc2.weight)


@pytest.mark.parametrize("wrapped", [False, True])
def test_rates_fall_from_layer_to_layer(wrapped):
    model = VisionTransformer(**SIZES)
    outer = TwoLearners(model) if wrapped else model
    config = OptimizerConfig(learning_rate=0.02, layer_decay=0.65, weight_decay=0.05, bias_scale=2.0)
    optimizer = make_optimizer(outer, config)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters())) * (2 if wrapped else 1)
    exponents = {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "blocks.0": 3, "blocks.1": 2, "blocks.2": 1}
    for name, parameter in model.named_parameters():
        below = next((n for start, n in exponents.items() if name.startswith(start)), 0)  # fc_norm and head: none
        decays = parameter.ndim >= 2 and name not in ("cls_token", "pos_embed")
        group = groups[id(parameter)]
        assert group["peak"] == pytest.approx(0.02 * 0.65**below * (1 if decays else 2)), name
        assert group["weight_decay"] == (0.05 if decays else 0), name


def test_layerwise_rates_need_a_model_that_knows_its_layers():
    with pytest.raises(RecipeError, match="FastCNN does not know its layers"):
        make_optimizer(FastCNN(widths=(8, 8, 8)), OptimizerConfig(layer_decay=0.65))


def test_paths_are_dropped_in_training_passes_only_by_the_samples_own_keys():
    torch.manual_seed(0)
    model = VisionTransformer(**SIZES, drop_path=0.6).train()
    assert [block.drop_path1.rate for block in model.blocks] == pytest.approx([0, 0.3, 0.6])
    whole = model(images(64))
    assert torch.equal(model(images(64)), whole)  # nothing is dropped, nothing is drawn
    drawn = keys(0, "step", torch.arange(64))
    with stochastic_depth(model, drawn):
        dropped = model(images(64))
        again = model(images(64))
    assert torch.equal(dropped, again)
    assert not torch.allclose(dropped, whole)
    with stochastic_depth(model, drawn[5:8]):
        torch.testing.assert_close(model(images(64)[5:8]), dropped[5:8])
    assert torch.equal(model(images(64)), whole)


def test_dropping_keeps_the_mean_and_drops_whole_samples():
    model = VisionTransformer(**SIZES, drop_path=0.4)
    layer = model.blocks[-1].drop_path2
    with stochastic_depth(model, keys(0, "step", torch.arange(5000))):
        found = layer(torch.ones(5000, 2, 3))
        assert not torch.equal(found, model.blocks[-1].drop_path1(torch.ones(5000, 2, 3)))
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert found.mean() == pytest.approx(1, abs=0.04)
