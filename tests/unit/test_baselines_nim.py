"""NIM and DMAE: one pass of a network over noised images; what it draws, from what, and with which gradient."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import gamma, kstest
from torch import nn

from robustmim.config import GradientConfig, ModelConfig, PretrainRecipe
from robustmim.data.loader import Batch
from robustmim.errors import InputError, RecipeError
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masking import random_mask
from robustmim.models.normalise import HALF
from robustmim.purify.baselines.dmae import DenoisingMaskedAutoencoder
from robustmim.purify.baselines.nim import NoisyImageModelling
from robustmim.purify.traits import DifferentiablePurifier
from robustmim.registry import build
from robustmim.rng import keys
from robustmim.train.pretraining import MaskedPretraining, noise_deviations, pretraining_objective
from tests.unit.test_masked_models import tiny_conv, tiny_mae

KEYS = keys(0, "test", torch.arange(4))
EXACT = GradientConfig(mode="exact")
NOTHING = torch.zeros(4, 4, 4, dtype=torch.bool)
x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Gaussian(nn.Module):
    """Knows that every pixel of an image, in [-1, 1], is drawn from N(0.2, 0.5²)."""

    classes = 0

    def denoise(self, noised, sigma, *, labels=None):
        kept = (0.25 / (0.25 + sigma.square())).view(-1, 1, 1, 1)
        return 0.2 + kept * (noised - 0.2)


PURIFIERS = {
    "nim": lambda: NoisyImageModelling(tiny_mae(), noise=0.1),
    "nim-normalised": lambda: NoisyImageModelling(tiny_mae(target="normalised"), noise=0.1),
    "nim-denoiser": lambda: NoisyImageModelling(Gaussian(), noise=0.1),
    "dmae": lambda: DenoisingMaskedAutoencoder(tiny_mae(), noise=0.1, average=2),
    "dmae-normalised": lambda: DenoisingMaskedAutoencoder(tiny_mae(target="normalised"), noise=0.1),
}


@pytest.fixture(params=PURIFIERS)
def purifier(request):
    return PURIFIERS[request.param]()


def test_a_sample_alone_is_bitwise_what_it_is_in_a_batch(purifier):
    assert isinstance(purifier, DifferentiablePurifier)
    assert purifier.traits.randomised
    together = purifier(x, keys=KEYS)
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(4):
        assert torch.equal(purifier(x[i : i + 1], keys=KEYS[i : i + 1])[0], together[i])
    assert torch.equal(purifier.differentiable(x, keys=KEYS, gradient=EXACT).detach(), together)
    assert not torch.equal(purifier(x, keys=keys(1, "test", torch.arange(4))), together)
    assert purifier(x[:0], keys=KEYS[:0]).shape == (0, 3, 16, 16)


def test_gradient_equals_finite_differences(purifier):
    network = purifier.network if isinstance(purifier, NoisyImageModelling) else purifier.model
    network.double()
    generator = torch.Generator().manual_seed(1)
    weights, direction = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def value(point):
        return (weights * purifier.differentiable(point, keys=KEYS, gradient=EXACT)).sum()

    point = (0.3 + 0.4 * x.double()).requires_grad_()
    (gradient,) = torch.autograd.grad(value(point), point)
    h = 1e-7
    with torch.no_grad():
        difference = (value(point + h * direction) - value(point - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, (gradient * direction).sum(), rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 0


def test_a_denoiser_gives_the_closed_form():
    noise = 0.1 * KEYS.fold("noise").normal(3, 16, 16)
    expected = 0.6 + (x + noise - 0.6) * 0.25 / (0.25 + 0.2**2)
    torch.testing.assert_close(NoisyImageModelling(Gaussian(), noise=0.1)(x, keys=KEYS), expected.clamp(0, 1))


def test_rendering_puts_every_patch_where_it_belongs():
    """Hidden patches are those of `reconstruct`; over all patches the error is the loss that it gives."""
    model = tiny_mae().double()
    point, mask = x.double(), random_mask(KEYS, (4, 4), 0.5)
    drawn = model.render(point, mask)
    filled = model.reconstruct(point, mask, need_pixels=True).pixels
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(drawn)
    torch.testing.assert_close(drawn[hidden], filled[hidden])
    assert not torch.equal(drawn[~hidden], point[~hidden])
    error = ((drawn - point) / model.normalise.deviation).square().mean((1, 2, 3))
    assert drawn.min() > 0 and drawn.max() < 1  # nothing was clipped
    torch.testing.assert_close(error, model.reconstruct(point, mask, loss_over="all").loss)


def silent(target):
    """A network that predicts nothing but zeros, in units of its target."""
    model = tiny_mae(target=target, statistics=HALF)
    model.decoder_pred.weight.data.zero_()
    model.decoder_pred.bias.data.zero_()
    return model


def test_a_normalised_prediction_takes_mean_and_deviation_from_the_reference():
    reference = 0.5 * x + 0.25
    means = nn.functional.avg_pool2d(reference, 4).mean(1, keepdim=True).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(silent("normalised").render(x, NOTHING, reference=reference), means.expand_as(x))
    model = tiny_mae(target="normalised", statistics=HALF)
    # Twice the contrast of the reference is twice the contrast of what is drawn.
    once, twice = (model.render(x, NOTHING, reference=0.5 + k * (x - 0.5)) - 0.5 for k in (0.1, 0.2))
    torch.testing.assert_close(twice, 2 * once, atol=1e-4, rtol=1e-3)


def test_a_normalised_target_lets_an_attack_of_low_frequency_pass():
    """The weakness of the released De³: a change of a patch's mean reaches the result without passing the network."""
    shifted, change = 0.5 * x + 0.25, 8 / 255
    for target, expected in (("normalised", change), ("pixels", 0.0)):
        purifier = NoisyImageModelling(silent(target), noise=0.3)
        moved = purifier(shifted + change, keys=KEYS) - purifier(shifted, keys=KEYS)
        torch.testing.assert_close(moved, torch.full_like(x, expected), atol=1e-5, rtol=0)


def test_dmae_is_the_mean_of_its_draws_and_sees_visible_patches_only():
    model = tiny_mae()
    both = DenoisingMaskedAutoencoder(model, noise=0.1, average=2)(x, keys=KEYS)
    draws = []
    for draw in range(2):
        own = KEYS.fold("draw", draw)
        mask = random_mask(own.fold("mask"), (4, 4), 0.75)
        noised = x + 0.1 * own.fold("noise").normal(3, 16, 16)
        draws.append(model.render(noised, mask))
        hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        assert torch.equal(model.render(torch.where(hidden, torch.zeros_like(x), noised), mask), draws[-1])
    torch.testing.assert_close(both, (draws[0] + draws[1]) / 2)


def test_deviations_follow_their_law():
    many = keys(0, "law", torch.arange(4000))
    drawn = noise_deviations(many, 75 / 255, "gamma")
    assert kstest(drawn.numpy() * 255, gamma(25, scale=3).cdf).pvalue > 0.01
    assert kstest(noise_deviations(many, 0.1, "uniform").numpy(), "uniform", args=(0, 0.1)).pvalue > 0.01
    assert noise_deviations(many, 0.25, "constant").eq(0.25).all()


def test_training_on_noise_alone_teaches_to_denoise():
    """A network that sees noised images, none hidden, must come nearer to the clean ones than they are."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(
        image_size=8, patch_size=4, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
    )
    objective = MaskedPretraining((0.0,), 0.3, noise_law="constant", loss_over="all")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    levels = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = (0.2 + 0.6 * levels).expand(-1, -1, 8, 8).contiguous()
    ids = torch.arange(64)
    for step in range(60):
        batch = Batch(images=images, labels=ids % 10, ids=ids)
        optimizer.zero_grad()
        objective(model, batch, keys(0, "train", ids, step), step)["loss"].backward()
        optimizer.step()
    drawn = keys(0, "test", ids)
    found = NoisyImageModelling(model, noise=0.3)(images, keys=drawn)
    noised = (images + 0.3 * drawn.fold("noise").normal(3, 8, 8)).clamp(0, 1)
    assert (found - images).square().mean() < 0.25 * (noised - images).square().mean()


def test_where_nothing_is_hidden_the_pixels_are_the_images():
    model = build("masked-model", "mae", image_size=16, width=16, depth=1, heads=2, decoder_width=16, decoder_heads=2)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    found = model.reconstruct(images, nothing, need_pixels=True, loss_over="all")
    assert torch.equal(found.pixels, images)
    assert found.loss.isfinite().all()


def test_nothing_hidden_asks_for_all_patches():
    recipe = PretrainRecipe(model=ModelConfig(name="mae"), mask_ratios=(0.0,))
    model = build("masked-model", "mae", image_size=16, width=16, depth=1, heads=2)
    with pytest.raises(RecipeError, match="loss_over: all"):
        pretraining_objective(recipe, model)


@pytest.mark.parametrize("name", ["nim-mae-cifar10", "dmae-mae-cifar10"])
def test_recipes_train_what_the_purifiers_take(name):
    from robustmim.recipe import load_recipe

    recipe = load_recipe(PretrainRecipe, name)
    model = build("masked-model", recipe.model.name, **recipe.model.options)
    objective = pretraining_objective(recipe, model)
    assert objective.loss_over == "all"
    assert objective.input_noise > 0.2
    purifier = NoisyImageModelling(model) if name.startswith("nim") else DenoisingMaskedAutoencoder(model)
    assert purifier(torch.rand(2, 3, 32, 32), keys=KEYS[:2]).shape == (2, 3, 32, 32)


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="standard deviation"):
        NoisyImageModelling(tiny_mae(), noise=0.0)
    with pytest.raises(RecipeError, match="neither"):
        NoisyImageModelling(tiny_conv())
    with pytest.raises(RecipeError, match="is none"):
        DenoisingMaskedAutoencoder(tiny_conv())
    with pytest.raises(RecipeError, match="at least one draw"):
        DenoisingMaskedAutoencoder(tiny_mae(), average=0)
    with pytest.raises(RecipeError, match="mask ratio"):
        DenoisingMaskedAutoencoder(tiny_mae(), mask_ratio=1.0)
    with pytest.raises(InputError, match="16 × 16"):
        NoisyImageModelling(tiny_mae())(torch.rand(4, 3, 32, 32), keys=KEYS)
