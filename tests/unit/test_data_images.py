"""Users' image files in, purified ones out, and the check at every entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustmim.data.images import check_images, find_images, fit_image, read_image, write_image
from robustmim.errors import InputError


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def test_colours_and_grey(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert torch.equal(read_image(save(tmp_path / "c.png", pixels)), torch.from_numpy(pixels).permute(2, 0, 1))
    grey = read_image(save(tmp_path / "g.png", pixels[..., 0]))
    assert torch.equal(grey, torch.from_numpy(pixels[..., 0]).expand(3, 2, 4))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0, 0], [200, 100, 0, 255], [0, 0, 0, 128]]], np.uint8)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 1].tolist() == [200, 100, 0]
    assert image[:, 0, 2].tolist() == [127, 127, 127]
    grey = np.array([[[0, 0], [50, 255]]], np.uint8)
    assert read_image(save(tmp_path / "la.png", grey))[0].tolist() == [[255, 50]]


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=1)
    assert read_image(tmp_path / "p.png")[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 32768, 65535, 128, 129]], np.uint16)
    image = read_image(save(tmp_path / "w.png", wide))
    assert image[0].tolist() == [[0, 1, 128, 255, 0, 1]]
    assert read_image(save(tmp_path / "w.tif", wide))[2].tolist() == [[0, 1, 128, 255, 0, 1]]


@pytest.mark.parametrize("pixels", [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_without_a_range(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"x.tif: .*have no known range"):
        read_image(save(tmp_path / "x.tif", pixels))


def test_camera_rotation(tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    image = read_image(save(tmp_path / "r.png", pixels, exif=exif))
    assert image.shape == (3, 4, 2)
    assert image[0, 0, 1] == 255


def test_cmyk(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "c.jpg", np.full((8, 8, 3), 255, np.uint8), mode="CMYK"))
    assert image.shape == (3, 8, 8)
    assert (image > 250).all()


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(InputError, match=r"text.png: this is not an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(InputError, match=r"none.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"t.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"t.{suffix}: the image cannot be read"):
        read_image(path)


def test_huge_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "huge.png", np.zeros((20, 20), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"huge.png: the image is too large to be opened safely"):
        read_image(path)


def test_written_and_read_again(tmp_path: Path) -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "new" / "x.png"
    write_image(path, image)
    assert (read_image(path) / 255 - image).abs().max() <= 0.5 / 255 + 1e-6
    write_image(path, torch.ones(3, 2, 2))
    assert read_image(path).shape == (3, 2, 2)
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]


def test_writing_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.jpg: images are written as PNG"):
        write_image(tmp_path / "x.jpg", torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match="the image to be written: values from 0 to 2"):
        write_image(tmp_path / "x.png", torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_image(tmp_path / "file" / "x.png", torch.zeros(3, 2, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_fit_image() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, :, 10:30] = 9
    assert (fit_image(image, 20) == 9).all()
    assert fit_image(image, 8, resize=10).shape == (3, 8, 8)
    with pytest.raises(InputError, match="size=9 cannot be cut from a shorter side of resize=8"):
        fit_image(image, 9, resize=8)


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/.d.png", ".git/e.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    names = [path.name for path in find_images([str(tmp_path)])]
    assert sorted(names) == ["a.JPG", "b.png", "c.webp"]
    assert find_images([str(tmp_path / "notes.txt")]) == [tmp_path / "notes.txt"]
    assert [path.name for path in find_images([str(tmp_path / "*.png"), str(tmp_path)])].count("b.png") == 1
    assert [path.name for path in find_images([str(tmp_path / "**" / "*.webp")])] == ["c.webp"]
    assert [path.name for path in find_images([str(tmp_path / "s*")])] == ["c.webp"]
    odd = tmp_path / "x[1].png"
    odd.write_bytes(b"")
    assert find_images([str(odd)]) == [odd]


def test_find_nothing(tmp_path: Path) -> None:
    for pattern, reason in {"none.png": "no such file", "*.png": "matches no images", ".": "holds no images"}.items():
        with pytest.raises(InputError, match=reason):
            find_images([str(tmp_path / pattern)])


def test_images_pass_the_check() -> None:
    check_images(torch.rand(2, 3, 4, 5))
    check_images(torch.tensor([-1e-7, 0.5, 1 + 1e-7]).view(1, 3, 1, 1))
    check_images(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), r"photos: bytes .*divide by 255"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), r"photos: the type is torch.int64"),
        (torch.zeros(3, 2, 2), r"photos: the shape is 3 × 2 × 2.*x\[None\]"),
        (torch.zeros(1, 1, 2, 2), "photos: 1 channels"),
        (torch.zeros(1, 2, 2, 3), r"photos: 2 channels.*permute"),
        (torch.zeros(0, 3, 2, 2), "photos: there are no pixels"),
        (torch.full((1, 3, 2, 2), float("nan")), "not finite"),
        (torch.tensor([0.5, 0.5, float("inf")]).view(1, 3, 1, 1), "not finite"),
        (torch.full((1, 3, 2, 2), 200.0), "values from 200 to 200 .*divide by 255"),
        (torch.tensor([-2.1, 0.5, 2.6]).view(1, 3, 1, 1), r"values from -2.1 to 2.6 .*undo the normalisation"),
        (torch.tensor([0.0, 0.5, 1.001]).view(1, 3, 1, 1), r"values from 0 to 1.001"),
    ],
)
def test_what_is_no_image(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_images(x, name="photos")


@pytest.mark.parametrize("x", [np.zeros((1, 3, 2, 2), np.float32), [0.5], None])
def test_what_is_no_tensor(x: object) -> None:
    with pytest.raises(InputError, match=rf"photos: a {type(x).__name__} where a tensor is asked for"):
        check_images(x, name="photos")


def test_double_precision_only_where_the_network_has_it() -> None:
    x, network = torch.rand(1, 3, 4, 4, dtype=torch.float64), torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match=r"the type is torch.float64 .* torch.float32; take x.float\(\)"):
        check_images(x, network=network)
    check_images(x.float(), network=network)
    check_images(x, network=network.double())
