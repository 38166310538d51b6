"""AMRM-Pure: every switch does what it says, and a sample's result is its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from robustmim.config import AMRMConfig, PurifyRecipe
from robustmim.errors import InputError, RecipeError
from robustmim.models.masking import random_mask
from robustmim.purify.amrm import AMRMPure, ReconstructionObjective, step_sizes
from robustmim.purify.defended import Defended
from robustmim.purify.load import describe
from robustmim.purify.trace import Trace
from robustmim.radius import Radius
from robustmim.rng import content_ids, keys
from tests.unit.test_masked_models import tiny_context, tiny_conv, tiny_mae

x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KEYS = keys(0, "test", torch.arange(5))
FEW = AMRMConfig(steps=3, step_size=Radius("2/255"), radius=Radius("8/255"))


def variants(**changes) -> AMRMConfig:
    return dataclasses.replace(FEW, **changes)


@pytest.fixture(params=["mae", "conv", "context"])
def model(request):
    return {"mae": tiny_mae, "conv": tiny_conv, "context": tiny_context}[request.param]()


@pytest.mark.parametrize(
    "config",
    [
        FEW,
        variants(masks="fixed"),
        variants(masks="fixed-global"),
        variants(masks="complementary", mask_average=2),
        variants(mask_average=2),
        variants(mask_scales=(2, 1)),
        variants(mask_scales=(1, 2), mask_average=2, masks="complementary"),
        variants(gradient="input"),
        variants(gradient="target"),
        variants(output="mean"),
        variants(output="best"),
        variants(start_noise=Radius("4/255")),
        variants(norm="l2", radius=Radius("0.5"), step_size=Radius("0.1")),
        variants(schedule="cosine"),
        variants(decay=0.5),
        variants(radius=Radius("inf")),
    ],
    ids=lambda config: ",".join(f"{k}={v}" for k, v in vars(config).items() if v != vars(FEW)[k]) or "plain",
)
def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(model, config):
    purifier = AMRMPure(model, config)
    together = purifier(x, keys=KEYS)
    for i in (0, 4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert torch.equal(purifier(x[1:4], keys=KEYS[1:4]), together[1:4])
    assert together.min() >= 0
    assert together.max() <= 1
    if config.radius < 1 and config.norm == "linf":
        assert (together - x).abs().max() <= config.radius + 1e-6


def test_one_step_is_equation_4(model):
    config = variants(steps=1)
    mask = random_mask(KEYS.fold("mask", 0), model.grid(16, 16), config.mask_ratio)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.reconstruct(point, mask).loss.sum(), point)
    expected = (x - config.step_size * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(AMRMPure(model, config)(x, keys=KEYS), expected)


def test_one_step_at_a_coarser_scale_is_equation_4_under_a_coarser_mask(model):
    mask = random_mask(KEYS.fold("mask", 0), model.grid(16, 16), 0.25, 2)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.reconstruct(point, mask).loss.sum(), point)
    expected = (x - FEW.step_size * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(AMRMPure(model, variants(steps=1, mask_scales=(2,)))(x, keys=KEYS), expected)


def test_scales_that_do_not_fit_say_so():
    with pytest.raises(InputError, match="scale 3 do not fit a grid of 16 × 16"):
        AMRMPure(tiny_conv(), variants(mask_scales=(3,)))(x, keys=KEYS)
    with pytest.raises(RecipeError, match="mask_scales"):
        AMRMPure(tiny_conv(), variants(mask_scales=()))


def test_a_description_names_the_scales():
    recipe = PurifyRecipe(masked_model="some-model", amrm=variants(mask_scales=(4, 2, 1)))
    assert "mask 0.25 fresh, scales 4 2 1" in describe(recipe)
    assert "scales" not in describe(PurifyRecipe(masked_model="some-model"))


def test_purification_lowers_the_loss_it_descends():
    model = tiny_conv()
    trace = Trace()
    AMRMPure(model, variants(steps=20, masks="fixed", step_size=Radius("1/255")))(x, keys=KEYS, callback=trace)
    loss = trace.mean()["loss"]
    assert loss[-1] < loss[0]


@pytest.mark.parametrize("path", ["both", "input", "target"])
def test_gradient_paths_add_up(model, path):
    grid = model.grid(16, 16)
    gradients = {}
    for name in ("both", "input", "target"):
        objective = ReconstructionObjective(model, variants(gradient=name), KEYS, grid)
        point = x.clone().requires_grad_()
        (gradients[name],) = torch.autograd.grad(objective(point, 0).sum(), point)
    torch.testing.assert_close(gradients["both"], gradients["input"] + gradients["target"], atol=1e-6, rtol=1e-4)
    assert gradients[path].abs().max() > 0


def test_step_sizes_of_the_papers_star():
    config = AMRMConfig(steps=150, step_size=Radius("1/255"), decay=0.5)
    sizes = step_sizes(config)
    assert len(sizes) == 150
    assert sizes[74] == pytest.approx(1 / 255)
    assert sizes[75] == pytest.approx(0.5 / 255)
    cosine = step_sizes(dataclasses.replace(config, schedule="cosine"))
    assert cosine[0] == pytest.approx(1 / 255)
    assert cosine == sorted(cosine, reverse=True)


def test_outputs_are_iterates():
    model = tiny_conv()
    points, values = [], []

    def keep(state):
        points.append(state["x"].clone())
        values.append(state["value"].clone())

    last = AMRMPure(model, FEW)(x, keys=KEYS, callback=keep)
    best = AMRMPure(model, variants(output="best"))(x, keys=KEYS)
    mean = AMRMPure(model, variants(output="mean"))(x, keys=KEYS)
    torch.testing.assert_close(mean, torch.stack([*points, last]).mean(0))
    for sample in range(5):
        winner = int(torch.stack(values)[:, sample].argmin())
        assert torch.equal(best[sample], points[winner][sample])


def test_traits_tell_what_an_attacker_must_know():
    model = tiny_conv()
    assert AMRMPure(model, FEW).traits.randomised
    assert not AMRMPure(model, variants(masks="fixed-global")).traits.randomised
    assert AMRMPure(model, variants(masks="fixed-global", start_noise=Radius("1/255"))).traits.randomised
    assert AMRMPure(model, FEW).traits.steps == 3


def test_a_deterministic_defence_does_not_care_for_keys():
    purifier = AMRMPure(tiny_conv(), variants(masks="fixed-global"))
    assert torch.equal(purifier(x, keys=KEYS), purifier(x, keys=keys(9, "other", torch.arange(5))))


def test_trace_tells_distance_saturation_and_attention():
    model = tiny_mae()
    trace = Trace(model, reference=x, keys=KEYS)
    AMRMPure(model, variants(steps=6, step_size=Radius("4/255")))(x, keys=KEYS, callback=trace)
    curves = trace.mean()
    assert len(trace.rows) == 6
    assert curves["distance"][0] == 0
    assert curves["distance"][1] == pytest.approx(4 / 255, rel=1e-4)
    assert curves["saturation"][0] == 0
    assert curves["saturation"][-1] > 0
    assert curves["amv"][0] == 0
    assert curves["amv"][-1] > 0
    without = Trace(tiny_conv(), reference=x, keys=KEYS)
    AMRMPure(tiny_conv(), FEW)(x, keys=KEYS, callback=without)
    assert "amv" not in without.mean()


def test_works_under_no_grad_and_inference_mode():
    purifier = AMRMPure(tiny_conv(), FEW)
    expected = purifier(x, keys=KEYS)
    with torch.no_grad():
        assert torch.equal(purifier(x, keys=KEYS), expected)
    with torch.inference_mode():
        assert torch.equal(purifier(x.clone(), keys=KEYS), expected)


def test_an_empty_batch_comes_back_empty():
    assert AMRMPure(tiny_conv(), FEW)(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (x * 255, "divide by 255"),
        (x.masked_fill(x > 0.9, float("nan")), "finite|NaN"),
        (x[0], "4|batch"),
    ],
)
def test_bad_tensors_are_refused_with_a_reason(bad, says):
    with pytest.raises((InputError, TypeError), match=says):  # a wrong shape is caught by jaxtyping here
        AMRMPure(tiny_conv(), FEW)(bad, keys=KEYS)


def test_no_steps_is_a_mistake():
    with pytest.raises(RecipeError, match="at least one step"):
        AMRMPure(tiny_conv(), variants(steps=0))


@pytest.mark.parametrize("change", [{"mask_ratio": 0.0}, {"mask_ratio": 1.0}, {"mask_average": 0}])
def test_masks_that_there_are_not_are_refused_before_any_image_comes(change):
    with pytest.raises(RecipeError, match="mask"):
        AMRMPure(tiny_conv(), variants(**change))


class TestDefended:
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))

    def test_is_a_drop_in_module_whose_draws_follow_the_image(self):
        defended = Defended(AMRMPure(tiny_conv(), FEW), self.classifier)
        logits = defended(x)
        assert logits.shape == (5, 4)
        assert torch.equal(defended(x[2:4]), logits[2:4])
        drawn = keys(0, "purify", content_ids(x))
        assert torch.equal(defended(x, drawn), logits)
        assert not torch.equal(defended(x, keys(1, "purify", content_ids(x))), logits)

    @pytest.mark.parametrize(("bad", "says"), [(x * 255, "divide by 255"), (x.double(), r"take x.float\(\)")])
    def test_what_is_no_image_is_refused(self, bad, says):
        with pytest.raises(InputError, match=says):
            Defended(AMRMPure(tiny_conv(), FEW), self.classifier)(bad)

    def test_gradient_passes_as_if_the_purifier_were_the_identity(self):
        purifier = AMRMPure(tiny_conv(), FEW)
        defended = Defended(purifier, self.classifier)
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(defended(point, KEYS)[:, 0].sum(), point)
        purified = purifier(x, keys=KEYS).requires_grad_()
        (expected,) = torch.autograd.grad(self.classifier(purified)[:, 0].sum(), purified)
        torch.testing.assert_close(gradient, expected)
