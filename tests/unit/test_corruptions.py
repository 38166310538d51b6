"""Common corruptions: shape, range, determinism, growth with severity, and what each does against its definition."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from robustmim.data.corruption_kernels import Draws, disk, frost_texture, motion_blurred, plasma, water
from robustmim.data.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, Corrupted, corrupt
from robustmim.data.sources import ResidentSource, load
from robustmim.errors import InputError, RecipeError
from robustmim.evaluate.corruption_error import (
    ALEXNET,
    ALEXNET_CLEAN,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from robustmim.rng import keys

# The published constants themselves do not grow steadily for these.
UNSTEADY = {
    "glass_blur": "CIFAR's third severity blurs more than its fourth, which moves pixels further",
    "frost": "the picture is darkened from severity 2 on, which undoes part of the frost's light",
    "fog": "ImageNet's second severity is flatter than the third",
    "snow": "ImageNet's third severity raises the threshold of the flakes",
    "elastic_transform": "the first severities move the whole picture, the last ones bend it locally",
    "spatter": "water up to severity 3, mud from 4",
    "saturate": "severities 1 and 2 take colour away, 3 to 5 add it",
    "motion_blur": "CIFAR's fourth severity is longer but not wider than its third, and the direction is drawn",
}


@cache
def photographs(size: int, count: int = 4) -> torch.Tensor:
    pytest.importorskip("foolbox")
    source = load("samples-cifar10" if size == 32 else "samples-imagenet", "test", size=size)
    return source.fetch(torch.arange(count)).float() / 255


def drawn(count: int, seed: int = 0):
    return keys(seed, "corruption", torch.arange(count))


def test_there_are_fifteen_and_four():
    assert len(BENCHMARK) == 15
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate")
    assert all(len(c.small) == len(c.large) == len(SEVERITIES) == 5 for c in CORRUPTIONS.values())


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_bytes_in_range_the_same_alone_and_in_a_batch_and_growing(name, size):
    # At 224 pixels two images show it; a batch of many would only take longer.
    x = photographs(size)[: 4 if size == 32 else 2]
    away = []
    for severity in SEVERITIES:
        done = corrupt(x, name, severity, drawn(len(x)))
        assert done.shape == x.shape
        assert done.dtype == torch.float32
        assert (done * 255 - (done * 255).round()).abs().max() < 1e-4
        assert done.min() >= 0
        assert done.max() <= 1
        assert torch.equal(corrupt(x[1:2], name, severity, drawn(len(x))[1:2])[0], done[1])
        away.append(float((done - x).square().mean()))
    assert min(away) > 0
    if name not in UNSTEADY:
        assert away == sorted(away)
    else:
        assert max(away[3:]) > 0.3 * max(away)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "snow", "frost", "fog", "glass_blur", "elastic_transform", "spatter"]
)
def test_draws_depend_on_key_and_severity_and_leave_the_global_generators_alone(name):
    x = photographs(32)[:1].repeat(2, 1, 1, 1)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, second = corrupt(x, name, 3, drawn(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, corrupt(x, name, 3, drawn(2, seed=1))[0])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("size", [(32, 48), (63, 40), (64, 80), (100, 70)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_and_shape(name, size):
    x = torch.nn.functional.interpolate(photographs(32)[:1], size=size)
    assert corrupt(x, name, 5, drawn(1)).shape == x.shape


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_finite(name, value):
    x = torch.full((1, 3, 32, 32), value)
    done = corrupt(x, name, 5, drawn(1))
    assert torch.isfinite(done).all()


class TestAgainstDefinitions:
    grey = torch.full((2, 3, 128, 128), 128 / 255)

    @pytest.mark.parametrize("severity", [1, 2])
    def test_gaussian_noise_has_its_variance(self, severity):
        deviation = CORRUPTIONS["gaussian_noise"].large[severity - 1]
        noise = corrupt(self.grey, "gaussian_noise", severity, drawn(2)).double() - 128 / 255
        n = noise.numel()
        # Cutting down to bytes takes half a level and adds the variance of a uniform number; no value leaves [0, 1] here.
        assert noise.mean().item() == pytest.approx(-0.5 / 255, abs=4 * deviation / n**0.5)
        expected = deviation**2 + (1 / 255) ** 2 / 12
        assert noise.var().item() == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)

    def test_speckle_noise_is_in_proportion(self):
        deviation = CORRUPTIONS["speckle_noise"].large[0]
        noise = corrupt(self.grey, "speckle_noise", 1, drawn(2)).double() - 128 / 255
        assert noise.std().item() == pytest.approx(deviation * 128 / 255, rel=0.02)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_shot_noise_counts_photons(self, severity):
        photons = CORRUPTIONS["shot_noise"].large[severity - 1]
        done = corrupt(self.grey * 0.5, "shot_noise", severity, drawn(2)).double()
        counts = (done * photons).flatten()
        kept = counts[done.flatten() < 1]
        assert (kept - kept.round()).abs().max() <= photons / 255 + 1e-9
        rate = photons * 64 / 255
        n = counts.numel()
        # Counts above white are cut off; at this grey that is rare.
        assert counts.mean().item() == pytest.approx(rate, abs=photons / 255 + 5 * (rate / n) ** 0.5 + 0.01 * rate)
        if severity < 5:  # of three photons a noticeable part is cut off
            assert counts.var().item() == pytest.approx(rate, rel=0.06)

    def test_impulse_noise_hits_its_share_half_and_half(self):
        share = CORRUPTIONS["impulse_noise"].large[4]
        done = corrupt(self.grey, "impulse_noise", 5, drawn(2))
        assert (done == 0).double().mean().item() == pytest.approx(share / 2, abs=0.005)
        assert (done == 1).double().mean().item() == pytest.approx(share / 2, abs=0.005)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_contrast(self, severity):
        x = photographs(32).double()
        factor = CORRUPTIONS["contrast"].small[severity - 1]
        mean = x.mean((2, 3), keepdim=True)
        expected = ((x - mean) * factor + mean).clamp(0, 1)
        difference = expected - corrupt(x.float(), "contrast", severity, drawn(4))
        assert difference.min() > -1e-4
        assert difference.max() < 1 / 255 + 1e-4

    @pytest.mark.parametrize(("name", "severity"), [(n, s) for n in ("brightness", "saturate") for s in SEVERITIES])
    def test_brightness_and_saturation_against_the_standard_librarys_hsv(self, name, severity):
        import colorsys

        x = photographs(32)[:1]
        x[0, :, :4, :4] = 0.5  # greys have no hue
        x[0, :, 4:8, :4] = 0
        constant = CORRUPTIONS[name].small[severity - 1]
        done = corrupt(x, name, severity, drawn(1))[0].permute(1, 2, 0).reshape(-1, 3)
        pixels = (x[0] * 255).round().permute(1, 2, 0).reshape(-1, 3)
        for before, after in zip(pixels.tolist(), done.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*(value / 255 for value in before))
            if name == "brightness":
                v = min(v + constant, 1)
            else:
                s = min(max(s * constant[0] + constant[1], 0), 1)
            assert np.allclose(np.floor(np.array(colorsys.hsv_to_rgb(h, s, v)) * 255 + 1e-6) / 255, after, atol=1e-6)

    @pytest.mark.parametrize("size", [32, 224])
    def test_pixelate_and_jpeg_against_pillow(self, size):
        x = photographs(size)[:1]
        image = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
        for severity in SEVERITIES:
            kind = "small" if size == 32 else "large"
            side = int(size * getattr(CORRUPTIONS["pixelate"], kind)[severity - 1])
            expected = np.asarray(image.resize((side, side), Image.Resampling.BOX).resize((size, size), Image.BOX))
            done = corrupt(x, "pixelate", severity, drawn(1))[0].permute(1, 2, 0).numpy() * 255
            assert np.array_equal(np.rint(done), expected)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=getattr(CORRUPTIONS["jpeg_compression"], kind)[severity - 1])
            done = corrupt(x, "jpeg_compression", severity, drawn(1))[0].permute(1, 2, 0).numpy() * 255
            assert np.array_equal(np.rint(done), np.asarray(Image.open(file)))

    def test_blurs_keep_a_flat_picture(self):
        for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "elastic_transform"):
            for severity in SEVERITIES:
                done = corrupt(self.grey[:1], name, severity, drawn(1))
                assert (done - self.grey[:1]).abs().max() <= 1.001 / 255  # bytes are cut, not rounded

    def test_zoom_blur_keeps_the_middle_in_the_middle(self):
        x = torch.zeros(1, 3, 65, 65)
        x[..., 28:37, 28:37] = 1
        done = corrupt(x, "zoom_blur", 5, drawn(1))[0, 0].double()
        place = (done * torch.arange(65)).sum() / done.sum()
        assert place.item() == pytest.approx(32, abs=0.7)

    def test_glass_moves_pixels_no_further_than_it_may(self):
        # Severity 4 of CIFAR fetches twice from at most one pixel away; columns alone would stay as they are.
        x = (torch.arange(32) / 32).expand(1, 3, 32, 32)
        done = corrupt(x.contiguous(), "glass_blur", 4, drawn(1))
        assert (done - x).abs().max() < 8 / 32


class TestKernels:
    def test_a_disk_sums_to_one_and_has_its_radius(self):
        for radius, softness in CORRUPTIONS["defocus_blur"].large:
            kernel = disk(radius, softness)
            assert kernel.sum() == pytest.approx(1, abs=0.02)
            assert kernel[len(kernel) // 2, len(kernel) // 2 + radius - 1] > 0.5 * kernel.max()

    def test_motion_smears_half_a_gaussian_along_its_direction(self):
        picture = np.zeros((41, 41))
        picture[20, 20] = 1
        flat = motion_blurred(picture, 5, 2.0, 0.0)
        weights = np.exp(-(np.arange(11) ** 2) / 8)
        assert np.allclose(flat[20, 10:21][::-1], weights / weights.sum())
        assert np.allclose(flat.sum(), 1)
        steep = motion_blurred(picture, 5, 2.0, -90.0)
        assert np.allclose(steep[20:31, 20], weights / weights.sum())

    def test_plasma_fills_zero_to_one_and_is_rougher_for_a_slower_decay(self):
        smooth, rough = (plasma(Draws(drawn(1)), 100, decay) for decay in (3, 1.4))
        assert smooth.shape == (128, 128)
        for cloud in (smooth, rough):
            assert cloud.min() == 0
            assert cloud.max() == 1
        assert np.abs(np.diff(rough)).mean() > 1.5 * np.abs(np.diff(smooth)).mean()

    @pytest.mark.parametrize(("side", "shrink"), [(32, 5), (224, 1)])
    def test_frost_has_the_level_spread_and_grain_of_photographs_of_frost(self, side, shrink):
        panes = [frost_texture(Draws(keys(0, "f", torch.tensor([i]))), side, side, shrink=shrink) for i in range(12)]
        grey = np.stack(panes).mean(-1)
        assert 0.4 < grey.mean() < 0.8
        assert 0.03 < grey.std((1, 2)).mean() < 0.15
        near = np.mean([np.corrcoef(pane[:, 1:].ravel(), pane[:, :-1].ravel())[0, 1] for pane in grey])
        far = np.mean([np.corrcoef(pane[:, 12:].ravel(), pane[:, :-12].ravel())[0, 1] for pane in grey])
        assert near > 0.6
        assert far < near - 0.2

    def test_no_drops_no_water(self):
        assert not water(np.zeros((32, 32)), 0.5).any()


class TestSource:
    source = ResidentSource(
        "noise", ("a",), torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.zeros(6, dtype=torch.long),
        torch.arange(6) + 40,
    )  # fmt: skip

    def test_fetches_the_same_in_any_order_by_id(self):
        whole = Corrupted(self.source, "snow", 2, seed=3)
        images = whole.fetch(torch.arange(6))
        assert images.dtype == torch.uint8
        assert torch.equal(whole.fetch(torch.tensor([4, 1])), images[[4, 1]])
        part = Corrupted(self.source.select(torch.tensor([4])), "snow", 2, seed=3)
        assert torch.equal(part.fetch(torch.tensor([0]))[0], images[4])
        expected = corrupt(self.source.images.float() / 255, "snow", 2, keys(3, "corruption", self.source.ids))
        assert torch.equal(images.float() / 255, expected)
        assert len(whole) == 6
        assert whole.fetch(torch.arange(0)).shape == (0, 3, 32, 32)
        assert "snow 2" in whole.name

    def test_a_recipe_asks_for_one(self):
        pytest.importorskip("foolbox")
        from robustmim.cli.training import open_source
        from robustmim.config import DataConfig

        config = DataConfig(name="samples-cifar10", limit=3, corruption="contrast", severity=5)
        flat = open_source(config, torch.device("cpu")).fetch(torch.arange(3)).float()
        clean = photographs(32)[:3] * 255
        assert flat.std((2, 3)).mean() < 0.2 * clean.std((2, 3)).mean()

    @pytest.mark.parametrize(
        ("name", "severity", "says"),
        [("gausian_noise", 1, "'gaussian_noise'"), ("fog", 6, "Did you mean 5"), ("fog", 0, "Did you mean 1")],
    )
    def test_mistakes_name_the_nearest(self, name, severity, says):
        with pytest.raises(RecipeError, match=says):
            Corrupted(self.source, name, severity)
        with pytest.raises(RecipeError, match=says):
            corrupt(torch.rand(1, 3, 32, 32), name, severity, drawn(1))

    def test_bad_images_are_refused(self):
        with pytest.raises(InputError, match="too small"):
            corrupt(torch.rand(1, 3, 31, 64), "fog", 1, drawn(1))
        with pytest.raises(InputError, match="keys"):
            corrupt(torch.rand(2, 3, 32, 32), "fog", 1, drawn(1))
        with pytest.raises(InputError, match="divide by 255"):
            corrupt(torch.full((1, 3, 32, 32), 200.0), "fog", 1, drawn(1))


class TestCorruptionError:
    errors = {"fog": [0.2, 0.4], "snow": [0.5, 0.7]}  # noqa: RUF012
    other = {"fog": [0.4, 0.8], "snow": [0.5, 0.5]}  # noqa: RUF012

    def test_by_hand(self):
        assert mean_corruption_error(self.errors) == pytest.approx(0.45)
        assert mean_corruption_error(self.errors, self.other) == pytest.approx((0.6 / 1.2 + 1.2 / 1.0) / 2)
        relative = relative_mean_corruption_error(self.errors, 0.1, self.other, 0.2)
        assert relative == pytest.approx((0.4 / 0.8 + 1.0 / 0.6) / 2)
        assert relative_mean_corruption_error(self.errors, 0.1) == pytest.approx(0.35)

    def test_a_baseline_is_one_against_itself(self):
        assert mean_corruption_error(ALEXNET, ALEXNET) == pytest.approx(1)
        assert relative_mean_corruption_error(ALEXNET, ALEXNET_CLEAN, ALEXNET, ALEXNET_CLEAN) == pytest.approx(1)
        assert set(ALEXNET) == set(BENCHMARK)

    @pytest.mark.parametrize(
        ("errors", "baseline", "says"),
        [
            ({}, None, "one corruption"),
            ({"fog": [0.1]}, {"snow": [0.1]}, "no errors for fog"),
            ({"fog": [0.1]}, {"fog": [0.1, 0.2]}, "severities"),
            ({"fog": [12.0]}, None, "fractions"),
            ({"fog": [0.1]}, {"fog": [0.0]}, "nothing can be divided"),
        ],
    )
    def test_mistakes(self, errors, baseline, says):
        with pytest.raises(InputError, match=says):
            mean_corruption_error(errors, baseline)
        with pytest.raises(InputError, match="clean error"):
            relative_mean_corruption_error(self.errors, 0.1, self.other)


# What corrupt-tta does otherwise: another kernel for motion, photographs of frost, another kind of spatter.
LOOSE = {"motion_blur": 1.6, "frost": 2.0, "fog": 1.4, "elastic_transform": 1.4, "glass_blur": 1.3, "snow": 1.15}
EXACT = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "spatter"])
def test_oracle_corrupt_tta(name):
    """Needs `pip install --no-deps --target FOLDER corrupt-tta opencv-python-headless scikit-image lazy-loader`, and
    PYTHONPATH=FOLDER."""
    oracle = pytest.importorskip("corrupt_tta", reason="the oracle is not installed", exc_type=ImportError)
    x = photographs(224, 10)
    np.random.seed(0)
    for severity in (2, 5):
        bytes_ = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
        theirs = np.stack([np.floor(np.asarray(oracle.corrupt(one, severity, name), float)) for one in bytes_])
        ours = corrupt(x, name, severity, drawn(10)).permute(0, 2, 3, 1).numpy() * 255
        ratio = np.abs(ours - bytes_).mean() / np.abs(theirs - bytes_).mean()
        assert 1 / LOOSE.get(name, 1.03) < ratio < LOOSE.get(name, 1.03)
        if name in EXACT:
            assert np.abs(ours - theirs).mean() < 0.05
