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


def test_odd_images_are_purified_and_one_without_a_neighbour_is_named(tmp_path, recipe, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture(folder / "pixel.png", size=(1, 1))
    picture(folder / "row.png", size=(9, 1))
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    Image.new("RGB", (8, 6), "red").quantize(4).save(folder / "palette.png")
    Image.new("CMYK", (8, 6)).save(folder / "print.jpg")
    (folder / "link.png").symlink_to(tmp_path / "gone.png")
    assert main(["purify", str(folder), "--recipe", recipe, "--out", str(out)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"{folder / 'pixel.png'}: a mask needs at least two patches" in told
    assert f"{folder / 'link.png'}: there is no such file" in told
    assert sorted(path.name for path in out.glob("*.png")) == ["moving.png", "palette.png", "print.png", "row.png"]
    with Image.open(out / "moving.png") as first:
        assert first.size == (8, 6)
        assert first.getpixel((4, 3))[0] > 200  # red: of an animation, the first frame


def test_a_pattern_without_images_stops_no_other(tmp_path, recipe, capsys):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "good.png")
    out = tmp_path / "out"
    words = ["purify", str(tmp_path / "none*.png"), str(tmp_path / "empty"), str(tmp_path / "good.png")]
    assert main([*words, "--recipe", recipe, "--out", str(out)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "none*.png: the pattern matches no images" in told
    assert "empty: the folder holds no images" in told
    assert [path.name for path in out.glob("*.png")] == ["good.png"]


def test_results_are_neither_purified_again_nor_written_over_what_they_came_from(tmp_path, recipe, capsys):
    picture(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    words = ["purify", str(tmp_path), "--recipe", recipe, "--out"]
    for _ in range(2):
        assert main([*words, str(tmp_path / "out")]) == 0
        assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["a.png"]
        assert len(read_lines(tmp_path / "out" / "traces.jsonl")) == 1
    assert main(["purify", str(tmp_path / "a.png"), "--recipe", recipe, "--out", str(tmp_path)]) == 1
    assert "choose another folder with --out" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "a.png").read_bytes() == before


def test_an_image_too_large_for_memory_stops_no_other(tmp_path, recipe, monkeypatch, capsys):
    from robustmim.purify.amrm import AMRMPure

    whole = AMRMPure.__call__

    def purify(self, x, **options):
        if x.shape[-1] > 30:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand so on")
        return whole(self, x, **options)

    monkeypatch.setattr(AMRMPure, "__call__", purify)
    for name, width in (("a", 40), ("b", 20)):
        picture(tmp_path / f"{name}.png", size=(width, 14))
    words = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--recipe", recipe, "--out", str(tmp_path / "out")]
    assert main(["purify", *words]) == 1
    assert "a.png: cannot be purified (DefaultCPUAllocator: can't allocate memory); try a smaller --size" in " ".join(
        capsys.readouterr().err.split()
    )
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["b.png"]


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
        (["FILE", "--classifier", "FILE"], 1, "--arch"),
        (["FILE", "--arch", "resnet56"], 2, "--classifier"),
        (["FILE", "--size", "0"], 2, "size is 0"),
        (["FILE", "--recipe=recommended-cifr10"], 2, "recommended-cifar10"),
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
