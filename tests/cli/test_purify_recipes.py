"""Every purification recipe that ships, and whose weights are here, purifies an image from the command line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from robustmim.cli.main import main
from robustmim.config import PurifyRecipe
from robustmim.models.zoo import zoo_names
from robustmim.recipe import load_recipe, recipe_names
from robustmim.runs import read_lines

NAMES = [name for name, path in recipe_names().items() if path.parent.name == "purify"]
ASKING = ("soap-cifar10", "coup-unet-cifar10")
"""Those that ask the classifier which they defend."""


def weights_are_here(name):
    recipe = load_recipe(PurifyRecipe, name)
    wanted = recipe.masked_model if recipe.baseline is None else recipe.baseline.model
    return wanted in (None, "defended", *zoo_names())


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("name", [name for name in NAMES if weights_are_here(name)])
def test_an_image_is_purified(name, picture, tmp_path):
    words = ["purify", str(picture), "--recipe", name, "--out", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--classifier", "fast-cnn-cifar10"] if name in ASKING else []
    assert main(words) == 0
    with Image.open(tmp_path / "out" / "picture.png") as purified, Image.open(picture) as original:
        assert purified.size == (32, 32)
        same = np.asarray(purified).tobytes() == np.asarray(original).tobytes()
        # Where no radius lowers its loss, SOAP leaves an image as it is.
        assert not same or name == "soap-cifar10"
    (row,) = read_lines(tmp_path / "out" / "traces.jsonl")
    assert row["file"] == str(picture)


@pytest.mark.parametrize("name", ASKING)
def test_who_asks_the_classifier_says_that_there_is_none(name, picture, tmp_path, capsys):
    assert main(["purify", str(picture), "--recipe", name, "--out", str(tmp_path / "out")]) == 2
    assert "name one (--classifier" in " ".join(capsys.readouterr().err.split())
