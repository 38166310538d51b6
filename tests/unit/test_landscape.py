"""The loss on a plane through an image: of a linear classifier it is known, and the command writes table and picture."""

from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from robustmim.analysis.landscape import landscape
from robustmim.attacks.objectives import cross_entropy
from robustmim.attacks.target import Target
from robustmim.cli.main import main
from robustmim.geometry import Ball
from robustmim.rng import keys
from tests.tiny import TINY_EVALUATION


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_along_the_gradient_of_a_linear_classifier_the_loss_is_known(norm):
    weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.tensor([0, 1, 0])

    def scores(z, drawn=None, progress=0.0):
        return (z - 0.5).flatten(1) @ weight.T

    ball = Ball(norm=norm, eps=0.1)
    found = landscape(Target(scores=scores, keys=keys(0, "attack", torch.arange(3))), x, y, ball, side=5)
    assert found.places == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert found.loss.shape == (3, 5, 5)
    torch.testing.assert_close(found.loss[:, 2, 2], cross_entropy(scores(x), y))
    gap = (weight[1] - weight[0]).abs().sum() if norm == "linf" else (weight[1] - weight[0]).norm()
    for row, place in enumerate(found.places):
        expected = torch.nn.functional.softplus(place * ball.eps * gap)
        torch.testing.assert_close(found.loss[:, row, 2], expected.expand(3))
    assert (found.missed[:, 3:, 2] == 1).all()
    assert (found.missed[:, :2, 2] == 0).all()


def test_the_command_writes_a_table_and_a_picture(tmp_path):
    options = ["--count", "2", "--side", "5", "--out", str(tmp_path / "plane")]
    assert main(["landscape", *TINY_EVALUATION[1:], *options]) == 0
    with (tmp_path / "plane" / "landscape.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 25
    assert {row["along"] for row in rows} == {"-1.0", "-0.5", "0.0", "0.5", "1.0"}
    assert Image.open(tmp_path / "plane" / "landscape.png").size == (2 * 40 + 12, 40)


@pytest.mark.parametrize("options", [["--side", "4"], ["--count", "0"], ["--only", "gray-box"]])
def test_what_makes_no_plane_is_refused(options, tmp_path, capsys):
    assert main(["landscape", *TINY_EVALUATION[1:], *options, "--out", str(tmp_path / "plane")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "plane").exists()
