"""All masked models keep the one protocol: what they see, what they score, and how gradients flow."""

from __future__ import annotations

import pytest
import torch

from robustmim.errors import InputError
from robustmim.models.context_encoder import ContextEncoder
from robustmim.models.mae import MaskedAutoencoder
from robustmim.models.masked import MaskedModel, freeze, parameter_count
from robustmim.models.masked_conv import MaskedConvolution
from robustmim.models.masking import enlarge, random_mask
from robustmim.models.record import AttentionRecorder
from robustmim.models.vit import (
    VisionTransformer,
    explicit_attention,
    patchify,
    sine_cosine_positions,
    unpatchify,
)
from robustmim.registry import build
from robustmim.rng import keys

KEYS = keys(0, "test", torch.arange(3))


def tiny_mae(**options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    return MaskedAutoencoder(image_size=16, **{**sizes, **options}).eval()


def tiny_conv(patch_size: int = 1) -> MaskedConvolution:
    torch.manual_seed(0)
    model = MaskedConvolution(patch_size=patch_size, widths=(8, 16), blocks=(1, 1))
    for parameter in model.parameters():  # away from the zeros it begins with
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def tiny_context(patch_size: int = 4) -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(image_size=16, patch_size=patch_size, widths=(8, 16)).eval()


MODELS = {
    "mae": tiny_mae,
    "mae-normalised": lambda: tiny_mae(target="normalised"),
    "conv-1": tiny_conv,
    "conv-2": lambda: tiny_conv(2),
    "context": tiny_context,
    "context-regions": lambda: tiny_context(8),
}
x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_keeps_the_protocol(model):
    assert isinstance(model, MaskedModel)
    grid = model.grid(16, 16)
    assert grid == (16 // model.patch_size,) * 2
    found = model.reconstruct(x, random_mask(KEYS, grid, 0.25), need_pixels=True)
    assert found.loss.shape == (3,)
    assert found.pixels.shape == x.shape
    assert found.attention is None


def test_hidden_pixels_reach_the_loss_as_target_only(model):
    """What is hidden from the network must not influence its prediction."""
    grid = model.grid(16, 16)
    mask = random_mask(KEYS, grid, 0.3)
    hidden = enlarge(mask, model.patch_size)
    changed = torch.where(hidden, torch.rand_like(x), x)
    ours = model.reconstruct(x, mask, target=x).loss
    theirs = model.reconstruct(changed, mask, target=x).loss
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_visible_pixels_do_not_count_in_the_loss(model):
    mask = random_mask(KEYS, model.grid(16, 16), 0.3)
    hidden = enlarge(mask, model.patch_size)
    target = torch.where(hidden, x, torch.zeros_like(x))
    torch.testing.assert_close(
        model.reconstruct(x, mask, target=target).loss, model.reconstruct(x, mask).loss, atol=0, rtol=0
    )


def test_loss_is_the_mean_squared_error_of_the_pixels_it_draws():
    for model in (tiny_conv(), tiny_conv(2), tiny_context()):
        mask = random_mask(KEYS, model.grid(16, 16), 0.3)
        hidden = enlarge(mask, model.patch_size).expand_as(x)
        predicted = model.predict(x, hidden[:, :1])
        for sample in range(3):
            expected = (predicted - x)[sample][hidden[sample]].square().mean()
            torch.testing.assert_close(model.reconstruct(x, mask).loss[sample], expected)


def test_input_gradient_equals_finite_differences(model):
    model = freeze(model).double()
    mask = random_mask(KEYS, model.grid(16, 16), 0.3)
    point = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.reconstruct(point, mask).loss.sum(), point)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        h = 1e-6
        with torch.no_grad():
            up = model.reconstruct(x.double() + h * direction, mask).loss.sum()
            down = model.reconstruct(x.double() - h * direction, mask).loss.sum()
        torch.testing.assert_close((up - down) / (2 * h), (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_explicit_attention_gives_the_same_numbers_and_a_second_derivative():
    model = freeze(tiny_mae()).double()
    mask = random_mask(KEYS, (4, 4), 0.3)
    point = x.double().requires_grad_()
    fused = model.reconstruct(point, mask).loss
    with explicit_attention(model):
        explicit = model.reconstruct(point, mask).loss
        torch.testing.assert_close(fused, explicit, rtol=1e-12, atol=0)
        (gradient,) = torch.autograd.grad(explicit.sum(), point, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), point)
    assert second.abs().max() > 0
    assert not any(getattr(module, "explicit", False) for module in model.modules())


def test_recorder_attaches_and_leaves_no_trace():
    model = tiny_mae()
    mask = random_mask(KEYS, (4, 4), 0.25)
    with AttentionRecorder(model, prefix="decoder_blocks") as recorder:
        model.reconstruct(x, mask)
    assert [tuple(m.shape) for m in recorder.maps] == [(3, 2, 17, 17)]
    torch.testing.assert_close(recorder.maps[0].sum(-1), torch.ones(3, 2, 17))
    model.reconstruct(x, mask)
    assert len(recorder.maps) == 1
    assert all(not module._forward_hooks for module in model.modules())
    everything = model.reconstruct(x, mask, need_attention=True).attention
    assert [tuple(m.shape) for m in everything] == [(3, 2, 13, 13)] * 2 + [(3, 2, 17, 17)]


def test_the_convolution_takes_any_size_and_zero_padding_hides_nothing():
    model = tiny_conv()
    for height, width in ((5, 7), (16, 18), (33, 9)):
        image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        mask = random_mask(KEYS[:2], model.grid(height, width), 0.25)
        found = model.reconstruct(image, mask, need_pixels=True)
        assert found.pixels.shape == image.shape
        assert torch.isfinite(found.loss).all()


def test_a_constant_image_is_predicted_by_the_filling_alone():
    model = MaskedConvolution(widths=(8, 16), blocks=(1, 1))
    image = torch.full((1, 3, 16, 16), 0.7)
    mask = random_mask(KEYS[:1], (16, 16), 0.25)
    assert model.reconstruct(image, mask).loss.item() < 1e-5


def test_every_pixel_a_context_encoder_sees_can_reach_every_one_it_predicts():
    """Its narrow middle connects all places: that is what tells it from a plain convolution."""
    model = tiny_context()
    point = x[:1].clone().requires_grad_()
    nothing_hidden = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    for row, column in ((0, 0), (8, 3), (15, 15)):
        (gradient,) = torch.autograd.grad(model.predict(point, nothing_hidden)[0, :, row, column].sum(), point)
        assert gradient.ne(0).all()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="16 × 16"):
        tiny_mae().grid(32, 32)
    with pytest.raises(InputError, match="16 × 16"):
        tiny_context().grid(32, 32)
    with pytest.raises(InputError, match="halved 3 times"):
        ContextEncoder(image_size=20, widths=(8, 8, 8))
    with pytest.raises(InputError, match="patches of 2"):
        tiny_conv(2).grid(15, 16)
    with pytest.raises(InputError, match="patches of 3"):
        tiny_mae(patch_size=3)


def test_patchify_is_undone_by_unpatchify():
    assert torch.equal(unpatchify(patchify(x, 4), 4, (4, 4)), x)


def test_positions_are_those_of_the_released_code():
    # MAE's table at width 8: column sines, column cosines, row sines, row cosines, at frequencies 1 and 0.01.
    table = sine_cosine_positions(8, (2, 3), class_token=True)[0]
    assert table[0].eq(0).all()
    row, column = 1, 2
    angles = torch.tensor([1.0, 0.01])
    expected = torch.cat([(column * angles).sin(), (column * angles).cos(), (row * angles).sin(), (row * angles).cos()])
    torch.testing.assert_close(table[1 + row * 3 + column], expected)


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        ("mae-base", {"image_size": 224, "patch_size": 16}, 111.9),
        ("mae-large", {"image_size": 224, "patch_size": 16}, 329.5),
        ("mae-mimir-small", {"patch_size": 2}, 21.9),
    ],
)
def test_sizes_of_the_papers(name, options, millions):
    with torch.device("meta"):
        model = build("masked-model", name, **options)
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.1)


def test_vision_transformer_takes_its_own_size_only():
    model = VisionTransformer(image_size=16, patch_size=4, width=16, depth=1, heads=2, classes=7)
    assert model(x).shape == (3, 7)
    with pytest.raises(InputError, match="16-pixel"):
        model(torch.rand(1, 3, 32, 32))
