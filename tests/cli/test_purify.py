"""`robustmim purify`: good files are finished, bad ones listed, and nothing ends in a traceback."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from robustmim.cli.main import main
from robustmim.models.zoo import save_model
from robustmim.runs import read_lines
from tests.unit.test_masked_models import tiny_conv, tiny_mae


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "conv"
    options = {"patch_size": 1, "widths": [8, 16], "blocks": [1, 1]}
    save_model(folder, tiny_conv(), {"kind": "masked-model", "name": "masked-conv", "options": options})
    path = tmp_path / "tiny.yaml"
    path.write_text(f"masked_model: {folder}\namrm: {{steps: 2, step_size: 2/255, radius: 8/255}}\n")
    return str(path)


def picture(path, mode="RGB", size=(20, 14), value=None):
    generator = np.random.default_rng(0)
    channels = {"RGB": 3, "RGBA": 4, "L": None}[mode]
    shape = (size[1], size[0]) if channels is None else (size[1], size[0], channels)
    pixels = generator.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    Image.fromarray(pixels, mode).save(path)


def test_a_folder_keeps_its_good_files_and_lists_the_bad(tmp_path, recipe, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture(folder / "colour.png")
    picture(folder / "grey.png", "L")
    picture(folder / "alpha.png", "RGBA")
    Image.fromarray(np.full((9, 11), 40000, np.uint16)).save(folder / "sixteen.png")
    (folder / "text.png").write_text("not an image")
    (folder / "cut.png").write_bytes((folder / "colour.png").read_bytes()[:300])
    assert main(["purify", str(folder), "--recipe", recipe, "--out", str(out)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "text.png" in told
    assert "cut.png" in told
    assert "Traceback" not in told
    assert sorted(path.name for path in out.glob("*.png")) == ["alpha.png", "colour.png", "grey.png", "sixteen.png"]
    rows = read_lines(out / "traces.jsonl")
    assert len(rows) == 4
    assert all(len(row["loss"]) == 2 for row in rows)
    with Image.open(out / "colour.png") as purified, Image.open(folder / "colour.png") as original:
        assert purified.size == original.size
        distance = np.abs(np.asarray(purified, dtype=int) - np.asarray(original, dtype=int)).max()
        assert 0 < distance <= 8
    with Image.open(out / "sixteen.png") as purified:
        assert abs(int(np.asarray(purified)[0, 0, 0]) - round(40000 * 255 / 65535)) <= 8


def test_turned_photographs_are_set_upright(tmp_path, recipe):
    image = Image.new("RGB", (20, 10), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert main(["purify", str(tmp_path / "turned.jpg"), "--recipe", recipe, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "turned.png") as purified:
        assert purified.size == (10, 20)


def test_a_file_purifies_to_the_same_bits_alone_and_in_a_folder(tmp_path, recipe):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        picture(folder / f"{name}.png", size=(16 + ord(name) % 5, 16))
    assert main(["purify", str(folder), "--recipe", recipe, "--out", str(tmp_path / "all")]) == 0
    assert main(["purify", str(folder / "b.png"), "--recipe", recipe, "--out", str(tmp_path / "one")]) == 0
    assert (tmp_path / "all" / "b.png").read_bytes() == (tmp_path / "one" / "b.png").read_bytes()


def test_same_names_from_two_folders_do_not_overwrite_each_other(tmp_path, recipe):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        picture(tmp_path / name / "same.png")
    words = ["purify", str(tmp_path / "x"), str(tmp_path / "y"), "--recipe", recipe, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_an_autoencoder_gets_the_size_it_takes(tmp_path):
    options = {"image_size": 16, "width": 16, "depth": 2, "heads": 2}
    options |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    save_model(tmp_path / "mae", tiny_mae(), {"kind": "masked-model", "name": "mae", "options": options})
    recipe = tmp_path / "mae.yaml"
    recipe.write_text(f"masked_model: {tmp_path / 'mae'}\namrm: {{steps: 1}}\n")
    picture(tmp_path / "wide.png", size=(40, 25))
    assert main(["purify", str(tmp_path / "wide.png"), "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "wide.png") as purified:
        assert purified.size == (16, 16)


def test_classifies_before_and_after(tmp_path, recipe, capsys):
    torch.manual_seed(0)
    from robustmim.models.fast_cnn import FastCNN

    options = {"classes": 3, "widths": [8, 8, 8]}
    model = FastCNN(classes=3, widths=(8, 8, 8))
    save_model(tmp_path / "classifier", model, {"kind": "classifier", "name": "fast-cnn", "options": options})
    picture(tmp_path / "a.png", size=(32, 32))
    words = ["purify", str(tmp_path / "a.png"), "--recipe", recipe, "--out", str(tmp_path / "out")]
    assert main([*words, "--classifier", str(tmp_path / "classifier"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["class_before"] in range(3)
    assert 0 < row["confidence_after"] <= 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "name the images"),
        (["nowhere/*.png"], 1, "nowhere"),
        (["EMPTY"], 1, "no image"),
        (["FILE", "--recipe", "recommended-cifr10"], 2, "recommended-cifar10"),
        (["FILE", "--recipe"], 2, "--recipe needs"),
        (["FILE", "--amrm.stpes", "3"], 2, "amrm.steps"),
        (["FILE", "--amrm.step_size", "8"], 2, "8/255"),
        (["FILE", "--device", "gpu7"], 5, "no device"),
        (["FILE", "--masked_model", "masked-conv-cifar1"], 1, "masked-conv-cifar10"),
        (["FILE", "--out", "FILE/below"], 1, "cannot write"),
        (["FILE", "--classifier", "FILE", "--arch", "resnet56"], 1, "FILE"),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_code(tmp_path, capsys, words, code, says):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "file.png")
    put = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "file.png")}
    words = [word.replace("FILE", put["FILE"]) if "FILE" in word else put.get(word, word) for word in words]
    if words and "--out" not in words:
        words += ["--out", str(tmp_path / "out")]
    assert main(["purify", *words]) == code
    told = capsys.readouterr().err
    assert put.get(says, says) in " ".join(told.split())
    assert "Traceback" not in told
