"""Pictures inside the page: arrays to data URIs, differences around mid grey, attention as heat over the image."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

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
