"""The demo on a few images: it says what it shows for what it is, and deletes nothing that is not its own."""

from __future__ import annotations

import dataclasses

import pytest

from robustmim.cli import demo
from robustmim.cli.main import main
from robustmim.config import AttackConfig
from robustmim.runs import read_json

pytest.importorskip("foolbox")


@pytest.fixture
def short(monkeypatch):
    recipe = demo.THUMBNAILS.recipe
    few = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, limit=4),
        radii=recipe.radii[:1],
        attacks=(
            AttackConfig(name="gray-box", against="classifier", options={"steps": 5}),
            AttackConfig(name="white-box", options={"steps": 1}, eot=2, images=2),
        ),
    )
    monkeypatch.setattr(demo, "THUMBNAILS", dataclasses.replace(demo.THUMBNAILS, recipe=few))


def test_demo_writes_a_page_and_says_what_it_shows(tmp_path, capsys, short):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--photos", "false", "--device", "cpu"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "the attacker does not know of the purifier" in told
    assert "identity gradient, a weak form" in told
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "CIFAR-10 thumbnails" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert read_json(tmp_path / "demo" / "thumbnails" / "run.json")["status"] == "finished"


def test_demo_leaves_other_peoples_files_alone(tmp_path, short):
    folder = tmp_path / "thumbnails"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    words = ["demo", "--out", str(tmp_path), "--photos", "false", "--device", "cpu"]
    assert main(words) == 0
    assert (folder / "mine.txt").read_text() == "keep me"
