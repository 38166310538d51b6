"""Strong augmentation: operations against Pillow's, shares that are exact, and samples that do not know their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import beta as beta_distribution
from scipy.stats import kstest

from robustmim.config import AugmentConfig, DataConfig
from robustmim.data import augment
from robustmim.data.augment import OPERATIONS, erase, rand_augment
from robustmim.data.generated import _array, load_generated
from robustmim.data.loader import Extended, Loader
from robustmim.data.mixing import beta, cutmix, mix, mixup
from robustmim.data.sources import ResidentSource
from robustmim.errors import InputError
from robustmim.rng import keys

CPU = torch.device("cpu")
STRONG = AugmentConfig(rand_augment=2, erasing=0.5, mixup=0.8, cutmix=1.0)


def pictures(n: int = 8, size: int = 32) -> torch.Tensor:
    """Smooth random images, as bytes."""
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def source(n: int = 32) -> ResidentSource:
    return ResidentSource(
        name="noise", classes=("a", "b", "c"), images=pictures(n), labels=torch.arange(n) % 3, ids=torch.arange(n)
    )


def loader(config: AugmentConfig, batch_size: int = 8, rank: int = 0, world: int = 1, **more) -> Loader:
    data = DataConfig(padding=2, flip="random", augment=config)
    return Loader(source(**more), data, batch_size=batch_size, seed=1, device=CPU, rank=rank, world=world)


def applied(name: str, x: torch.Tensor, strength: float, sign: float = 1.0) -> torch.Tensor:
    n = len(x)
    chosen = torch.full((n,), OPERATIONS.index(name))
    return augment.apply(x, chosen, torch.full((n,), float(strength)), torch.full((n,), float(sign)))


def by_pillow(x: torch.Tensor, function) -> torch.Tensor:
    images = [function(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in x]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255


PILLOW = {
    "identity": (0.7, 1, lambda image: image),
    "auto-contrast": (0.7, 1, ImageOps.autocontrast),
    "equalize": (0.7, 1, ImageOps.equalize),
    "solarize": (0.5, 1, lambda image: ImageOps.solarize(image, 128)),
    "posterize": (0.75, 1, lambda image: ImageOps.posterize(image, 5)),
    "brightness": (0.5, 1, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
    "contrast": (0.5, -1, lambda image: ImageEnhance.Contrast(image).enhance(0.55)),
    "color": (1.0, -1, lambda image: ImageEnhance.Color(image).enhance(0.1)),
    "sharpness": (1.0, 1, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colour_operations_are_pillows(name):
    strength, sign, function = PILLOW[name]
    found = applied(name, pictures().float() / 255, strength, sign)
    assert (found - by_pillow(pictures(), function)).abs().max() <= 2 / 255  # Pillow rounds, and rounds on the way


def test_moving_operations_move_by_what_they_say():
    x = pictures().float() / 255
    moved = applied("translate-x", x, 1 / (0.45 * 32) * 5)
    torch.testing.assert_close(moved[..., :-5], x[..., 5:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., -4:], torch.full_like(x[..., -4:], 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        applied("translate-y", x, 1 / (0.45 * 32) * 5, -1)[..., 5:, :], x[..., :-5, :], atol=1e-5, rtol=0
    )
    turned = applied("rotate", x, 1.0)
    known = by_pillow(pictures(), lambda image: image.rotate(-30, Image.Resampling.BILINEAR))
    inner = (slice(None), slice(None), slice(9, 23), slice(9, 23))
    assert (turned[inner] - known[inner]).abs().max() < 0.02
    sheared = applied("shear-x", x, 1.0)
    leaning = (1, 0.3, -0.3 * 16, 0, 1, 0)
    known = by_pillow(
        pictures(), lambda image: image.transform((32, 32), Image.Transform.AFFINE, leaning, Image.Resampling.BILINEAR)
    )
    assert (sheared - known)[..., 8:24].abs().max() < 0.02
    torch.testing.assert_close(applied("shear-y", x, 0.5), applied("shear-x", x.mT, 0.5).mT, atol=1e-5, rtol=0)


def test_operations_are_drawn_evenly_and_stay_in_the_range():
    drawn = keys(0, "augment", torch.arange(2800)).fold("rand-augment", 0)
    counts = (drawn.fold("operation").uniform(1)[:, 0] * 14).long().bincount(minlength=14)
    assert counts.min() > 140
    assert counts.max() < 260
    x = rand_augment(pictures().float() / 255, keys(0, "x", torch.arange(8)), operations=3, magnitude=9, deviation=0.5)
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda x, k: rand_augment(x, k, operations=2, magnitude=9, deviation=0.5),
        lambda x, k: erase(x, k, 0.7),
        lambda x, k: mix(x, x.flip(1), k, STRONG, 0.8)[0],
    ],
)
def test_a_sample_is_augmented_alike_alone_and_in_a_batch(change):
    x, drawn = pictures(16).float() / 255, keys(0, "augment", torch.arange(16))
    whole = change(x, drawn)
    assert not torch.equal(whole, x)
    for place in range(0, 16, 5):
        torch.testing.assert_close(
            change(x[place : place + 1], drawn[place : place + 1])[0], whole[place], atol=1e-6, rtol=0
        )


def test_erasing_fills_boxes_of_the_areas_it_should():
    x = torch.full((2000, 3, 32, 32), 2.0)
    found = erase(x, keys(0, "augment", torch.arange(2000)), 0.25)
    erased = (found != 2).all(1)
    some = erased.flatten(1).any(1)
    assert some.float().mean() == pytest.approx(0.25, abs=0.03)
    share = erased[some].float().mean((1, 2))
    assert share.max() <= 0.36  # whole pixels
    assert 0.08 < share.mean() < 0.18  # less than the mean of 2 % and 33 %: boxes are cut off at the border
    rows, columns = erased[some].any(2).sum(1), erased[some].any(1).sum(1)
    assert torch.equal(erased[some].sum((1, 2)), rows * columns)  # one box each
    noise = found[erased[:, None].expand_as(found)]
    assert noise.mean() == pytest.approx(0.5, abs=0.01)
    assert noise.std() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_weights_are_of_the_beta_distribution(alpha):
    weights = beta(keys(0, "augment", torch.arange(4000)).uniform(1)[:, 0], alpha)
    assert kstest(weights.numpy(), beta_distribution(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_is_the_weighted_mean_and_cutmix_keeps_the_share_it_says():
    x, partner = torch.zeros(500, 3, 32, 24), torch.ones(500, 3, 32, 24)
    drawn = keys(0, "augment", torch.arange(500))
    weight, middle = drawn.fold("weight").uniform(1)[:, 0], drawn.fold("middle").uniform(2)
    torch.testing.assert_close(mixup(x, partner, weight).mean((1, 2, 3)), 1 - weight)
    found, kept = cutmix(x, partner, weight, middle)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(1 - found.mean((1, 2, 3)), kept)  # the area is exact
    inside = ((middle - 0.5).abs().amax(1) + (1 - weight).sqrt() / 2) < 0.45
    assert inside.sum() > 20
    torch.testing.assert_close(
        kept[inside], weight[inside], atol=0.06, rtol=0
    )  # but for whole pixels, where nothing is cut off


def test_a_mixed_batch_conserves_the_mass_of_its_labels_and_mixes_with_the_other_end():
    own = loader(STRONG)
    batch = own.batch(0)
    torch.testing.assert_close(batch.mixed.sum(1), torch.ones(8))
    assert (batch.mixed >= 0).all()
    allowed = F.one_hot(batch.labels, 3) + F.one_hot(batch.labels.flip(0), 3)
    assert (batch.mixed[allowed == 0] == 0).all()
    assert torch.equal(batch.goal, batch.mixed)
    assert torch.equal(batch.likeliest, batch.mixed.argmax(1))
    plain = loader(AugmentConfig()).batch(0)
    assert plain.mixed is None
    assert torch.equal(plain.goal, plain.labels)
    parts = batch.parts(2)
    assert torch.equal(torch.cat([part.mixed for part in parts]), batch.mixed)
    assert torch.equal(parts[1].images, batch.images[4:])


def test_mixing_does_not_depend_on_the_number_of_processes():
    whole = loader(STRONG).batch(5)
    shares = [loader(STRONG, rank=rank, world=4).batch(5) for rank in range(4)]
    torch.testing.assert_close(torch.cat([share.images for share in shares]), whole.images, atol=1e-6, rtol=0)
    assert torch.equal(torch.cat([share.mixed for share in shares]), whole.mixed)


def test_strength_warms_up():
    config = AugmentConfig(mixup=1.0, warmup_epochs=4)
    left = [(loader(config, batch_size=256, n=512).batch(step).mixed.amax(1) == 1).float().mean() for step in (0, 8)]
    # A third of the pairs are of one class, which mixing does not change.
    assert left[0] == pytest.approx(1 / 3 + 2 / 3 * 0.5, abs=0.1)
    assert left[1] == pytest.approx(1 / 3, abs=0.1)
    weak, strong = (AugmentConfig(rand_augment=2, magnitude=9, warmup_epochs=w) for w in (100, 0))
    plain = loader(AugmentConfig()).batch(0).images
    moved = [(loader(config).batch(0).images - plain).abs().mean() for config in (weak, strong)]
    assert moved[0] < 0.7 * moved[1]


def test_generated_images_take_their_share_of_each_batch(tmp_path):
    images = pictures(40).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "edm.npz", image=images, label=np.arange(40) % 3)
    other = load_generated(str(tmp_path / "edm.npz"), ("a", "b", "c"), 32)
    assert torch.equal(other.fetch(torch.tensor([3]))[0], pictures(40)[3])
    data = DataConfig(augment=AugmentConfig(warmup_epochs=2))
    loaders = [Loader(kind, data, batch_size=size, seed=1, device=CPU) for kind, size in ((source(), 2), (other, 6))]
    both = Extended(loaders)
    assert both.steps_per_epoch == 4
    assert [part.warmup_steps for part in loaders] == [8, 8]
    seen = torch.cat([both.batch(step).ids for step in range(16)])
    assert (seen.view(16, 8)[:, :2] >= 0).all()
    assert (seen.view(16, 8)[:, 2:] < 0).all()
    assert seen[seen >= 0].sort().values.tolist() == list(range(32))  # every real image once in four epochs
    assert len(both.batch(0).labels) == 8


def test_generated_images_are_mapped_unless_they_are_compressed(tmp_path):
    images = pictures(6).permute(0, 2, 3, 1).numpy()
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / f"{save.__name__}.npz"
        save(path, label=np.arange(6) % 2, image=images)
        with np.load(path) as content:
            assert isinstance(_array(path, content, "image"), np.memmap) == (save is np.savez)
        found = load_generated(str(path), ("a", "b"), 32)
        assert torch.equal(found.fetch(torch.arange(6)), pictures(6))
        assert found.labels.tolist() == [0, 1] * 3
    stored = tmp_path / "savez.npz"
    stored.write_bytes(stored.read_bytes()[:9000])
    with pytest.raises(InputError, match="damaged"):
        load_generated(str(stored), ("a", "b"), 32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": np.zeros((3, 8, 8, 3), np.uint8)}, "no array 'label'"),
        ({"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.zeros(3, np.int64)}, "8 × 8 × 3"),
        ({"image": np.zeros((3, 32, 32, 3), np.float32), "label": np.zeros(3, np.int64)}, "float32"),
        ({"image": np.zeros((3, 32, 32, 3), np.uint8), "label": np.full(3, 7)}, "classes"),
        ({"image": np.zeros((3, 32, 32, 3), np.uint8), "label": np.zeros(2, np.int64)}, "one of each"),
        ({"image": np.array([{}], dtype=object), "label": np.zeros(1)}, "plain arrays"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=says):
        load_generated(str(tmp_path / "x.npz"), ("a", "b"), 32)
    (tmp_path / "y.npz").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match="damaged"):
        load_generated(str(tmp_path / "y.npz"), ("a", "b"), 32)
    with pytest.raises(InputError, match="not there"):
        load_generated(str(tmp_path / "z.npz"), ("a", "b"), 32)
