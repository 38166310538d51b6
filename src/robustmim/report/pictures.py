"""Pictures inside the page: arrays to data URIs, differences around mid grey, attention as heat over the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from robustmim.report.reading import Examples
from robustmim.report.sections import ImageGrid, Picture, PictureRow, Section

SMALL = 64  # images up to this size are kept exactly and shown with square pixels
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float32)


def is_small(images: np.ndarray) -> bool:
    """Return whether images `[N, 3, H, W]` are to be shown pixel by pixel."""
    return max(images.shape[-2:]) <= SMALL


def data_uri(image: np.ndarray) -> str:
    """Return an image `[3, H, W]` in [0, 1] as a data URI: PNG when small, JPEG (quality 92) for photographs."""
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    if max(image.shape[-2:]) <= SMALL:
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def difference(image: np.ndarray, reference: np.ndarray, *, times: float = 10.0) -> np.ndarray:
    """Return `image − reference`, enlarged, around mid grey; both `[3, H, W]` in [0, 1]."""
    return np.clip(0.5 + times * (image - reference), 0, 1)


def overlay(image: np.ndarray, attention: np.ndarray, *, size: int = 192) -> np.ndarray:
    """Lay attention `[h, w]` as heat (dark to light) over a grey image `[3, H, W]`; `[3, size, size]` in [0, 1].

    Each map is stretched to its own range: it shows where attention is, not how much of it there is.
    """
    spread = float(attention.max() - attention.min()) or 1.0
    share = ((attention - attention.min()) / spread).astype(np.float32)
    heat_map = np.asarray(Image.fromarray(share).resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)
    grey = np.asarray(Image.fromarray(image.mean(0).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    stops = np.linspace(0, 1, len(HEAT))
    colour = np.stack([np.interp(heat_map, stops, HEAT[:, channel]) for channel in range(3)]) / 255
    return 0.45 * grey.clip(0, 1)[None] + 0.55 * colour


def picture_sections(examples: Examples, *, attack: str = "Gray-box attack") -> list[Section]:
    """Return the grid of pictures of an evaluation, and that of attention where it was recorded.

    Args:
        examples: the pictures.
        attack: what made the attacked ones, for the lead.
    """
    arrays = examples.arrays
    small = is_small(arrays["clean"])
    columns = {
        "clean": "Clean",
        "attacked": "Attacked",
        "purified": "Purified",
        "purified_clean": "Clean, purified",
    }
    columns = {name: caption for name, caption in columns.items() if name in arrays}
    rows, overlays = [], []
    for place in range(len(arrays["clean"])):
        label = examples.answer("label", place)
        shown, seen = [], []
        for name, caption in columns.items():
            answer = examples.answer(f"predicted_{name}", place)
            right = int(arrays[f"predicted_{name}"][place]) == int(arrays["label"][place])
            spoken = "attacked and purified" if name == "purified" else caption.lower()
            text = f"{label}, {spoken}: classified as {answer}, {'right' if right else 'wrong'}"
            shown.append(Picture(data_uri(arrays[name][place]), caption, text, answer, right))
            if f"attention_{name}" in arrays:
                heat = data_uri(overlay(arrays[name][place], arrays[f"attention_{name}"][place]))
                seen.append(Picture(heat, caption, f"attention over {label}, {spoken}"))
        for name in ("attacked", "purified"):
            if name in arrays:
                caption = f"{name.capitalize()} − clean ×10"
                change = difference(arrays[name][place], arrays["clean"][place])
                shown.append(Picture(data_uri(change), caption, f"{label}, {caption}, around mid grey"))
        rows.append(PictureRow(label, tuple(shown)))
        overlays.append(PictureRow(label, tuple(seen)))
    kept = "" if small else " Photographs are stored here as JPEG; every number comes from the originals."
    sections: list[Section] = [
        ImageGrid(
            title="What the classifier sees",
            lead=f"{attack} at ε {examples.radius}. The first images of the data set, not chosen.",
            rows=tuple(rows),
            caption=f"Differences are enlarged ten times; mid grey is no change.{kept} Select a picture to enlarge it.",
            pixelated=small,
        )
    ]
    if any(row.pictures for row in overlays):
        sections.append(
            ImageGrid(
                title="Where the model attends",
                lead="Attention of the masked model, light where it is strongest. Each map is stretched to its own range.",
                rows=tuple(overlays),
            )
        )
    return sections
