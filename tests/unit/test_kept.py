"""Adversarial images that an evaluation keeps: those it judged, once each, also after an interruption."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from robustmim.cli.main import main
from robustmim.config import AttackConfig
from robustmim.evaluate.run import Evaluator, read_records
from robustmim.runs import RunFolder
from tests.tiny import TINY_EVALUATION
from tests.unit.test_evaluate import CPU, Halves, Images, R, noisy, recipe

NAMES = ("gray", "white, exact: 4/4")
ATTACKS = (AttackConfig(name=NAMES[0], against="classifier"), AttackConfig(name=NAMES[1], eot=2))


def kept(path, cuts=()):
    """Run with an interruption after so many cells; return what is in the folder."""
    source = Images()
    for cut in (*cuts, 10**9):
        evaluator = Evaluator(Halves(), noisy(0.05), recipe(*ATTACKS))
        folder = RunFolder(path, recipe={"evaluate": evaluator.recipe}, kind="evaluate")
        told = []
        evaluator.run(
            source,
            folder,
            device=CPU,
            keep_images=True,
            report=lambda done, note, told=told: told.append(done),
            stop=lambda cut=cut, told=told: len(told) >= cut,
        )
    found = {}
    for file in sorted((path / "adversarial").iterdir()):
        with safe_open(file, "pt") as opened:
            found[opened.metadata()["attack"]] = (opened.metadata(), load_file(file))
    return source, found


def test_what_is_kept_is_what_was_judged(tmp_path):
    source, found = kept(tmp_path)
    assert set(found) == set(NAMES)
    records = read_records(tmp_path)
    for name, (metadata, tensors) in found.items():
        assert (metadata["radius"], metadata["norm"]) == ("8/255", "linf")
        assert tensors["id"].tolist() == source.ids.tolist()
        assert tensors["label"].tolist() == source.labels.tolist()
        moved = tensors["perturbation"].float()
        assert moved.abs().max() <= float(R) * (1 + 2**-11)
        rows = records[name, "8/255", "purified"]
        for number, own in zip(tensors["id"].tolist(), moved, strict=True):
            assert own.abs().max() == pytest.approx(rows[number]["distance"], rel=1e-3)
    # Made on the bare classifier, without draws: they break it as they did there.
    attacked = source.images.float() / 255 + found["gray"][1]["perturbation"].float()
    right = (Halves()(attacked).argmax(1) == source.labels).int().tolist()
    bare = records["gray", "8/255", "bare"]
    assert sum(one != bare[number]["right"] for number, one in zip(source.ids.tolist(), right, strict=True)) <= 1


def test_interruptions_leave_the_same_images(tmp_path):
    _, whole = kept(tmp_path / "whole")
    _, cut = kept(tmp_path / "cut", cuts=(3, 2, 4))
    for name, (_, tensors) in whole.items():
        assert all(torch.equal(value, cut[name][1][key]) for key, value in tensors.items())
    assert not list((tmp_path / "cut" / "adversarial").glob("*.piece"))


def test_records_without_images_are_not_added_to(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main([*TINY_EVALUATION, *out]) in (0, 4)
    assert main([*TINY_EVALUATION, *out, "--keep_images", "true"]) == 2
    assert "not their images" in capsys.readouterr().err
    assert main([*TINY_EVALUATION, "--out", str(tmp_path / "other"), "--keep_images", "true"]) in (0, 4)
    assert len(list((tmp_path / "other" / "adversarial").glob("*.safetensors"))) == 2


def test_a_run_that_keeps_images_says_so_before_its_first_record(tmp_path):
    """Killed before the first attack is done, it goes on; and it goes on keeping them though it is not asked again."""
    _, whole = kept(tmp_path / "whole")
    path, evaluator = tmp_path / "cut", Evaluator(Halves(), noisy(0.05), recipe(*ATTACKS))
    folder, told = RunFolder(path, recipe={"evaluate": evaluator.recipe}, kind="evaluate"), []
    begun = {"device": CPU, "report": lambda done, note: told.append(done), "stop": lambda: len(told) >= 1}
    assert not evaluator.run(Images(), folder, keep_images=True, **begun)
    assert set(read_records(path)) == {("none", "0", "bare")}
    assert (path / "adversarial").is_dir()
    assert evaluator.run(Images(), folder, device=CPU)
    for file in (path / "adversarial").iterdir():
        with safe_open(file, "pt") as opened:
            _, tensors = whole.pop(opened.metadata()["attack"])
        assert all(torch.equal(value, tensors[key]) for key, value in load_file(file).items())
    assert not whole
