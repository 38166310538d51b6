"""Randomised smoothing against closed forms; and the purifier of one pass that makes it affordable."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binomtest

from robustmim.config import CertifyRecipe, GradientConfig, PurifyRecipe, ReconstructionConfig
from robustmim.errors import InputError, RecipeError
from robustmim.evaluate.certify import (
    RADII,
    Smoothed,
    base_classifier,
    certified_radius,
    conclude,
    largest_radius,
    record_of,
)
from robustmim.evaluate.statistics import clopper_pearson_lower
from robustmim.models.masking import enlarge, partition_masks
from robustmim.purify.defended import Defended
from robustmim.purify.load import describe
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.trace import Trace
from robustmim.purify.traits import DifferentiablePurifier, Traits
from robustmim.rng import keys
from tests.unit.test_masked_models import tiny_conv, tiny_mae

generator = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(3, 4, 4, generator=generator)
LENGTH = float(WEIGHT.norm())
MIDDLE = torch.full((3, 4, 4), 0.5)


def linear(z, drawn):
    """Class 1 where w · (z − 1/2) > 0: its smoothed classifier is itself, and its radius the distance from the plane."""
    score = ((z - 0.5) * WEIGHT).flatten(1).sum(1)
    return torch.stack([-score, score], dim=1)


def at_distance(distance: float) -> torch.Tensor:
    return MIDDLE + distance * WEIGHT / LENGTH


def recipe(**changes) -> CertifyRecipe:
    return CertifyRecipe(**{"sigma": 0.25, "selection_draws": 20, "draws": 500, "seed": 3} | changes)


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("sigma", [0.12, 0.25])
def test_the_radius_of_a_linear_classifier_is_its_distance_from_the_plane(distance, sigma):
    own = recipe(sigma=sigma, selection_draws=1000, draws=4000)
    smoothed = Smoothed(linear, own)
    # What Clopper-Pearson gives when the draws come out three standard deviations low.
    share = NormalDist().cdf(distance / sigma)
    few = math.floor(4000 * share - 3 * math.sqrt(4000 * share * (1 - share)))
    least = certified_radius(clopper_pearson_lower(few, 4000, own.alpha), sigma)
    for number in range(5):
        for sign in (1, -1):
            found = smoothed.certify(at_distance(sign * distance), number)
            assert found.predicted == found.most == (sign > 0)
            assert least <= found.radius <= min(distance, largest_radius(own)) + 1e-9


def test_certificates_of_a_known_radius_are_rarely_wrong():
    own = recipe(alpha=0.1, draws=100)
    radii = [Smoothed(linear, own).certify(at_distance(0.2), number).radius for number in range(300)]
    wrong = sum(radius > 0.2 for radius in radii)
    assert binomtest(wrong, 300, 0.1, alternative="greater").pvalue > 1e-3
    assert wrong > 0  # and the bound is not so loose that α means nothing


def test_more_draws_bring_the_radius_nearer_to_the_true_one():
    radii = [Smoothed(linear, recipe(draws=n)).certify(at_distance(0.2), 0).radius for n in (50, 500, 5000, 50_000)]
    assert radii == sorted(radii)
    assert 0.19 < radii[-1] <= 0.2


def test_it_abstains_on_the_boundary_and_says_so():
    found = Smoothed(linear, recipe()).certify(MIDDLE, 0)
    assert found.predicted is None
    assert found.radius == 0
    assert found.lower <= 0.5
    record = record_of(found, number=0, label=1)
    assert record["predicted"] is None
    assert record["most"] in (0, 1)


def test_answers_that_are_no_numbers_certify_nothing():
    found = Smoothed(lambda z, drawn: torch.full((len(z), 2), torch.nan), recipe()).certify(MIDDLE, 0)
    assert (found.predicted, found.radius, found.most) == (None, 0.0, None)
    half = Smoothed(lambda z, drawn: torch.where(drawn.uniform(1) < 0.6, 1.0, torch.nan).expand(-1, 2), recipe())
    found = half.certify(MIDDLE, 0)
    # Draws without an answer stay among the n: three of five are not all.
    assert 0 < found.radius < 0.1
    assert 250 < found.count < 350


def test_results_do_not_depend_on_batches_or_neighbours():
    found = [Smoothed(linear, recipe(batch_size=size)).certify(at_distance(0.1), 7) for size in (1, 7, 100, 1000)]
    assert all(one == found[0] for one in found)
    smoothed = Smoothed(linear, recipe())
    smoothed.certify(at_distance(-0.1), 6)
    assert smoothed.certify(at_distance(0.1), 7) == found[0]
    assert smoothed.certify(at_distance(0.1), 8) != found[0]


def test_every_draw_has_noise_and_keys_of_its_own_and_no_clip():
    seen = []

    def watched(z, drawn):
        seen.append((z, drawn.values))
        return linear(z, drawn)

    own = recipe(selection_draws=50, draws=150, batch_size=50)
    Smoothed(watched, own).certify(MIDDLE, 0)
    noise = torch.cat([z for z, _ in seen]) - MIDDLE
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 200
    assert len(torch.cat([values for _, values in seen]).unique()) == 200
    assert noise.std() == pytest.approx(0.25, rel=0.03)
    assert abs(float(noise.mean())) < 0.01
    assert noise.min() < -0.5  # below black: the clip belongs to the base classifier


def test_the_base_classifier_clips_before_it_purifies():
    class Watched:
        traits = Traits(randomised=False, optimises_at_test_time=False, steps=1)

        def __call__(self, x, *, keys, callback=None):
            assert x.min() == 0
            assert x.max() == 1
            return 1 - x

    z = torch.tensor([[-0.5, 0.25], [0.75, 1.5]]).expand(2, 3, 2, 2)
    sums = torch.nn.Flatten()
    drawn = keys(0, "test", torch.arange(2))
    assert torch.equal(base_classifier(sums)(z, drawn), z.clamp(0, 1).flatten(1))
    assert torch.equal(base_classifier(sums, Watched())(z, drawn), 1 - z.clamp(0, 1).flatten(1))


def test_a_stop_is_heard_between_batches():
    asked = iter([False, False, True])
    assert Smoothed(linear, recipe(batch_size=10)).certify(MIDDLE, 0, stop=lambda: next(asked, True)) is None


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (1, 10), (6, 10), (9, 10), (10, 10), (871, 1000), (999, 1000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_against_scipy(correct, n, alpha):
    # A one-sided bound at α is an end of the two-sided interval at 2 α.
    expected = binomtest(correct, n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact").low
    assert clopper_pearson_lower(correct, n, alpha) == pytest.approx(expected, abs=1e-9)


def test_clopper_pearson_and_the_radius_are_monotone():
    bounds = [clopper_pearson_lower(correct, 100, 0.001) for correct in range(101)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == pytest.approx(0.001**0.01)
    assert clopper_pearson_lower(90, 100, 0.001) < clopper_pearson_lower(90, 100, 0.05)
    radii = [certified_radius(bound, 0.25) for bound in bounds]
    assert radii == sorted(radii)
    assert certified_radius(0.5, 0.25) == 0
    assert certified_radius(NormalDist().cdf(1.0), 0.25) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "changes",
    [{"sigma": 0.0}, {"sigma": math.inf}, {"alpha": 0.0}, {"alpha": 1.0}, {"draws": 0}, {"selection_draws": 0}],
)
def test_recipes_that_certify_nothing_are_refused(changes):
    with pytest.raises(RecipeError, match=next(iter(changes))):
        Smoothed(linear, recipe(**changes))


def test_a_claim_counts_what_is_right_and_certified():
    own = recipe()
    rows = [(1, 0.3), (1, 0.1), (0, 0.3), (None, 0.0)]
    records = [
        {"id": i, "label": 1, "predicted": predicted, "radius": radius, "count": 0, "most": 1}
        for i, (predicted, radius) in enumerate(rows)
    ]
    content = conclude(records, own, classifier="linear", purifier=None)
    certified = {row["radius"]: row["correct"] for row in content["certified"]}
    # At exactly 0.1 the theorem, which speaks of shorter perturbations, certifies no more.
    assert certified == {0.0: 2, 0.1: 1, 0.25: 1, 0.5: 0, 0.75: 0, 1.0: 0}
    assert list(certified) == list(RADII)
    assert content["curve"] == [0.1, 0.3]
    assert content["mean_radius"] == pytest.approx(0.1)
    assert content["abstained"]["correct"] == 1
    assert content["smoothed"]["correct"] == 4
    assert "0.75, 1.0" in content["findings"][0]["sentence"]


@pytest.mark.parametrize(
    ("answers", "labels", "warns"),
    [
        ([2] * 10, [2, 2, *range(3, 10), 0], True),
        ([2] * 6 + [0, 1, 3, 4], [2] * 3 + [5] * 3 + [0, 1, 3, 4], False),  # twice as many as belong to it, and no more
        ([2] * 5 + [0, 1, 3, 4, 5], [6] * 5 + [0, 1, 3, 4, 5], False),  # half, and no more
        ([2] * 10, [2] * 10, False),
        ([None] * 10, [2] * 10, False),
        ([2] * 9, [0] * 9, False),
    ],
)
def test_a_claim_warns_of_a_classifier_that_always_gives_one_answer(answers, labels, warns):
    records = [
        {"id": i, "label": label, "predicted": answer, "radius": 0.1, "count": 0, "most": answer}
        for i, (answer, label) in enumerate(zip(answers, labels, strict=True))
    ]
    findings = conclude(records, recipe(draws=10**6), classifier="constant", purifier=None)["findings"]
    found = [finding["sentence"] for finding in findings if "most frequent answer" in finding["sentence"]]
    assert bool(found) == warns
    if warns:
        assert "class 2 is the most frequent answer to 10 of 10 images, while 2 belong to it" in found[0]
        assert "8 images are certified with a wrong class" in found[0]


# The purifier of one pass.

x = torch.rand(5, 3, 16, 16, generator=generator)
KEYS = keys(0, "test", torch.arange(5))


@pytest.fixture(params=["mae", "conv"])
def model(request):
    return {"mae": tiny_mae, "conv": tiny_conv}[request.param]()


@pytest.mark.parametrize("config", [ReconstructionConfig(), ReconstructionConfig(mask_ratio=0.3, blend=0.5)])
def test_a_reconstruction_is_an_image_and_each_sample_its_own(model, config):
    purifier = MaskedReconstruction(model, config)
    together = purifier(x, keys=KEYS)
    assert together.shape == x.shape
    assert together.min() >= 0
    assert together.max() <= 1
    assert not torch.equal(together, x)
    for i in (0, 4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert torch.equal(purifier(x[1:4], keys=KEYS[1:4]), together[1:4])
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 16)
    assert purifier.traits.randomised
    assert not purifier.traits.optimises_at_test_time


def test_the_blend_goes_from_the_input_to_the_prediction(model):
    def purified(blend: float) -> torch.Tensor:
        return MaskedReconstruction(model, ReconstructionConfig(mask_ratio=0.5, blend=blend))(x, keys=KEYS)

    assert torch.equal(purified(0.0), x)
    torch.testing.assert_close(purified(0.25), 0.75 * x + 0.25 * purified(1.0))
    # Each cell is what the model says of it under the mask that hides it.
    for mask in partition_masks(KEYS.fold("mask"), model.grid(16, 16), 0.5):
        expected = model.reconstruct(x, mask, need_pixels=True).pixels.clamp(0, 1)
        hidden = enlarge(mask, model.patch_size).expand_as(x)
        torch.testing.assert_close(purified(1.0)[hidden], expected[hidden])


def test_cells_that_no_mask_hides_keep_their_pixels():
    model = tiny_conv()
    masks = partition_masks(KEYS.fold("mask"), (16, 16), 0.4)
    left = ~torch.stack(masks).any(0)
    assert left.any()
    found = MaskedReconstruction(model, ReconstructionConfig(mask_ratio=0.4, blend=0.7))(x, keys=KEYS)
    kept = enlarge(left, 1).expand_as(x)
    assert torch.equal(found[kept], x[kept])


def test_a_prediction_does_not_see_the_pixel_it_replaces():
    model = tiny_conv()
    purifier = MaskedReconstruction(model, ReconstructionConfig())
    changed = x.clone()
    changed[:, :, 5, 5] = 1 - changed[:, :, 5, 5]
    before, after = purifier(x, keys=KEYS), purifier(changed, keys=KEYS)
    assert torch.equal(before[:, :, 5, 5], after[:, :, 5, 5])
    assert not torch.equal(before, after)


def test_its_gradient_is_exact():
    purifier = MaskedReconstruction(tiny_conv(), ReconstructionConfig(blend=0.8))
    assert isinstance(purifier, DifferentiablePurifier)
    linear_map = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2)).requires_grad_(False)
    model = Defended(purifier, linear_map, gradient=GradientConfig(mode="exact"))
    middle = 0.3 + 0.4 * x
    point = middle.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(point, KEYS)[:, 0].sum(), point)
    direction = torch.randn(x.shape, generator=generator)
    step = 1e-2 * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        difference = (model(middle + step, KEYS)[:, 0] - model(middle - step, KEYS)[:, 0]) / 2
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), difference, rtol=2e-2, atol=2e-5)
    torch.testing.assert_close(model(point, KEYS), linear_map(purifier(middle, keys=KEYS)))


def test_a_trace_has_one_step_and_bad_settings_are_refused():
    trace = Trace()
    purifier = MaskedReconstruction(tiny_conv(), ReconstructionConfig())
    purifier(x, keys=KEYS, callback=trace)
    assert len(trace.mean()["loss"]) == 1
    with pytest.raises(InputError):
        purifier(x + 1, keys=KEYS)
    for wrong in ({"blend": 1.5}, {"blend": -0.1}, {"mask_ratio": -0.1}, {"mask_ratio": 1.0}):
        with pytest.raises(RecipeError, match=r"blend|ratio"):
            MaskedReconstruction(tiny_conv(), ReconstructionConfig(**wrong))


def test_what_it_is_called():
    named = describe(PurifyRecipe(masked_model="some-model", reconstruction=ReconstructionConfig(blend=0.5)))
    assert named == "masked reconstruction, some-model, mask 0.5 fresh, blend 0.5"


def test_denoising_with_random_masks_gives_each_draw_its_own():
    purifier = MaskedReconstruction(tiny_conv(), ReconstructionConfig())
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    found = [
        Smoothed(base_classifier(classifier, purifier), recipe(draws=40, batch_size=size)).certify(x[0], 0)
        for size in (3, 40)
    ]
    assert found[0] == found[1]
