from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustmim.errors import CheckpointError, InputError, RecipeError
from robustmim.models.adapters import Normalised
from robustmim.models.hugging_face import convert_hugging_face
from robustmim.models.importer import load_classifier, load_into, load_mae, mae_family, official_target, read_state
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.normalise import HALF
from robustmim.models.zoo import load_model, save_model
from robustmim.registry import build

BLOCK = {
    "norm1.weight": (1,), "norm1.bias": (1,), "attn.qkv.weight": (3, 1), "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1), "attn.proj.bias": (1,), "norm2.weight": (1,), "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1), "mlp.fc1.bias": (4,), "mlp.fc2.weight": (1, 4), "mlp.fc2.bias": (1,),
}  # fmt: skip


def official(
    *, width: int = 192, depth: int = 2, decoder: bool = True, patch: int = 4, side: int = 4
) -> dict[str, Tensor]:
    """Names and shapes of an official MAE file, written out by hand, small."""

    def blocks(stem: str, count: int, wide: int) -> dict[str, Tensor]:
        return {
            f"{stem}.{i}.{name}": torch.randn([factor * (wide if name[-6:] == "weight" or j == 0 else 1) for j, factor in enumerate(shape)])
            for i in range(count)
            for name, shape in BLOCK.items()
        }  # fmt: skip

    tokens = side * side + 1
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, tokens, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
    } | blocks("blocks", depth, width)
    if decoder:
        state |= {
            "mask_token": torch.randn(1, 1, 64),
            "decoder_pos_embed": torch.randn(1, tokens, 64),
            "decoder_embed.weight": torch.randn(64, width),
            "decoder_embed.bias": torch.randn(64),
            "decoder_norm.weight": torch.randn(64),
            "decoder_norm.bias": torch.randn(64),
            "decoder_pred.weight": torch.randn(3 * patch * patch, 64),
            "decoder_pred.bias": torch.randn(3 * patch * patch),
        } | blocks("decoder_blocks", 1, 64)
    return state


def hugging_face(state: dict[str, Tensor], *, new: bool) -> dict[str, Tensor]:
    """Rename official names to those of transformers before version 5, or from it on."""
    top = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
    }
    old_names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
                 "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    new_names = old_names | {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    three = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    renamed = {}
    for name, value in state.items():
        if "blocks." not in name:
            stem, _, kind = name.rpartition(".")
            whole = top.get(name) or (f"{top[stem]}.{kind}" if stem in top else f"decoder.{name}")
            renamed[whole] = value
            continue
        stem, index, *inner, kind = name.split(".")
        encoder = "vit.layers" if new else "vit.encoder.layer"
        layer = f"{'decoder.decoder_layers' if stem.startswith('decoder') else encoder}.{index}"
        if inner == ["attn", "qkv"]:
            for part, chunk in zip(three, value.chunk(3), strict=True):
                renamed[f"{layer}.attention.{part}.{kind}"] = chunk.clone()
        else:
            renamed[f"{layer}.{(new_names if new else old_names)['.'.join(inner)]}.{kind}"] = value
    return renamed


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "best_prec1": 91.0},
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"model_state_dict": s},
        lambda s: {"model_ema": s},
        lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".bin"])
def test_wrappings_come_off(wrap: Callable, suffix: str, tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    torch.save(wrap(dict(state)), tmp_path / f"file{suffix}")
    assert equal(read_state(tmp_path / f"file{suffix}"), dict(state))


def test_safetensors(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in nn.Linear(2, 3).state_dict().items()}
    save_file(state, tmp_path / "file.safetensors")
    assert read_state(str(tmp_path / "file.safetensors")).keys() == {"weight", "bias"}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        read_state(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is not there, or no file"):
        read_state(tmp_path)


def test_an_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"ends in none of .safetensors"):
        read_state(tmp_path / "weights.h5")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(range(256)) * 8])
def test_no_weights_at_all(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or no"):
        read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_a_download(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    state = {"weight": torch.randn(100, 100)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"damaged.*fetch it again"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(a=1)}, r"argparse\.Namespace"), (nn.Linear(2, 2), "Linear")],
)  # fmt: skip
def test_objects_are_refused_and_named(content: object, named: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"refused.*\(.*{named}\).*run any program"):
        read_state(tmp_path / "file.pth")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_malicious_file_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "trace")}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="refused"):
        read_state(tmp_path / "file.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "weights": {"w": torch.ones(1)}}, "its entries are epoch, weights"),
        ([torch.ones(1)], "it holds a list"),
        ({}, "it holds a dict"),
        ({"state_dict": {}}, "its entries are state_dict"),
    ],
)
def test_no_state_dictionary(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=f"no state dictionary: {said}"):
        read_state(tmp_path / "file.pth")


def test_what_does_not_fit_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    good = dict(model.state_dict())
    with pytest.raises(CheckpointError, match=r"some\.pth does not fit Sequential: it lacks 0\.weight$"):
        load_into(model, {k: v for k, v in good.items() if k != "0.weight"}, path="some.pth")
    with pytest.raises(CheckpointError, match="it has extra, which the model has not"):
        load_into(model, good | {"extra": torch.ones(1)}, path="some.pth")
    with pytest.raises(CheckpointError, match=r"0\.weight \(3, 5\) instead of \(3, 4\)"):
        load_into(model, good | {"0.weight": torch.ones(3, 5)}, path="some.pth")
    with pytest.raises(CheckpointError, match=r"it lacks 0\.weight, 0\.bias, 1\.weight and 1 more"):
        load_into(model, {}, path="some.pth")


def test_another_number_of_classes_is_said_so(tmp_path: Path) -> None:
    torch.save(build("classifier", "resnet20", classes=100).state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="a classifier with 100 classes, but this one has 10; set classes: 100"):
        load_classifier(tmp_path / "file.pth", "resnet20", classes=10)
    model = load_classifier(tmp_path / "file.pth", "resnet20")
    assert model.linear.out_features == 100 and not model.training


def test_a_classifier_comes_back_as_it_was(tmp_path: Path) -> None:
    model = build("classifier", "resnet20", statistics=HALF).eval()
    state = {f"module.{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state}, tmp_path / "file.th")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_classifier(tmp_path / "file.th", "resnet20", statistics=HALF)(x), model(x))


def test_an_architecture_or_option_that_is_not_there(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "file.pth")
    with pytest.raises(RecipeError, match="Did you mean 'resnet56'"):
        load_classifier(tmp_path / "file.pth", "resnet65")
    with pytest.raises(RecipeError, match="no option 'widen'"):
        load_classifier(tmp_path / "file.pth", "resnet20", widen=2)


def test_a_file_of_ones_own_does_not_fetch_the_published_weights(tmp_path: Path, monkeypatch) -> None:
    model = build("classifier", "efficientnet-lite0", classes=3, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "file.pth")
    monkeypatch.setattr("robustmim.models.efficientnet_lite.find_spec", lambda name: None)
    assert load_classifier(tmp_path / "file.pth", "efficientnet-lite0")._fc.out_features == 3


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_wrapped_model_takes_the_names_of_the_model_inside(prefix: str) -> None:
    inner = nn.Linear(2, 3)
    wrapped = Normalised(nn.Linear(2, 3), statistics=HALF)
    load_into(wrapped, {f"{prefix}{k}": v for k, v in inner.state_dict().items()}, path="file.pth")
    assert torch.equal(wrapped.model.weight, inner.weight)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mae_visualize_vit_base.pth", "pixels"),
        ("mae_visualize_vit_large.pth", "pixels"),
        ("mae_visualize_vit_large_ganloss.pth", "pixels"),
        ("mae_visualize_vit_huge.pth", "pixels"),
        ("mae_pretrain_vit_base_full.pth", "normalised"),
        ("mae_pretrain_vit_huge_full.pth", "normalised"),
    ],
)
def test_official_files_are_known_by_name(name: str, target: str, tmp_path: Path) -> None:
    state = official()
    torch.save({"model": state}, tmp_path / name)
    model = load_mae(tmp_path / name)
    assert model.target == target and not model.training
    assert equal(dict(model.state_dict()), state)


def test_a_file_of_others_becomes_a_folder_that_recipes_can_name(tmp_path: Path) -> None:
    torch.save({"model": official()}, tmp_path / "mae_pretrain_vit_base_full.pth")
    model = load_mae(tmp_path / "mae_pretrain_vit_base_full.pth", statistics=((0.1, 0.2, 0.3), (0.123456, 0.2, 0.3)))
    save_model(str(tmp_path / "mae"), model, model.config())
    again = load_model(tmp_path / "mae", kind="masked-model")
    assert again.config() == model.config()
    x, mask = torch.rand(2, 3, 16, 16), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    first, second = (net.reconstruct(x, mask) for net in (model, again))
    assert torch.equal(first.loss, second.loss)
    with pytest.raises(CheckpointError, match=r"full\.pth is a file.*masked autoencoder"):
        load_model(tmp_path / "mae_pretrain_vit_base_full.pth")
    with pytest.raises(InputError, match="cannot write to"):
        save_model(tmp_path / "mae" / "config.json" / "below", model, model.config())


def test_names_of_our_model_are_the_official_ones() -> None:
    model = MaskedAutoencoder(
        image_size=16, patch_size=4, width=192, depth=2, heads=3, decoder_width=64, decoder_depth=1, decoder_heads=16
    )
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in official().items()}


def test_sizes_are_read_off_the_shapes(tmp_path: Path) -> None:
    torch.save(official(width=384, depth=3, patch=2, side=6), tmp_path / "mae_visualize_vit_base.pth")
    model = load_mae(tmp_path / "mae_visualize_vit_base.pth", decoder_heads=4)
    assert (model.image_size, model.patch_size, len(model.blocks), len(model.decoder_blocks)) == (12, 2, 3, 1)
    assert model.blocks[0].attn.heads == 6 and model.decoder_blocks[0].attn.heads == 4
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, :3] = True
    assert model.reconstruct(torch.rand(1, 3, 12, 12), mask).loss.isfinite().all()


def test_an_encoder_alone_says_which_file_to_get(tmp_path: Path) -> None:
    torch.save({"model": official(decoder=False)}, tmp_path / "mae_pretrain_vit_base.pth")
    with pytest.raises(CheckpointError, match=r"without its decoder.*mae_visualize_vit_base\.pth"):
        load_mae(tmp_path / "mae_pretrain_vit_base.pth")


def test_families() -> None:
    assert mae_family(official()) == "with-decoder"
    assert mae_family(official(decoder=False)) == "encoder-only"
    assert mae_family(dict(nn.Linear(2, 2).state_dict())) == "not-mae"
    assert official_target("some/mae_pretrain_vit_base.pth") is None


def test_a_strange_name_demands_the_target(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match="say target='pixels'"):
        load_mae(tmp_path / "mine.pth")
    assert load_mae(tmp_path / "mine.pth", target="normalised").target == "normalised"


def test_something_else_is_no_mae(tmp_path: Path) -> None:
    torch.save(build("classifier", "resnet20").state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"no masked autoencoder: its entries are conv1\.weight"):
        load_mae(tmp_path / "file.pth")


def test_heads_that_cannot_be_told(tmp_path: Path) -> None:
    torch.save(official(width=32), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"32 wide.*give heads="):
        load_mae(tmp_path / "file.pth", target="pixels")
    with pytest.raises(CheckpointError, match=r"64 cannot be split over 5 heads; give decoder_heads="):
        load_mae(tmp_path / "file.pth", target="pixels", heads=2, decoder_heads=5)
    assert load_mae(tmp_path / "file.pth", target="pixels", heads=2).blocks[0].attn.heads == 2


def test_oblong_and_mutilated_maes(tmp_path: Path) -> None:
    oblong = official() | {"pos_embed": torch.ones(1, 13, 192)}
    torch.save(oblong, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="oblong"):
        load_mae(tmp_path / "file.pth", target="pixels")
    mutilated = official()
    del mutilated["decoder_blocks.0.mlp.fc2.bias"]
    torch.save(mutilated, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"it lacks decoder_blocks\.0\.mlp\.fc2\.bias"):
        load_mae(tmp_path / "file.pth", target="pixels")
    del mutilated["blocks.0.mlp.fc1.weight"]
    torch.save(mutilated, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="official form"):
        load_mae(tmp_path / "file.pth", target="pixels")


@pytest.mark.parametrize("new", [False, True])
def test_names_of_transformers_old_and_new(new: bool) -> None:
    state = official()
    assert equal(convert_hugging_face(hugging_face(state, new=new)), state)


def test_settings_beside_a_transformers_file_are_used(tmp_path: Path) -> None:
    save_file(hugging_face(official(), new=True), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="say target="):
        load_mae(tmp_path / "model.safetensors")
    settings = {"num_attention_heads": 12, "decoder_num_attention_heads": 8, "norm_pix_loss": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = load_mae(tmp_path / "model.safetensors")
    assert (model.target, model.blocks[0].attn.heads, model.decoder_blocks[0].attn.heads) == ("normalised", 12, 8)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_mae(tmp_path / "model.safetensors")


def test_foreign_and_incomplete_transformers_files() -> None:
    state = hugging_face(official(), new=True)
    for name in ("classifier.weight", "vit.layers.0.attention.lora.weight"):
        with pytest.raises(CheckpointError, match=f"'{name}' is no parameter"):
            convert_hugging_face(state | {name: torch.ones(1)})
    del state["vit.layers.0.attention.k_proj.bias"]
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.attn\.qkv\.bias' needs a query, a key and a value"):
        convert_hugging_face(state)
