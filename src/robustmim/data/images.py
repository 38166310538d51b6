"""Image files in, image files out, and the check that every entry point makes on a tensor of images."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from robustmim.errors import InputError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings, in lower case, of the files that a search of a folder takes for images."""

_TOLERANCE = 1e-6


def open_image(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Grey, palette and CMYK images become RGB; transparent ones are laid on white; 16-bit grey is scaled to 8 bits; the
    camera's rotation (EXIF) is applied; of an animation the first frame is taken.

    Raises:
        InputError: the file is missing, is no image, is damaged, or holds too many pixels to be opened safely.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image), path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: this is not an image that can be read; use PNG, JPEG, WebP, TIFF or BMP") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: the image is too large to be opened safely ({error}); scale it down first"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise InputError(f"{path}: the image cannot be read ({reason}); fetch or save it again") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path}: pixels of 32-bit floats have no known range; save the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion would clip these to 255.
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise InputError(f"{path}: pixels of 32 bits have no known range; save the image with 8 or 16 bits")
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "RGBa", "LA", "La", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int, resize: int) -> Image.Image:
    """Resize the shorter side to `resize` (bicubic, antialiased) and cut the middle square of `size` pixels out."""
    width, height = image.size
    if min(width, height) != resize:
        shorter = min(width, height)
        width, height = (int(resize * width / shorter), int(resize * height / shorter))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Turn an RGB image into a tensor of its bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_image(path: Path | str) -> UInt8[Tensor, "3 height width"]:
    """Read an image file as 8-bit RGB; what is converted, and how, is told at `open_image`.

    Raises:
        InputError: the file is missing, is no image, is damaged, or holds too many pixels to be opened safely.
    """
    return to_tensor(open_image(Path(path)))


def fit_image(
    image: UInt8[Tensor, "3 height width"], size: int, resize: int | None = None
) -> UInt8[Tensor, "3 size size"]:
    """Make an image square: resize its shorter side (to `size` unless told) and crop the middle.

    Raises:
        InputError: `resize` is smaller than `size`.
    """
    resize = resize or size
    check_sizes(size, resize)
    return to_tensor(resize_and_crop(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), size, resize))


def check_sizes(size: int, resize: int) -> None:
    """Raise InputError unless a square of `size` can be cut out of an image whose shorter side is `resize`."""
    if not 1 <= size <= resize:
        raise InputError(
            f"a square of size={size} cannot be cut from a shorter side of resize={resize}; size must be between 1 and resize"
        )


def write_image(path: Path | str, image: Tensor) -> None:
    """Write an image as an 8-bit PNG; the file appears whole or not at all.

    Args:
        path: ends in `.png`: a lossy format would change what was computed. Missing folders are made.
        image: float `[3, H, W]` in [0, 1]; each value moves by at most 1/510.

    Raises:
        InputError: another ending, something that is not an image, or a place that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: images are written as PNG, without loss; let the name end in .png")
    check_images(image[None], name="the image to be written")
    pixels = (image.detach().to("cpu", torch.float64).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}-", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            Image.fromarray(pixels.contiguous().numpy()).save(file, format="PNG")
        # A temporary file is private to its owner; the image gets the permissions any new file would.
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def find_images(patterns: list[str]) -> list[Path]:
    """Find image files.

    Args:
        patterns: files, folders (searched with all folders inside them) and globs (`photos/**/*.jpg`). A file that is
            named outright is taken whatever its ending.

    Returns:
        The files in the order of the patterns, each pattern's in order of their paths, each file once.

    Raises:
        InputError: a pattern finds nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = _matches(pattern)
        if not files:
            path = Path(pattern).expanduser()
            if path.is_dir():
                reason = f"the folder holds no images ({', '.join(sorted(SUFFIXES))})"
            elif glob.has_magic(pattern):
                reason = "the pattern matches no images"
            else:
                reason = "there is no such file or folder"
            raise InputError(f"{pattern}: {reason}")
        found.update(dict.fromkeys(files))
    return list(found)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _inside(path)
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    return [
        file for match in matches for file in (_inside(match) if match.is_dir() else [match]) if _is_image(file, match)
    ]


def _inside(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if _is_image(file, folder)]


def _is_image(path: Path, found: Path) -> bool:
    # What lies hidden inside a folder that was named is not meant.
    hidden = any(part.startswith(".") for part in path.relative_to(found).parts)
    # A link to nowhere is listed, so that it is told of when it is opened.
    there = path.is_file() or (path.is_symlink() and not path.exists())
    return not hidden and path.suffix.lower() in SUFFIXES and there


def check_images(x: object, *, name: str = "images", network: object = None) -> None:
    """Check that something is a tensor of images: float `[B, 3, H, W]` in [0, 1].

    Args:
        x: anything.
        name: what the message calls it.
        network: what will see the images: they must not be of double precision where its weights are not.

    Raises:
        InputError: a wrong type, shape or range, or values that are not finite; the message says how to mend it.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: a {type(x).__name__} where a tensor is asked for; torch.as_tensor(x) makes one")
    if x.dtype == torch.uint8:
        raise InputError(f"{name}: bytes (uint8) where floats in [0, 1] are asked for; divide by 255: x.float() / 255")
    if not x.is_floating_point():
        raise InputError(f"{name}: the type is {x.dtype} where floats in [0, 1] are asked for")
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weight is not None and x.dtype == torch.float64 != weight.dtype:
        raise InputError(f"{name}: the type is {x.dtype} where the network computes in {weight.dtype}; take x.float()")
    shape = " × ".join(str(side) for side in x.shape)
    if x.ndim != 4:
        hint = "; add the batch: x[None]" if x.ndim == 3 else ""
        raise InputError(f"{name}: the shape is {shape or 'that of a number'}, not batch × 3 × height × width{hint}")
    if x.shape[1] != 3:
        hint = "; put the colours second: x.permute(0, 3, 1, 2)" if x.shape[3] == 3 else ""
        raise InputError(f"{name}: {x.shape[1]} channels in {shape} where 3 are asked for{hint}")
    if x.numel() == 0:
        raise InputError(f"{name}: there are no pixels in {shape}")
    # One reduction and one transfer; NaN and infinity both reach the extremes.
    low, high = torch.stack(x.detach().aminmax()).tolist()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise InputError(f"{name}: there are values that are not finite (NaN or infinity)")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        bytes_likely = low >= 0 and high > 2
        hint = "divide by 255" if bytes_likely else "undo the normalisation (models normalise inside) or clamp"
        raise InputError(f"{name}: values from {low:.4g} to {high:.4g} where [0, 1] is asked for; {hint}")
