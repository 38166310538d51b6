"""`robustmim evaluate --limit`: an attacker has as much of the data however few images are measured."""

from __future__ import annotations

import pytest

from robustmim.cli.main import main
from robustmim.runs import read_lines
from tests.tiny import TINY_EVALUATION

pytest.importorskip("foolbox")


def test_two_images_can_be_attacked_by_what_takes_sixteen(tmp_path):
    attack = "[{name: information, attack: mutual-information, against: classifier, options: {steps: 1, images: 16}}]"
    words = [*TINY_EVALUATION[:-1], attack, "--purifier", "none", "--limit", "2", "--out", str(tmp_path)]
    assert main(words) in (0, 4)
    assert len(read_lines(tmp_path / "records.jsonl")) == 4
