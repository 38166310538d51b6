"""MaskDiT: the network against a plain one, the protocol of masked models, and what AMRM-Pure may choose of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from robustmim.cli.curve import varied
from robustmim.config import (
    AMRMConfig,
    DenoiserConfig,
    DenoisingConfig,
    DiffusionConfig,
    EvaluateRecipe,
    ModelConfig,
    PretrainRecipe,
    PurifyRecipe,
    ReconstructionConfig,
)
from robustmim.data.loader import Batch
from robustmim.errors import CheckpointError, InputError, RecipeError
from robustmim.models.edm import Denoiser, precondition, to_signed
from robustmim.models.maskdit import MaskDiT
from robustmim.models.masked import MaskedModel, RandomisedModel, freeze, parameter_count, with_draws
from robustmim.models.masked_denoiser import MaskedDenoiser, MaskedDiffusion, denoising_error
from robustmim.models.masking import enlarge, random_mask
from robustmim.models.sampling import sample
from robustmim.models.vit import explicit_attention, patchify, unpatchify
from robustmim.models.zoo import load_model, save_model, saved_config
from robustmim.purify.amrm import AMRMPure
from robustmim.purify.load import describe, make_purifier
from robustmim.purify.reconstruct import MaskedReconstruction
from robustmim.purify.trace import Trace
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.train.denoising import MaskedDenoising
from robustmim.train.pretraining import pretraining_objective

KEYS = keys(0, "test", torch.arange(5))
x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OPTIONS = {"image_size": 16, "width": 16, "depth": 2, "heads": 2}
OPTIONS |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def tiny(**options) -> MaskDiT:
    torch.manual_seed(0)
    model = MaskDiT(**{**OPTIONS, **options})
    for parameter in model.parameters():  # away from the zeros it begins with
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def noised(model=None):
    sigma = torch.tensor([0.02, 0.2, 0.5, 2.0, 40.0])
    return to_signed(x) + sigma.view(-1, 1, 1, 1) * KEYS.fold("noise").normal(3, 16, 16), sigma


def plain_denoise(model, y, sigma, mask, labels=None):
    """Sample by sample and in reading order: nothing is gathered, nothing shuffled."""
    images = []
    for i in range(len(y)):
        scale = precondition(sigma[i : i + 1])
        hidden = mask[i].flatten()
        patches = patchify(y[i : i + 1], model.patch_size)
        condition = model.condition(scale.noise, None if labels is None else labels[i : i + 1])
        tokens = (model.patch_embed(patches * scale.input) + model.pos_embed)[:, ~hidden]
        for block in model.blocks:
            tokens = block(tokens, condition)
        everything = model.mask_token.expand(1, len(hidden), -1).clone()
        everything[:, ~hidden] = model.decoder_embed(model.norm(tokens))
        everything = everything + model.decoder_pos_embed
        for block in model.decoder_blocks:
            everything = block(everything, condition)
        shift, grow = model.decoder_modulation(condition)[:, :1].chunk(2, dim=-1)
        out = model.decoder_pred(model.decoder_norm(everything) * (1 + grow) + shift)
        estimate = scale.skip * patches + scale.out * out
        estimate[:, hidden] = (0.5 if model.target == "pixels" else 1.0) * out[:, hidden]
        images.append(unpatchify(estimate, model.patch_size, tuple(mask[i].shape)))
    return torch.cat(images)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("training", [False, True])
def test_denoising_equals_a_plain_network_at_any_ratio_in_any_mode(ratio, training):
    model = tiny(classes=3).train(training)
    y, sigma = noised()
    labels = torch.tensor([0, 1, 2, 3, 0])
    mask = random_mask(KEYS, (4, 4), ratio) if ratio else torch.zeros(5, 4, 4, dtype=torch.bool)
    found = model.denoise(y, sigma, mask=mask, labels=labels)
    torch.testing.assert_close(found, plain_denoise(model, y, sigma, mask, labels), atol=2e-5, rtol=1e-4)
    if not ratio:
        torch.testing.assert_close(found, model.denoise(y, sigma, labels=labels), atol=0, rtol=0)


def test_an_untrained_network_is_the_skip_connection():
    y, sigma = noised()
    torch.manual_seed(0)
    model = MaskDiT(**OPTIONS)
    torch.testing.assert_close(model.denoise(y, sigma), precondition(sigma).skip.view(-1, 1, 1, 1) * y)


def test_classes_are_told_and_none_is_the_default():
    y, sigma = noised()
    model = tiny(classes=3)
    none = model.denoise(y, sigma)
    torch.testing.assert_close(none, model.denoise(y, sigma, labels=torch.full((5,), 3)), atol=0, rtol=0)
    assert (none - model.denoise(y, sigma, labels=torch.zeros(5, dtype=torch.int64))).abs().max() > 1e-3
    with pytest.raises(InputError, match="without classes"):
        tiny().denoise(y, sigma, labels=torch.zeros(5, dtype=torch.int64))


def test_the_papers_network():
    model = MaskDiT()
    assert model.grid(32, 32) == (8, 8)
    assert (len(model.blocks), len(model.decoder_blocks), model.pos_embed.shape[-1]) == (6, 3, 128)
    assert model.pos_embed.requires_grad
    assert parameter_count(model) == 2_783_280
    assert isinstance(model, MaskedModel)
    assert isinstance(model, RandomisedModel)
    assert isinstance(model, Denoiser)
    assert isinstance(model, MaskedDiffusion)
    with pytest.raises(InputError, match="32 × 32"):
        model.grid(16, 16)


@pytest.fixture(params=["pixels", "normalised"])
def model(request):
    return tiny(target=request.param)


def drawn(model, **options):
    return MaskedDenoiser(model, DenoiserConfig(**options)).drawn(KEYS, draw=3, progress=0.5)


def test_hidden_pixels_reach_the_loss_as_target_only(model):
    mask = random_mask(KEYS, (4, 4), 0.5)
    hidden = enlarge(mask, 4)
    changed = torch.where(hidden, torch.rand_like(x), x)
    one = drawn(model)
    ours, theirs = one.reconstruct(x, mask, target=x), one.reconstruct(changed, mask, target=x)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=0, rtol=0)
    zeroed = torch.where(hidden, x, torch.zeros_like(x))
    torch.testing.assert_close(one.reconstruct(x, mask, target=zeroed).loss, ours.loss, atol=0, rtol=0)


@pytest.mark.parametrize("loss", ["hidden", "denoising", "own"])
@pytest.mark.parametrize("hidden_target", ["clean", "noised"])
def test_input_gradient_equals_finite_differences(model, loss, hidden_target):
    model = freeze(model).double()
    mask = random_mask(KEYS, (4, 4), 0.5)
    one = drawn(model, loss=loss, hidden_target=hidden_target)
    seen, target = (value.double().requires_grad_() for value in (x, x.flip(3)))
    slopes = torch.autograd.grad(one.reconstruct(seen, mask, target=target).loss.sum(), (seen, target))
    for place, slope in enumerate(slopes):
        way = KEYS.fold("way", place).normal(3, 16, 16).double()
        h = 1e-6 * way
        with torch.no_grad():
            pairs = [(seen + s * h, target) if place == 0 else (seen, target + s * h) for s in (1, -1)]
            up, down = (one.reconstruct(a, mask, target=b).loss.sum() for a, b in pairs)
        torch.testing.assert_close((up - down) / 2e-6, (slope * way).sum(), rtol=1e-6, atol=1e-7)


def test_losses_are_what_they_say():
    model, mask = tiny(), random_mask(KEYS, (4, 4), 0.5)
    hidden = enlarge(mask, 4).expand(-1, 3, -1, -1)
    one = drawn(model, sigma=0.3)
    noise = KEYS.fold("denoiser", 3).fold("noise").normal(3, 16, 16)
    sigma = torch.full((5,), 0.3)
    estimate = model.denoise(to_signed(x) + 0.3 * noise, sigma, mask=mask)
    wrong = (estimate - to_signed(x)).square()
    far = torch.stack([wrong[i][hidden[i]].mean() for i in range(5)]) / 0.5**2
    near = torch.stack([wrong[i][~hidden[i]].mean() for i in range(5)]) * (0.3**2 + 0.25) / (0.3 * 0.5) ** 2
    torch.testing.assert_close(one.reconstruct(x, mask).loss, far)
    torch.testing.assert_close(drawn(model, sigma=0.3, loss="denoising").reconstruct(x, mask).loss, near)
    own = drawn(model, sigma=0.3, loss="own", hidden_weight=0.1).reconstruct(x, mask).loss
    torch.testing.assert_close(own, near + 0.1 * far)
    shown = one.reconstruct(x, mask, need_pixels=True).pixels
    assert torch.equal(shown[~hidden], x[~hidden])
    torch.testing.assert_close(shown[hidden], ((estimate + 1) / 2).clamp(0, 1)[hidden])


def test_normalised_predictions_are_rendered_with_the_targets_mean_and_deviation():
    model, mask = tiny(target="normalised"), random_mask(KEYS, (4, 4), 0.5)
    found = drawn(model).reconstruct(x, mask, need_pixels=True)
    patches, shown = patchify(x, 4), patchify(found.pixels, 4)
    estimate = model.denoise(
        to_signed(x) + 0.2 * KEYS.fold("denoiser", 3).fold("noise").normal(3, 16, 16), torch.full((5,), 0.2), mask=mask
    )
    mean, deviation = patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 0.25e-6).sqrt()
    expected = (patchify(estimate, 4) * deviation + mean).clamp(0, 1)
    torch.testing.assert_close(shown[mask.flatten(1)], expected[mask.flatten(1)])
    normalised = (patches - mean) / deviation
    wrong = (patchify(estimate, 4) - normalised).square().mean(-1)
    torch.testing.assert_close(found.loss, (wrong * mask.flatten(1)).sum(1) / mask.flatten(1).sum(1))


def test_noise_levels_and_draws_follow_the_configuration():
    mask = random_mask(KEYS, (4, 4), 0.5)

    def loss(draw=0, progress=0.0, seed=0, **options):
        model = MaskedDenoiser(NETWORK, DenoiserConfig(**options))
        return (
            with_draws(model, keys(seed, "k", torch.arange(5)), draw=draw, progress=progress).reconstruct(x, mask).loss
        )

    NETWORK = tiny()
    assert not torch.equal(loss(draw=0), loss(draw=1))
    assert not torch.equal(loss(seed=0), loss(seed=1))
    assert torch.equal(loss(draw=0, draws="fixed"), loss(draw=1, draws="fixed"))
    assert not torch.equal(loss(seed=0, draws="fixed"), loss(seed=1, draws="fixed"))
    assert torch.equal(loss(seed=0, draws="global"), loss(seed=1, draws="global"))
    assert not torch.equal(loss(draw=0, draws="global"), loss(draw=1, draws="global"))
    assert torch.equal(loss(progress=0.0), loss(progress=1.0))
    falling = {"noise_level": "descending", "sigma": 0.5, "final_sigma": 0.05}
    torch.testing.assert_close(loss(progress=0.0, **falling), loss(sigma=0.5))
    torch.testing.assert_close(loss(progress=1.0, **falling), loss(sigma=0.05))
    spread = MaskedDenoiser(NETWORK, DenoiserConfig(noise_level="log-normal")).drawn(KEYS)
    levels, noise = spread._draws(x)
    assert len(levels.unique()) == 5
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(MaskedDenoiser(NETWORK).reconstruct(x, mask).loss, NETWORK.reconstruct(x, mask).loss)
    for wrong in ({"sigma": 0.0}, {"noise_level": "descending", "sigma": 0.1, "final_sigma": 0.2}):
        with pytest.raises(RecipeError, match="denoiser"):
            MaskedDenoiser(NETWORK, DenoiserConfig(**wrong))


FEW = AMRMConfig(steps=3, step_size=Radius("2/255"), radius=Radius("8/255"), mask_ratio=0.5)


@pytest.mark.parametrize(
    ("amrm", "denoiser"),
    [
        (FEW, DenoiserConfig()),
        (FEW, DenoiserConfig(noise_level="log-normal", loss="own")),
        (FEW, DenoiserConfig(noise_level="descending", loss="denoising", draws="fixed")),
        (dataclasses.replace(FEW, mask_average=2), DenoiserConfig(hidden_target="noised")),
        (dataclasses.replace(FEW, masks="fixed-global"), DenoiserConfig(draws="global")),
    ],
)
def test_amrm_pure_treats_each_sample_as_if_alone(amrm, denoiser):
    purifier = AMRMPure(MaskedDenoiser(tiny(), denoiser), amrm)
    together = purifier(x, keys=KEYS)
    assert torch.equal(purifier(x[4:], keys=KEYS[4:])[0], together[4])
    assert torch.equal(purifier(x[1:4], keys=KEYS[1:4]), together[1:4])
    assert 0 < (together - x).abs().max() <= 8 / 255 + 1e-6
    deterministic = amrm.masks == "fixed-global"
    assert purifier.traits.randomised != deterministic
    assert torch.equal(purifier(x, keys=keys(1, "other", torch.arange(5))), together) == deterministic


def test_one_step_is_equation_4_on_the_noised_image():
    model, mask = tiny(), random_mask(KEYS.fold("mask", 0), (4, 4), 0.5)
    point = x.clone().requires_grad_()
    noise = KEYS.fold("denoiser", 0).fold("noise").normal(3, 16, 16)
    estimate = model.denoise(2 * point - 1 + 0.2 * noise, torch.full((5,), 0.2), mask=mask)
    hidden = enlarge(mask, 4)
    loss = ((estimate - (2 * point - 1)).square() * hidden).sum()
    (slope,) = torch.autograd.grad(loss, point)
    found = AMRMPure(model, dataclasses.replace(FEW, steps=1))(x, keys=KEYS)
    torch.testing.assert_close(found, (x - 2 / 255 * slope.sign()).clamp(0, 1))


def test_attention_is_traced_through_the_wrapper():
    model = MaskedDenoiser(tiny())
    trace = Trace(model, reference=x, keys=KEYS)
    AMRMPure(model, FEW)(x, keys=KEYS, callback=trace)
    curves = trace.mean()
    assert curves["amv"][0] == 0
    assert curves["amv"][-1] > 0
    maps = model.reconstruct(x, random_mask(KEYS, (4, 4), 0.5), need_attention=True).attention
    assert [tuple(m.shape) for m in maps] == [(5, 2, 8, 8)] * 2 + [(5, 2, 16, 16)]


def test_it_purifies_in_one_pass_too():
    purifier = MaskedReconstruction(tiny(), ReconstructionConfig(mask_ratio=0.5))
    together = purifier(x, keys=KEYS)
    assert torch.equal(purifier(x[3:4], keys=KEYS[3:4])[0], together[3])


def test_explicit_attention_has_a_second_derivative():
    model = freeze(tiny()).double()
    mask = random_mask(KEYS, (4, 4), 0.5)
    point = x.double().requires_grad_()
    one = drawn(model)
    with explicit_attention(model):
        (slope,) = torch.autograd.grad(one.reconstruct(point, mask).loss.sum(), point, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), point)
    assert second.abs().max() > 0


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("ratios", [(0.5,), (0.0,)])
def test_training_sees_each_sample_as_if_alone_and_reaches_every_weight(classes, ratios):
    model = tiny(classes=classes).train()
    batch = Batch(x, torch.tensor([0, 1, 2, 0, 1]), torch.arange(5))
    objective = MaskedDenoising(ratios, DenoisingConfig(label_dropout=0.5))
    together = objective(model, batch, KEYS, 0)
    alone = [
        objective(model, Batch(x[i : i + 1], batch.labels[i : i + 1], batch.ids[i : i + 1]), KEYS[i : i + 1], 0)
        for i in range(5)
    ]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean())
    together["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (together["hidden"] > 0) == (ratios != (0.0,))


def test_training_learns_what_it_is_shown():
    torch.manual_seed(0)
    model = MaskDiT(**OPTIONS)
    flat = torch.full((16, 3, 16, 16), 0.8)
    batch = Batch(flat, torch.zeros(16, dtype=torch.int64), torch.arange(16))
    objective = MaskedDenoising((0.5,), DenoisingConfig(hidden_weight=1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        values = objective(model, batch, keys(0, "step", batch.ids, step), step)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(values["loss"].item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_training_with_classes_teaches_what_each_class_looks_like():
    """Two classes, dark and bright: what is drawn of each is as dark or bright as it."""
    torch.manual_seed(0)
    model = MaskDiT(**OPTIONS, classes=2)
    grey = torch.tensor([0.2, 0.8])
    objective = MaskedDenoising((0.5, 0.0), DenoisingConfig(hidden_weight=1.0, label_dropout=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    labels = torch.arange(16) % 2
    for step in range(150):
        ids = torch.arange(16) + 16 * step
        batch = Batch(grey[labels].view(-1, 1, 1, 1).expand(-1, 3, 16, 16), labels, ids)
        optimizer.zero_grad()
        objective(model, batch, keys(0, "step", ids, step), step)["loss"].backward()
        optimizer.step()
    ids = keys(0, "sample", torch.arange(8))
    for label in (0, 1):
        drawn = sample(model.eval(), ids, (3, 16, 16), steps=8, labels=torch.full((8,), label)).mean((1, 2, 3))
        assert (drawn - grey[label]).abs().max() < 0.15, drawn  # the two are 0.6 apart


def test_a_sample_depends_on_its_id_and_its_class():
    model = tiny(classes=3)
    ids, shape = torch.arange(4), (3, 16, 16)
    labels = torch.tensor([0, 1, 2, 0])
    drawn = sample(model, keys(0, "sample", ids), shape, steps=4, labels=labels)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    some = sample(model, keys(0, "sample", ids[2:]), shape, steps=4, labels=labels[2:])
    torch.testing.assert_close(some, drawn[2:])
    assert (sample(model, keys(0, "sample", ids), shape, steps=4) - drawn).abs().max() > 1e-3


def test_the_objective_of_a_recipe_is_denoising():
    recipe = PretrainRecipe(model=ModelConfig(name="maskdit"), mask_ratios=(0.5, 0.0))
    assert isinstance(pretraining_objective(recipe, tiny()), MaskedDenoising)
    with pytest.raises(RecipeError, match="input_noise"):
        pretraining_objective(dataclasses.replace(recipe, input_noise=Radius("4/255")), tiny())


def test_saved_loaded_and_made_into_either_purifier(tmp_path):
    model = tiny(classes=3)
    options = {**OPTIONS, "classes": 3}
    save_model(tmp_path, model, saved_config("masked-model", ModelConfig(name="maskdit", options=options)))
    y, sigma = noised()
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.denoise(y, sigma), model.denoise(y, sigma))
    chosen = DenoiserConfig(noise_level="descending", sigma=0.4, loss="own")
    recipe = PurifyRecipe(masked_model=str(tmp_path), amrm=FEW, denoiser=chosen)
    torch.testing.assert_close(
        make_purifier(recipe)(x, keys=KEYS), AMRMPure(MaskedDenoiser(model, chosen), FEW)(x, keys=KEYS)
    )
    purifier = make_purifier(dataclasses.replace(recipe, diffusion=DiffusionConfig(steps=2)))
    assert purifier(x, keys=KEYS).shape == x.shape
    assert "σ 0.34" in describe(dataclasses.replace(recipe, diffusion=DiffusionConfig()))
    assert "descending" in describe(recipe)
    with pytest.raises(CheckpointError, match="no diffusion model"):
        make_purifier(PurifyRecipe(masked_model="masked-conv-cifar10", diffusion=DiffusionConfig()))
    with pytest.raises(RecipeError, match="leave one of them out"):
        make_purifier(dataclasses.replace(recipe, diffusion=DiffusionConfig(), reconstruction=ReconstructionConfig()))


def test_nothing_hidden_has_no_hidden_error():
    y = to_signed(x)
    sigma, noise = torch.full((5,), 0.2), KEYS.normal(3, 16, 16)
    error = denoising_error(tiny(), y, y, None, sigma=sigma, noise=noise)
    assert error.hidden.eq(0).all()
    assert error.denoising.gt(0).all()


def test_a_curve_over_purification_steps_varies_those_that_are_taken():
    recipe = PurifyRecipe(masked_model="any", diffusion=DiffusionConfig(steps=9))
    _, found = varied(EvaluateRecipe(), recipe, "purification-steps", "4")
    assert (found.diffusion.steps, found.amrm.steps) == (4, recipe.amrm.steps)
    _, found = varied(EvaluateRecipe(), dataclasses.replace(recipe, diffusion=None), "purification-steps", "4")
    assert found.amrm.steps == 4
