"""Where models are looked for: a folder, the package, the checkout, a folder of one's own."""

import pytest
import torch

from robustmim.errors import CheckpointError
from robustmim.models.zoo import ZOO, find, load_model, save_model, zoo_names
from robustmim.registry import build

OPTIONS = {"widths": [8, 16], "blocks": [1, 1]}


def saved(folder):
    model = build("masked-model", "masked-conv", **OPTIONS)
    save_model(folder, model, {"kind": "masked-model", "name": "masked-conv", "options": OPTIONS, "classes": []})
    return model


def test_a_zoo_of_ones_own_is_searched_and_listed(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="ROBUSTMIM_ZOO"):
        find("my-masked-conv")
    model = saved(tmp_path / "my-masked-conv")
    monkeypatch.setenv("ROBUSTMIM_ZOO", str(tmp_path))
    assert "my-masked-conv" in zoo_names()
    assert find("my-masked-conv") == tmp_path / "my-masked-conv"
    loaded = load_model("my-masked-conv", kind="masked-model").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_what_the_package_holds_comes_before_other_shelves_and_a_folder_before_all(tmp_path, monkeypatch):
    saved(tmp_path / "zoo" / "fast-cnn-cifar10")
    monkeypatch.setenv("ROBUSTMIM_ZOO", str(tmp_path / "zoo"))
    assert find("fast-cnn-cifar10") == ZOO / "fast-cnn-cifar10"
    assert zoo_names().count("fast-cnn-cifar10") == 1
    monkeypatch.chdir(tmp_path / "zoo")
    assert str(find("fast-cnn-cifar10")) == "fast-cnn-cifar10"
