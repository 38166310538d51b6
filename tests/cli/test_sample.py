"""`sample`: a picture of what a diffusion model draws."""

from __future__ import annotations

import pytest
import torch

from robustmim.cli.main import main
from robustmim.config import ModelConfig
from robustmim.data.images import read_image
from robustmim.models.zoo import save_model, saved_config
from tests.unit.test_maskdit import OPTIONS, tiny


@pytest.fixture
def folder(tmp_path):
    options = {**OPTIONS, "classes": 3}
    config = saved_config("masked-model", ModelConfig(name="maskdit", options=options))
    save_model(tmp_path / "model", tiny(classes=3), config)
    return str(tmp_path / "model")


def test_a_grid_of_samples_whose_first_images_do_not_depend_on_their_number(folder, tmp_path):
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    for out, count in ((few, "2"), (many, "3")):
        words = ["sample", folder, "--out", str(out), "--count", count, "--steps", "2", "--device", "cpu"]
        assert main([*words, "--label", "1"]) == 0
    assert read_image(few).shape == (3, 16, 32)
    assert read_image(many).shape == (3, 32, 32)
    # Two of the three stand in the first row.
    assert torch.equal(read_image(few), read_image(many)[:, :16])
    assert read_image(many)[:, 16:, 16:].eq(255).all()


def test_a_row_for_each_class_is_what_that_class_alone_draws(folder, tmp_path):
    words = ["sample", folder, "--count", "2", "--steps", "2", "--device", "cpu"]
    assert main([*words, "--each-class", "--out", str(tmp_path / "all.png")]) == 0
    rows = read_image(tmp_path / "all.png")
    assert rows.shape == (3, 3 * 16, 2 * 16)
    for label in range(3):
        assert main([*words, "--label", str(label), "--out", str(tmp_path / "one.png")]) == 0
        assert torch.equal(read_image(tmp_path / "one.png"), rows[:, 16 * label : 16 * (label + 1)])
    assert not torch.equal(rows[:, :16], rows[:, 16:32])


def test_a_model_without_classes_has_no_row_for_each(capsys):
    assert main(["sample", "maskdit-micro-cifar10", "--each-class"]) == 2
    assert "knows no classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODEL", "--label", "1", "--each-class"], "leave one out"),
        ([], "name a diffusion model"),
        (["masked-conv-cifar10"], "no diffusion model"),
        (["MODEL", "--label", "3"], "no class 3"),
        (["MODEL", "--count", "0"], "at least one"),
    ],
)
def test_mistakes_are_told(folder, capsys, words, says):
    assert main(["sample", *(folder if word == "MODEL" else word for word in words)]) in (1, 2)
    assert says in capsys.readouterr().err
