"""Masked pre-training: plain, adversarial, MIMIR and free, against formulas and plain references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustmim.config import (
    DataConfig,
    FreeAttackConfig,
    InformationConfig,
    MaskedAttackConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainRecipe,
    RunConfig,
)
from robustmim.data.loader import Batch, Loader, Replayed
from robustmim.data.sources import ResidentSource
from robustmim.errors import InputError, RecipeError
from robustmim.geometry import Ball
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import EncoderModel, Reconstruction
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.masking import enlarge, random_mask
from robustmim.radius import Radius
from robustmim.rng import keys
from robustmim.runs import RunFolder
from robustmim.train.distributed import World
from robustmim.train.engine import fit
from robustmim.train.masked_attack import attack_reconstruction
from robustmim.train.pretraining import (
    FreeMaskedPretraining,
    InformationTerm,
    MaskedPretraining,
    pretraining_objective,
)

EPS, STEP = 8 / 255, 10 / 255
TEXT = MaskedAttackConfig()
CODE = MaskedAttackConfig(target="attacked", mask="fresh", mask_ratio=0.75, support="all", reduction="mean")


def batch_of(count: int, size: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def keys_of(batch: Batch, step: int = 0):
    return keys(0, "step", batch.ids, step)


def tiny_mae(dtype: torch.dtype = torch.float64, **options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"width": 12, "depth": 2, "heads": 3, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return MaskedAutoencoder(image_size=16, **{**sizes, **options}).to(dtype).train()


class MeanOfTheVisible(nn.Module):
    """Predicts every hidden pixel as weight × the mean of the visible ones: its losses and attacks can be written down."""

    patch_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.modes: list[bool] = []

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def reconstruct(self, x, mask, *, target=None, need_pixels=False, need_attention=False):
        self.modes.append(self.training)
        hidden = mask[:, None].to(x.dtype)
        seen = (x * (1 - hidden)).sum((1, 2, 3)) / (3 * (1 - hidden).sum((1, 2, 3)))
        error = self.weight * seen.view(-1, 1, 1, 1) - (x if target is None else target)
        return Reconstruction(loss=(error.square() * hidden).sum((1, 2, 3)) / (3 * hidden.sum((1, 2, 3))))


def hidden_mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([image[:, m].mean() for image, m in zip(x, mask, strict=True)])


def start_of(batch: Batch) -> Tensor:
    return Ball(eps=EPS).random(batch.images, keys_of(batch).fold("attack start"))


# --- the objectives, by hand ------------------------------------------------------------------------------------------


def test_plain_loss_is_the_mean_over_the_hidden_part():
    model, batch = MeanOfTheVisible(), batch_of(3, 4)
    mask = random_mask(keys_of(batch).fold("mask"), (4, 4), 0.5)
    seen = hidden_mean(batch.images, ~mask)
    expected = [
        (1.5 * m - image[:, hidden]).square().mean() for m, image, hidden in zip(seen, batch.images, mask, strict=True)
    ]
    found = MaskedPretraining((0.5,))(model, batch, keys_of(batch), 0)
    torch.testing.assert_close(found["loss"], torch.stack(expected).mean())


@pytest.mark.parametrize("changes", [{}, {"attack": CODE}, {"free": FreeAttackConfig(replays=2)}])
def test_masks_of_several_scales_take_turns(changes):
    class Watched(MeanOfTheVisible):
        def reconstruct(self, x, mask, **rest):
            self.masks = [*getattr(self, "masks", []), mask]
            return super().reconstruct(x, mask, **rest)

    model, batch = Watched(), batch_of(3, 8)
    objective = pretraining_objective(recipe(mask_ratios=(0.25, 0.5), mask_scales=(1, 4), **changes), model)
    replays = 2 if "free" in changes else 1
    for turn, (ratio, scale) in enumerate([(0.25, 1), (0.5, 1), (0.25, 4), (0.5, 4)]):
        for replay in range(replays):
            model.masks = []
            drawn = keys_of(batch, turn * replays + replay)
            objective(model, batch, drawn, turn * replays + replay)["loss"].backward()
            if replay == 0:
                assert torch.equal(model.masks[-1], random_mask(drawn.fold("mask"), (8, 8), ratio, scale))
            blocks = model.masks[0][:, ::scale, ::scale]  # the attack's own masks, where there are any
            assert torch.equal(model.masks[0], enlarge(blocks, scale)[:, 0])


def test_one_step_on_visible_pixels_goes_where_the_formula_says():
    """∂loss/∂x is one number for all visible pixels, 2w (w·mean(visible) - mean(hidden)) / (3·visible), and 0 for hidden."""
    model, batch = MeanOfTheVisible(), batch_of(4, 4)
    x, mask = batch.images, random_mask(keys_of(batch), (4, 4), 0.5)
    visible = ~mask[:, None].expand_as(x)
    start = torch.where(visible, start_of(batch), x)
    direction = (1.5 * hidden_mean(start, ~mask) - hidden_mean(x, mask)).sign().view(-1, 1, 1, 1)
    expected = torch.where(visible, (start + STEP * direction).clamp(x - EPS, x + EPS).clamp(0, 1), x)
    found = attack_reconstruction(model, x, mask, keys_of(batch), TEXT, ratio=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    worse = model.reconstruct(found, mask, target=x).loss
    assert (worse > model.reconstruct(start, mask, target=x).loss).all()


def test_a_self_target_attacks_hidden_pixels_as_well():
    """The code's target is the attacked image: its hidden pixels flee from the prediction, ∂loss/∂x = 2 (x - w·m) / n."""
    model, batch = MeanOfTheVisible(), batch_of(4, 4)
    x, mask = batch.images, random_mask(keys_of(batch), (4, 4), 0.5)
    hidden = mask[:, None].expand_as(x)
    config = replace(CODE, mask="shared")
    start = start_of(batch)
    predicted = (1.5 * hidden_mean(start, ~mask)).view(-1, 1, 1, 1)
    both = torch.where(
        hidden, (start - predicted).sign(), (predicted - hidden_mean(start, mask).view(-1, 1, 1, 1)).sign()
    )
    expected = (start + STEP * both).clamp(x - EPS, x + EPS).clamp(0, 1)
    found = attack_reconstruction(model, x, mask, keys_of(batch), config, ratio=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    only = attack_reconstruction(model, x, mask, keys_of(batch), replace(config, support="hidden"), ratio=0.5)
    # Without noise on visible pixels the prediction is another one; nothing visible has moved.
    assert torch.equal(only[~hidden], x[~hidden])
    predicted = (1.5 * hidden_mean(x, ~mask)).view(-1, 1, 1, 1)
    expected = torch.where(hidden, (start + STEP * (start - predicted).sign()).clamp(x - EPS, x + EPS).clamp(0, 1), x)
    torch.testing.assert_close(only, expected, rtol=0, atol=1e-7)


def test_fresh_masks_are_other_ones_in_each_step_and_more_steps_are_worse():
    model, batch = tiny_mae(), batch_of(4)
    mask = random_mask(keys_of(batch), (4, 4), 0.75)
    found, losses = {}, {}
    for steps in (1, 2, 10):
        config = MaskedAttackConfig(steps=steps, step_size=Radius("2/255"))
        found[steps] = attack_reconstruction(model, batch.images, mask, keys_of(batch), config, ratio=0.75)
        losses[steps] = model.reconstruct(found[steps], mask, target=batch.images).loss.mean()
    assert losses[10] > losses[2] > losses[1]
    fresh = MaskedAttackConfig(steps=10, step_size=Radius("2/255"), mask="fresh")
    moved = attack_reconstruction(model, batch.images, mask, keys_of(batch), fresh, ratio=0.75) != batch.images
    shared = found[10] != batch.images
    # One mask leaves 4 of 16 patches to change; ten others leave nearly all.
    assert shared.any(1).flatten(1).sum(1).eq(4 * 16).all()
    assert moved.any(1).flatten(1).sum(1).min() > 10 * 16


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("support", ["all", "visible", "hidden"])
@pytest.mark.parametrize("target", ["clean", "attacked", "latent"])
def test_the_attack_stays_in_ball_and_support(norm, support, target):
    model, batch = tiny_mae(torch.float32, target="normalised"), batch_of(3, dtype=torch.float32)
    mask = random_mask(keys_of(batch), (4, 4), 0.75)
    radius = Radius("8/255") if norm == "linf" else Radius(0.5)
    config = MaskedAttackConfig(norm=norm, radius=radius, step_size=radius, steps=3, support=support, target=target)
    found = attack_reconstruction(model, batch.images, mask, keys_of(batch), config, ratio=0.75)
    ball = Ball(norm=norm, eps=radius)
    assert ball.distance(found, batch.images).max() <= radius * (1 + 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1
    hidden = enlarge(mask, 4).expand_as(found)
    outside = {"all": torch.zeros_like(hidden), "visible": hidden, "hidden": ~hidden}[support]
    assert torch.equal(found[outside], batch.images[outside])
    assert (found != batch.images)[~outside].float().mean() > 0.9


def test_a_latent_attack_moves_the_encoding_further_than_noise_does():
    model, batch = tiny_mae(), batch_of(4)
    mask = random_mask(keys_of(batch), (4, 4), 0.5)
    clean = model.tokens(batch.images, mask)
    found = attack_reconstruction(
        model, batch.images, mask, keys_of(batch), MaskedAttackConfig(target="latent", steps=3), ratio=0.5
    )

    def moved(x):
        return (model.tokens(x, mask) - clean).square().mean((1, 2))

    assert (moved(found) > 2 * moved(start_of(batch))).all()


def test_the_attack_sees_the_model_in_evaluation_mode_and_leaves_no_trace():
    model, batch = MeanOfTheVisible().train(), batch_of(3, 4)
    MaskedPretraining((0.5,), attack=TEXT)(model, batch, keys_of(batch), 0)
    assert model.modes == [False, True]
    mae = tiny_mae()
    mae.blocks[0].eval()  # a part that someone has frozen stays so
    attack_reconstruction(
        mae, batch_of(2).images, random_mask(keys_of(batch_of(2)), (4, 4), 0.5), keys_of(batch_of(2)), TEXT, ratio=0.5
    )
    assert mae.training
    assert mae.blocks[1].training
    assert not mae.blocks[0].training
    assert all(parameter.grad is None for parameter in mae.parameters())
    assert [n for n, p in mae.named_parameters() if not p.requires_grad] == ["pos_embed", "decoder_pos_embed"]


def test_a_sample_is_attacked_the_same_alone_and_in_a_batch():
    model, batch = tiny_mae(), batch_of(4)
    for config in (TEXT, CODE, MaskedAttackConfig(target="latent", steps=2)):
        mask = random_mask(keys_of(batch), (4, 4), 0.75)
        together = attack_reconstruction(model, batch.images, mask, keys_of(batch), config, ratio=0.75)
        alone = attack_reconstruction(model, batch.images[2:3], mask[2:3], keys_of(batch)[2:3], config, ratio=0.75)
        torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-9)


def test_the_reduction_changes_rounding_only_and_half_precision_runs():
    model, batch = tiny_mae(torch.float32), batch_of(3, dtype=torch.float32)
    mask = random_mask(keys_of(batch), (4, 4), 0.75)

    def attacked(**changes):
        config = replace(TEXT, **changes)
        return attack_reconstruction(model, batch.images, mask, keys_of(batch), config, ratio=0.75)

    whole = attacked()
    assert ((attacked(reduction="mean") - whole).abs() < 1e-6).float().mean() > 0.995
    for precision in ("bfloat16", "float16"):
        found = attacked(precision=precision)
        assert found.dtype == torch.float32
        assert ((found - whole).abs() < 1e-6).float().mean() > 0.9
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attacked(precision="float32"), whole)
        assert not torch.equal(attacked(), whole)


def test_units_of_pixels_weigh_patches_by_their_variance():
    model, batch = tiny_mae(target="normalised"), batch_of(3)
    mask = random_mask(keys_of(batch), (4, 4), 0.5)
    predicted, _ = reference_forward(model, batch.images, mask)
    goal = hidden_patches(model, batch.images, mask)
    error = predicted * (goal.var(-1, keepdim=True) + 1e-6).sqrt() + goal.mean(-1, keepdim=True) - goal
    found = model.reconstruct(batch.images, mask, units="pixels").loss
    torch.testing.assert_close(found, error.square().mean((1, 2)))
    pixels = tiny_mae(target="pixels")
    own = pixels.reconstruct(batch.images, mask).loss
    torch.testing.assert_close(pixels.reconstruct(batch.images, mask, units="pixels").loss, own)


# --- what the model can be asked --------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_layer_and_all_patches_can_be_scored():
    model, batch = tiny_mae(), batch_of(3)
    assert isinstance(model, EncoderModel)
    assert not isinstance(MaskedConvolution(), EncoderModel)
    mask = random_mask(keys_of(batch), (4, 4), 0.75)
    caught: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, i, o: caught.append(o)) for m in (*model.blocks, model.norm)]
    for layer, place in ((0, 2), (1, 0), (2, 1)):
        caught.clear()
        found = model.reconstruct(batch.images, mask, need_tokens=layer)
        assert found.tokens.shape == (3, 1 + 4, 12)
        torch.testing.assert_close(found.tokens, caught[place], rtol=0, atol=0)
        torch.testing.assert_close(model.tokens(batch.images, mask, layer=layer), found.tokens, rtol=0, atol=0)
    for hook in hooks:
        hook.remove()
    assert model.reconstruct(batch.images, mask).tokens is None
    with pytest.raises(InputError, match="no layer 3"):
        model.tokens(batch.images, mask, layer=3)

    # Over all patches: hidden and visible parts, weighted by their number.
    everywhere = model.reconstruct(batch.images, mask, loss_over="all", need_pixels=True)
    hidden_only = model.reconstruct(batch.images, mask, need_pixels=True)
    torch.testing.assert_close(everywhere.pixels, hidden_only.pixels)
    moved = torch.where(enlarge(mask, 4), batch.images, 0.5)
    torch.testing.assert_close(
        model.reconstruct(batch.images, mask, target=moved).loss, hidden_only.loss, rtol=0, atol=0
    )
    both = model.reconstruct(batch.images, mask, target=moved, loss_over="all").loss
    assert (both != everywhere.loss).all()
    assert ((everywhere.loss - 0.75 * hidden_only.loss) > 0).all()


# --- the information term ---------------------------------------------------------------------------------------------


def gaussian(rows: Tensor, sigma: float) -> Tensor:
    return torch.exp(-torch.cdist(rows, rows).square() / (2 * sigma**2))


def hsic_by_definition(x: Tensor, z: Tensor, sigma: float) -> Tensor:
    n = len(x)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    return torch.trace(gaussian(x.flatten(1), sigma) @ h @ gaussian(z.flatten(1), sigma) @ h) / n**2


FIXED = {"width": {"rule": "fixed", "value": 6.0}}


@pytest.mark.parametrize("z", ["tokens", "mean", "class"])
@pytest.mark.parametrize("x", ["attacked", "clean", "perturbation", "visible"])
def test_the_term_takes_what_it_is_told(x, z):
    clean, seen, tokens = torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16), torch.randn(8, 5, 6)
    mask = random_mask(keys(0, "t", torch.arange(8)), (4, 4), 0.75)
    images = {
        "attacked": seen,
        "clean": clean,
        "perturbation": seen - clean,
        "visible": torch.where(enlarge(mask, 4), 0, seen),
    }
    encodings = {"tokens": tokens, "mean": tokens[:, 1:].mean(1), "class": tokens[:, 0]}
    expected = hsic_by_definition(images[x].double(), encodings[z].double(), 6.0)
    term = InformationTerm(InformationConfig(estimator="hsic", options=FIXED, x=x, z=z))
    found = term(clean=clean, seen=seen, mask=mask, tokens=tokens, patch_size=4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)


def test_groups_are_averaged_and_other_pairs_tell_only_of_the_spread():
    torch.manual_seed(0)
    x = torch.rand(64, 3, 8, 8)
    tokens = (x.flatten(1) @ torch.randn(192, 40)).view(64, 5, 8)
    rest = {"clean": x, "seen": x, "mask": torch.zeros(64, 2, 2, dtype=torch.bool), "tokens": tokens, "patch_size": 4}

    def term(**options):
        return InformationTerm(InformationConfig(**options))(**rest)

    parts = [hsic_by_definition(a, b, 6.0) for a, b in zip(x.split(16), tokens.split(16), strict=True)]
    torch.testing.assert_close(
        term(estimator="hsic", options=FIXED, group=16), torch.stack(parts).mean(), rtol=1e-4, atol=1e-8
    )
    torch.testing.assert_close(
        term(estimator="hsic", options=FIXED, pairing="other"),
        hsic_by_definition(x.roll(1, 0), tokens, 6.0),
        rtol=1e-4,
        atol=1e-8,
    )
    unbiased = {"estimator": "kernel-cka", "options": {"unbiased": True}}
    assert term(**unbiased) > 0.3
    assert term(**unbiased, pairing="other").abs() < 0.05
    # MIMIR's estimator hardly tells the one from the other.
    own, other = term(estimator="hsic-cca"), term(estimator="hsic-cca", pairing="other")
    assert abs(own - other) < 0.1 * own


@pytest.mark.parametrize("estimator", ["hsic", "unbiased-hsic", "hsic-cca", "cka", "kernel-cka", "renyi"])
def test_the_gradient_of_the_term_equals_finite_differences(estimator):
    batch = batch_of(6)
    model = tiny_mae()
    mask = random_mask(keys_of(batch), (4, 4), 0.5)
    options = {} if estimator == "cka" else {"width": {"rule": "dimension", "value": 1.0}}
    term = InformationTerm(InformationConfig(estimator=estimator, options=options, layer=1))

    def value() -> Tensor:
        tokens = model.tokens(batch.images, mask, layer=1)
        return term(clean=batch.images, seen=batch.images, mask=mask, tokens=tokens, patch_size=4)

    weight = model.blocks[0].mlp.fc1.weight
    (gradient,) = torch.autograd.grad(value(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h, own = 1e-6, weight.detach().clone()
    with torch.no_grad():
        weight.copy_(own + h * direction)
        up = value()
        weight.copy_(own - h * direction)
        down = value()
    assert gradient.abs().max() > 0
    torch.testing.assert_close((up - down) / (2 * h), (gradient * direction).sum(), rtol=1e-4, atol=1e-9)


# --- a whole step, against a plain reference --------------------------------------------------------------------------


def reference_forward(model: MaskedAutoencoder, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A masked autoencoder sample by sample, from its weights: predictions `[B, hidden, pixels]`, tokens."""

    def attend(layer, t):
        n, heads = len(t), layer.heads
        q, k, v = layer.qkv(t).view(n, 3, heads, -1).permute(1, 2, 0, 3)
        return layer.proj(((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(0, 1).reshape(n, -1))

    def block(layer, t):
        t = t + attend(layer.attn, layer.norm1(t))
        return t + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(t))))

    predictions, tokens = [], []
    for image, hidden in zip((x - model.normalise.mean) / model.normalise.deviation, mask.flatten(1), strict=True):
        t = model.patch_embed.proj(image[None])[0].flatten(1).T + model.pos_embed[0, 1:]
        t = torch.cat([model.cls_token[0] + model.pos_embed[0, :1], t[~hidden]])
        for layer in model.blocks:
            t = block(layer, t)
        tokens.append(model.norm(t))
        whole = model.mask_token[0].repeat(len(hidden), 1)
        whole[~hidden] = model.decoder_embed(tokens[-1])[1:]
        t = torch.cat([model.decoder_embed(tokens[-1])[:1], whole]) + model.decoder_pos_embed[0]
        for layer in model.decoder_blocks:
            t = block(layer, t)
        predictions.append(model.decoder_pred(model.decoder_norm(t))[1:][hidden])
    return torch.stack(predictions), torch.stack(tokens)


def hidden_patches(model: MaskedAutoencoder, x: Tensor, mask: Tensor) -> Tensor:
    patches = F.unfold((x - model.normalise.mean) / model.normalise.deviation, 4, stride=4)
    patches = patches.view(len(x), 3, 16, -1).permute(0, 3, 2, 1).flatten(2)
    return torch.stack([p[m] for p, m in zip(patches, mask.flatten(1), strict=True)])


def reference_loss(model: MaskedAutoencoder, x: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    predicted, tokens = reference_forward(model, x, mask)
    goal = hidden_patches(model, target, mask)
    if model.target == "normalised":
        goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True) + 1e-6).sqrt()
    return (predicted - goal).square().mean(), tokens


def reference_step(model: MaskedAutoencoder, optimizer, batch: Batch, kind: str) -> None:
    """MIMIR's Algorithm 1 as its text has it ("text") or as its code does it ("code"), as one would first write it."""
    drawn, x = keys_of(batch), batch.images
    mask = random_mask(drawn.fold("mask"), (4, 4), 0.75)
    own = random_mask(drawn.fold("attack mask", 0), (4, 4), 0.75) if kind == "code" else mask
    delta = (2 * drawn.fold("attack start").uniform(3, 16, 16).double() - 1) * EPS
    adversarial = (x + delta).clamp(0, 1)
    if kind == "text":
        adversarial = torch.where(enlarge(mask, 4), x, adversarial)
    adversarial.requires_grad_()
    loss, _ = reference_loss(model, adversarial, adversarial if kind == "code" else x, own)
    (gradient,) = torch.autograd.grad(loss, adversarial)
    with torch.no_grad():
        delta = (adversarial + STEP * gradient.sign() - x).clamp(-EPS, EPS)
        adversarial = (x + delta).clamp(0, 1)
    loss, tokens = reference_loss(model, adversarial, x, mask)
    n, a, b = len(x), adversarial.flatten(1), tokens.flatten(1)
    if kind == "code":
        h, eye = torch.eye(n, dtype=x.dtype) - 1 / n, torch.eye(n, dtype=x.dtype)
        r = [gaussian(rows, 5 * math.sqrt(rows.shape[1])) @ h for rows in (a, b)]
        r = [k @ torch.linalg.inv(k + 1e-5 * n * eye) for k in r]
        loss = loss + 1e-3 * (r[0] * r[1].T).sum()
    else:
        loss = loss + 10.0 * hsic_by_definition(a, b, 6.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["text", "code"])
def test_two_training_steps_leave_the_weights_of_a_plain_reference(kind):
    if kind == "text":
        term = InformationTerm(InformationConfig(weight=10.0, estimator="hsic", options=FIXED))
        target, objective = "pixels", MaskedPretraining((0.75,), attack=TEXT, information=term)
    else:
        term = InformationTerm(InformationConfig(weight=1e-3, estimator="hsic-cca"))
        target, objective = "normalised", MaskedPretraining((0.75,), attack=CODE, information=term)
    ours, plain = tiny_mae(target=target), tiny_mae(target=target)
    before = ours.state_dict()["blocks.0.mlp.fc1.weight"].clone()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95)) for model in (ours, plain)]
    for seed in range(2):
        batch = batch_of(5, seed=seed)
        values = objective(ours, batch, keys_of(batch), 0)
        optimizers[0].zero_grad()
        values["loss"].backward()
        optimizers[0].step()
        reference_step(plain, optimizers[1], batch, kind)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, plain.state_dict()[name], rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert (ours.state_dict()["blocks.0.mlp.fc1.weight"] - before).abs().mean() > 1e-4
    torch.testing.assert_close(values["loss"], values["reconstruction"] + term.config.weight * values["information"])


# --- the free variant -------------------------------------------------------------------------------------------------


class Count:
    """Counts the passes of a model through its first block, forwards and backwards."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        self.forward = self.backward = 0
        model.blocks[0].register_forward_hook(self._seen)

    def _seen(self, module, inputs, output) -> None:
        self.forward += 1
        output.register_hook(self._back)

    def _back(self, gradient) -> None:
        self.backward += 1


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        (MaskedPretraining((0.75,)), 1),
        (MaskedPretraining((0.75,), attack=TEXT), 2),
        (MaskedPretraining((0.75,), attack=MaskedAttackConfig(steps=3)), 4),
        (FreeMaskedPretraining((0.75,), FreeAttackConfig(replays=3)), 1),
        (
            FreeMaskedPretraining(
                (0.75,), FreeAttackConfig(replays=3), information=InformationTerm(InformationConfig())
            ),
            1,
        ),
    ],
)
def test_passes_of_a_step(objective, passes):
    model, batch = tiny_mae(), batch_of(4)
    count = Count(model)
    for step in range(6):
        objective(model, batch, keys_of(batch, step), step)["loss"].backward()
    assert (count.forward, count.backward) == (6 * passes, 6 * passes)


@pytest.mark.parametrize("masks", ["shared", "fresh"])
def test_free_steps_move_along_the_gradient_of_the_step_before(masks):
    config = FreeAttackConfig(replays=3, mask=masks, step_size=Radius("4/255"))
    objective = FreeMaskedPretraining((0.5,), config)
    model = tiny_mae()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for turn in range(2):
        batch = batch_of(4, seed=turn)
        x = batch.images
        point, mask = None, None
        for replay in range(3):
            drawn = keys_of(batch, 3 * turn + replay)
            if replay == 0:
                point = Ball(eps=EPS).random(x, drawn.fold("attack start"))
            if replay == 0 or masks == "fresh":
                mask = random_mask(drawn.fold("mask"), (4, 4), 0.5)
            leaf = point.clone().requires_grad_()
            expected = model.reconstruct(leaf, mask, target=x).loss.mean()
            (gradient,) = torch.autograd.grad(expected, leaf)
            values = objective(model, batch, drawn, 3 * turn + replay)
            torch.testing.assert_close(values["loss"], expected, rtol=1e-12, atol=0)
            optimizer.zero_grad()
            values["loss"].backward()
            optimizer.step()
            point = (point + 4 / 255 * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)


def test_a_free_step_without_a_gradient_leaves_the_image_where_it_was():
    objective, model, batch = FreeMaskedPretraining((0.5,), FreeAttackConfig(replays=3)), tiny_mae(), batch_of(4)
    for step in range(2):
        loss = objective(model, batch, keys_of(batch, step), step)["loss"]
        (loss * math.nan if step == 0 else loss).backward()
        seen, _ = objective._last
        assert torch.equal(seen, Ball(eps=EPS).random(batch.images, keys_of(batch).fold("attack start")))
    objective(model, batch, keys_of(batch, 2), 2)
    assert not torch.equal(objective._last[0], seen)


class Killed(Exception):
    pass


def free_run(folder, evaluate=lambda model: {}, **options):
    images = torch.randint(0, 256, (16, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    source = ResidentSource(
        name="noise", classes=("a",), images=images, labels=torch.zeros(16, dtype=torch.int64), ids=torch.arange(16)
    )
    here = World(0, 1, torch.device("cpu"))
    loader = Loader(source, DataConfig(flip="random"), batch_size=4, seed=1, device=here.device)
    model = tiny_mae(torch.float32)
    run = RunConfig(epochs=2, batch_size=4, evaluate_every=0.5, checkpoint_minutes=0.0)
    status = fit(
        model,
        FreeMaskedPretraining((0.5,), FreeAttackConfig(replays=3)),
        Replayed(loader, 3),
        optimizer_config=OptimizerConfig(learning_rate=1e-3),
        run=run,
        folder=RunFolder(folder, recipe={}, kind="pretrain"),
        world=here,
        evaluate=evaluate,
        **options,
    )
    return model, status


def test_a_free_run_resumes_bit_for_bit_and_stops_between_batches(tmp_path):
    whole, status = free_run(tmp_path / "whole")
    assert status == "finished"
    rounds, status = 0, "stopped"
    while status == "stopped":
        pieces, status = free_run(tmp_path / "pieces", max_seconds=0.0)
        rounds += 1
    assert rounds == 8  # 24 steps, three to a batch
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), pieces.parameters(), strict=True))

    calls = iter(range(100))

    def kill(model):
        if next(calls) == 1:
            raise Killed
        return {}

    with pytest.raises(Killed):
        free_run(tmp_path / "killed", evaluate=kill)
    resumed, _ = free_run(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_replayed_batches_come_several_times_in_a_row():
    class Numbers:
        steps_per_epoch, replays = 5, 1

        def batch(self, step):
            return Batch(torch.full((1, 3, 2, 2), float(step)), torch.zeros(1).long(), torch.tensor([step]))

    replayed = Replayed(Numbers(), 3)
    assert replayed.steps_per_epoch == 15
    assert [int(replayed.batch(step).ids) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert int(replayed.batch(1).ids) == 0


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipe(**changes) -> PretrainRecipe:
    return PretrainRecipe(model=ModelConfig(name="mae"), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attack": TEXT, "free": FreeAttackConfig()}, "exclude"),
        ({"attack": TEXT, "input_noise": Radius("8/255")}, "exclude"),
        ({"free": FreeAttackConfig(replays=1)}, "replays"),
        ({"mask_scales": (2, 0)}, "mask_scales"),
        ({"attack": MaskedAttackConfig(steps=0)}, "steps"),
        ({"information": InformationConfig(x="perturbation")}, "nothing is perturbed"),
        ({"information": InformationConfig(estimator="hsci")}, "Did you mean 'hsic'"),
        ({"information": InformationConfig(options={"widht": 1})}, "Did you mean 'width'"),
        ({"information": InformationConfig(layer=3)}, "2 blocks"),
        ({"attack": MaskedAttackConfig(mask_ratio=0.5)}, "attack.mask to fresh"),
        ({"information": InformationConfig(group=48)}, "48, which does not divide the 128"),
        ({"information": InformationConfig(group=256)}, "256, which does not divide the 128"),
        ({"information": InformationConfig(group=64), "run": RunConfig(accumulate=4)}, "does not divide the 32"),
        ({"information": InformationConfig(), "run": RunConfig(accumulate=2)}, "information.group"),
        (
            {"information": InformationConfig(batch="global", group=64), "run": RunConfig(accumulate=2)},
            "accumulate is 2",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(RecipeError, match=says):
        pretraining_objective(recipe(**changes), tiny_mae())


def test_groups_are_held_to_what_a_process_has_at_a_time():
    for batch, processes, parts in (("process", 2, 2), ("global", 8, 1)):
        about = recipe(information=InformationConfig(batch=batch, group=32), run=RunConfig(accumulate=parts))
        pretraining_objective(about, tiny_mae(), processes=processes)
    with pytest.raises(RecipeError, match="does not divide the 16"):
        pretraining_objective(recipe(information=InformationConfig(group=32)), tiny_mae(), processes=8)


def test_parts_of_a_batch_leave_a_grouped_term_as_it_is():
    batch, model = batch_of(8), tiny_mae()
    term = InformationTerm(InformationConfig(weight=1.0, estimator="hsic", options=FIXED, group=4))
    objective = MaskedPretraining((0.75,), information=term)
    whole = objective(model, batch, keys_of(batch), 0)["information"]
    halves = [objective(model, part, keys_of(part), 0)["information"] for part in batch.parts(2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean())


def test_what_needs_an_encoder_says_so_and_the_rest_works_for_every_masked_model():
    model, batch = MaskedConvolution(widths=(8, 16), blocks=(1, 1)), batch_of(4, dtype=torch.float32)
    for changes in (
        {"loss_over": "all"},
        {"information": InformationConfig()},
        {"attack": MaskedAttackConfig(target="latent")},
        {"attack": MaskedAttackConfig(units="pixels")},
    ):
        with pytest.raises(RecipeError, match="encoder"):
            pretraining_objective(recipe(**changes), model)
    for changes in ({"attack": TEXT}, {"attack": CODE}, {"free": FreeAttackConfig(replays=2)}):
        objective = pretraining_objective(recipe(**changes), model)
        values = objective(model, batch, keys_of(batch), 0)
        values["loss"].backward()
        assert torch.isfinite(values["loss"])
