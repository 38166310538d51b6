"""Detection: closed forms of threshold and AUROC, and what each score sees of made-up models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustmim.analysis.detection import Detector, area_under_curve, threshold_at
from robustmim.analysis.evasion import evade
from robustmim.cli.detect import AWARE, CALIBRATION, CLEAN, GRAY_BOX, conclude
from robustmim.cli.main import main
from robustmim.config import AMRMConfig, DetectRecipe, ReconstructionConfig
from robustmim.errors import InputError, RecipeError
from robustmim.geometry import Ball
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.masking import random_mask
from robustmim.models.record import AttentionRecorder
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.trace import attention_matrix_variation, variation
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.runs import read_json, read_lines


def test_a_threshold_holds_its_rate_on_images_it_has_not_seen():
    generator = torch.Generator().manual_seed(0)
    above = []
    for _ in range(400):
        draws = torch.rand(60, generator=generator).tolist()
        above.append(draws[0] > threshold_at(draws[1:], 0.1))
    assert 0.05 < sum(above) / len(above) <= 0.13  # 59 images: 6 of 60 ranks lie above, 10 % exactly
    assert threshold_at([3.0, 1.0, 2.0], 0.25) == 3.0
    with pytest.raises(RecipeError, match="take 99 at least"):
        threshold_at([0.0] * 50, 0.01)


def test_auroc_is_the_share_of_pairs_in_order():
    assert area_under_curve([0, 1], [2, 3])[0] == 1
    assert area_under_curve([2, 3], [0, 1])[0] == 0
    assert area_under_curve([1, 1], [1, 1])[0] == 0.5
    area, low, high = area_under_curve([0.0, 1.0, 2.0], [0.5, 1.5, 2.5, 3.0])
    assert area == pytest.approx(9 / 12)
    assert low < area < high
    with pytest.raises(InputError, match="at least one of each"):
        area_under_curve([], [1.0])


def test_the_interval_of_the_auroc_covers_the_truth():
    """Two normals one deviation apart: the true area is Φ(1/√2)."""
    generator = torch.Generator().manual_seed(1)
    truth = float(torch.special.ndtr(torch.tensor(0.5).sqrt()))
    held = 0
    for _ in range(300):
        clean, attacked = torch.randn(40, generator=generator), torch.randn(50, generator=generator) + 1
        _, low, high = area_under_curve(clean.tolist(), attacked.tolist())
        held += low <= truth <= high
    assert held / 300 > 0.91


def small(score, model=None, classifier=None):
    torch.manual_seed(0)
    model = MaskedConvolution(widths=(8,), blocks=(1,)) if model is None else model
    config = AMRMConfig(steps=3, step_size=Radius("4/255"), mask_ratio=0.5)
    return Detector(AMRMPure(model, config), score, classifier)


def tiny_mae():
    torch.manual_seed(0)
    return MaskedAutoencoder(
        image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2
    )


def smooth_images(n=4):
    line = torch.linspace(0.3, 0.7, 16)
    return (line[None, None, :, None] + line[None, None, None] * torch.arange(1, n + 1).view(n, 1, 1, 1) / n).expand(
        n, 3, 16, 16
    ) / 2 + 0.1


@pytest.mark.parametrize("score", ["reconstruction", "descent", "disagreement"])
def test_noise_scores_higher_than_the_smooth_image_it_is_on(score):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3))
    detector, x = small(score, classifier=classifier), smooth_images()
    noisy = x + 8 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    drawn = keys(0, "test", torch.arange(4))
    with torch.no_grad():
        if score == "descent":
            assert (detector(noisy, drawn) > 0).all()
        else:
            assert (detector(noisy, drawn) > detector(x, drawn)).all()


@pytest.mark.parametrize("score", ["reconstruction", "descent", "disagreement", "attention", "amv"])
def test_a_score_is_differentiable_and_does_not_depend_on_the_batch(score):
    model = tiny_mae() if score in ("attention", "amv") else None
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3))
    detector, x = small(score, model, classifier), smooth_images() + 0.05 * torch.rand(4, 3, 16, 16)
    drawn = keys(0, "test", torch.arange(4))
    leaf = x.clone().requires_grad_(True)
    scores = detector(leaf, drawn)
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    assert (slope.flatten(1).norm(dim=1) > 0).all()
    some = torch.tensor([2, 0])
    torch.testing.assert_close(detector(x[some], drawn[some]), scores[some].detach(), rtol=1e-4, atol=1e-5)


def test_the_variation_is_that_of_the_trace():
    model, x = tiny_mae(), smooth_images()
    reference, drawn = x.flip(0), keys(0, "test", torch.arange(4))
    mask = random_mask(drawn.fold("amv"), model.grid(16, 16), 0.5)
    with torch.no_grad(), AttentionRecorder(model, prefix="decoder_blocks") as recorder:
        model.reconstruct(x, mask)
        own = list(recorder.maps)
        recorder.clear()
        model.reconstruct(reference, mask)
    expected = attention_matrix_variation(model, x, reference, keys=drawn, ratio=0.5)
    assert (expected > 0).all()
    torch.testing.assert_close(variation(own, recorder.maps), expected)
    assert (variation(own, own) == 0).all()


def test_an_image_that_purification_leaves_alone_has_no_variation():
    still = AMRMPure(tiny_mae(), AMRMConfig(steps=1, step_size=Radius("0"), mask_ratio=0.5))
    drawn = keys(0, "test", torch.arange(4))
    with torch.no_grad():
        assert (Detector(still, "amv")(smooth_images(), drawn) == 0).all()
        assert (small("amv", tiny_mae())(smooth_images(), drawn) > 0).all()


class Bare:
    """A purifier without masked model or gradient."""

    traits = None

    def __call__(self, x, *, keys, callback=None):
        return x


def test_what_cannot_be_scored_is_said():
    drawn = keys(0, "test", torch.arange(4))
    with pytest.raises(RecipeError, match="compares answers of a classifier"):
        small("disagreement")
    for score in ("attention", "amv"):
        with pytest.raises(RecipeError, match="this masked model has none"):
            small(score)(smooth_images(), drawn)
    with pytest.raises(RecipeError, match="Bare hides none"):
        Detector(Bare(), "reconstruction")
    with pytest.raises(RecipeError, match="no gradient but the identity"):
        Detector(Bare(), "disagreement", nn.Identity())
    unmasked = MaskedReconstruction(MaskedConvolution(widths=(8,), blocks=(1,)), ReconstructionConfig(mask_ratio=0))
    with pytest.raises(RecipeError, match="MaskedReconstruction hides none"):
        Detector(unmasked, "descent")


@pytest.mark.parametrize("score", ["reconstruction", "descent", "disagreement"])
def test_a_purifier_of_one_pass_scores_too(score):
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3))
    model = MaskedConvolution(widths=(8,), blocks=(1,))
    detector = Detector(MaskedReconstruction(model, ReconstructionConfig(mask_ratio=0.5)), score, classifier)
    leaf = (smooth_images() + 0.05 * torch.rand(4, 3, 16, 16)).requires_grad_(True)
    (slope,) = torch.autograd.grad(detector(leaf, keys(0, "test", torch.arange(4))).sum(), leaf)
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_an_attacker_who_knows_the_detector_goes_around_it():
    """Two directions lead over the boundary; the detector sees one of them."""

    def sees(x, keys):
        return (x[:, 0] - 0.5).abs().mean((1, 2))

    def classifier(x):
        # The first channel counts twice, so plain PGD, which knows nothing of the detector, uses both.
        score = 2 * (x[:, 0] - 0.5).mean((1, 2)) + (x[:, 1] - 0.5).mean((1, 2)) - 0.03
        return torch.stack([-score, score], 1) * 20

    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    ball, drawn = Ball(norm="linf", eps=0.05), keys(0, "test", torch.arange(3))
    options = {"threshold": 0.01, "spread": 0.01, "keys": drawn, "steps": 60}
    plain = evade(classifier, sees, x, y, ball, weights=(0.0,), **options)
    aware = evade(classifier, sees, x, y, ball, weights=(0.0, 1.0, 10.0), **options)
    assert (classifier(plain).argmax(1) == 1).all()
    assert (sees(plain, None) > 0.01).all()
    assert (classifier(aware).argmax(1) == 1).all()
    assert (sees(aware, None) <= 0.01).all()
    assert (ball.distance(aware, x) <= 0.05 + 1e-6).all()


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 1.0)])
def test_an_attack_that_fails_comes_back_as_it_ended(weights):
    """A classifier out of reach: the images are attacked all the same, to the edge of the ball, and never the clean ones."""

    def sees(x, keys):
        return (x[:, 1] - 0.5).abs().mean((1, 2))

    def classifier(x):
        score = (x[:, 0] - 0.5).mean((1, 2)) - 1
        return torch.stack([-score, score], 1)

    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    ball, drawn = Ball(norm="linf", eps=0.05), keys(0, "test", torch.arange(3))
    found = evade(
        classifier, sees, x, y, ball, threshold=-torch.inf, spread=0.01, keys=drawn, steps=20, weights=weights
    )
    assert (classifier(found).argmax(1) == 0).all()
    torch.testing.assert_close(found[:, 0], x[:, 0] + 0.05)
    if len(weights) > 1:  # the run that knows of the detector stands, not the one that does not
        assert (sees(found, None) < 0.005).all()


def test_images_that_were_wrong_before_are_nobodys_success():
    """Ten clean images, two of them wrong; the attack fools three more, one of which is noticed."""
    recipe = DetectRecipe(false_positive_rate=0.25, radii=(Radius("8/255"),))

    def rows(cell, radius, scores, wrong, start):
        samples = [{"id": start + i, "score": s, "right": int(i not in wrong)} for i, s in enumerate(scores)]
        return [{"cell": cell, "radius": radius, **sample} for sample in samples]

    low = [0.1 * i for i in range(10)]
    attacked = [*low[:9], 5.0]
    records = rows(CALIBRATION, "0", [0.0, 1.0, 2.0], (), 0) + rows(CLEAN, "0", low, (0, 1), 10)
    for attack in (GRAY_BOX, AWARE):
        records += rows(attack, "8/255", attacked, (0, 1, 7, 8, 9), 10)
    claim = conclude(records, recipe, score="descent", classifier="c", purifier="p")
    assert claim["threshold"] == 2.0
    assert claim["clean"]["wrong_and_undetected"]["count"] == 2
    row = claim["attacks"][0]
    counted = {name: (row[name]["count"], row[name]["n"]) for name in row if name not in ("attack", "radius", "auroc")}
    assert counted == {
        "detected": (1, 10),
        "fooled": (3, 8),
        "fooled_and_detected": (1, 3),
        "fooled_and_undetected": (2, 8),
        "wrong_and_undetected": (4, 10),
    }
    assert not claim["findings"]


FEW = ["detect", "detect-cifar10", "--data.name", "samples-cifar10", "--data.skip", "0", "--limit", "12"]
FEW += ["--calibration", "6", "--false_positive_rate", "0.2", "--radii", "[8/255]", "--steps", "2"]


def test_the_command_measures_resumes_and_scores_files(tmp_path, capsys):
    pytest.importorskip("foolbox")
    out = tmp_path / "run"
    assert main([*FEW, "--out", str(out), "--max_time", "0s"]) == 130
    code = main([*FEW, "--out", str(out)])
    claim = read_json(out / "claim.json")
    assert code == (4 if claim["findings"] else 0)
    assert claim["images"] == 6
    assert claim["score"] == "disagreement"
    assert claim["clean"]["wrong_and_undetected"]["n"] == claim["false_positives"]["n"] == 6
    assert [(row["attack"], row["radius"]) for row in claim["attacks"]] == [
        ("gray-box", "8/255"),
        ("aware of the detector", "8/255"),
    ]
    assert [len(line["samples"]) for line in read_lines(out / "records.jsonl")] == [6, 6, 6, 6]
    again = read_lines(out / "records.jsonl")
    main([*FEW, "--out", str(out)])
    assert read_lines(out / "records.jsonl") == again
    from robustmim.data.images import write_image

    write_image(tmp_path / "grey.png", torch.full((3, 32, 32), 0.5))
    capsys.readouterr()
    assert main([*FEW, "--images", str(tmp_path / "grey.png"), "--json"]) == 0
    assert '"attacked"' in capsys.readouterr().out
    (tmp_path / "a-text.png").write_text("not an image")
    assert main([*FEW, "--images", str(tmp_path / "*.png"), "--json"]) == 1
    told = capsys.readouterr()
    assert "not scored: " in told.err and "a-text.png: this is not an image" in " ".join(told.err.split())
    assert "grey.png" in told.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--calibration", "12"], "leaves none to attack"),
        (["--purifier", "median", "--score", "reconstruction"], "hides none"),
        (["--score", "attention"], "this masked model has none"),
        (["--statistic", "amv"], "add --score attention"),
        (["--statistic", "amv", "--score", "attention"], "this masked model has none"),
        (["--score", "looks"], "reconstruction"),
    ],
)
def test_mistakes_are_answered(tmp_path, capsys, words, says):
    pytest.importorskip("foolbox")
    assert main([*FEW, *words, "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
