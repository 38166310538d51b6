"""Draw the README's picture from a demo: photographs clean, attacked and purified, with what the classifier says.

make demo && python tools/readme_picture.py [PLACE …]      places of the photographs to show
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
COLUMNS = (
    ("clean", "clean"),
    ("attacked", "attacked, ε = {radius}"),
    ("purified", "attacked, then purified"),
    (None, "what the attack added, × 10"),
)
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#b42318", "#1c1c1c", "#ffffff"
SIDE, GAP, CAPTION, HEAD = 224, 14, 34, 40


def font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def picture_of(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    rows = [int(word) for word in sys.argv[1:]] or [1, 4, 2, 6]
    with safe_open(ROOT / "demo" / "photographs" / "examples.safetensors", framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    classes = json.loads(about["classes"])
    width = len(COLUMNS) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + len(rows) * (SIDE + CAPTION + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (name, title) in enumerate(COLUMNS):
        left = GAP + column * (SIDE + GAP)
        pen.text((left, 12), title.format(radius=about["radius"]), font=font(15), fill=INK)
        for line, row in enumerate(rows):
            top = HEAD + line * (SIDE + CAPTION + GAP)
            if name is None:
                difference = (tensors["attacked"][row] - tensors["clean"][row]) * 10 + 0.5
                sheet.paste(picture_of(difference), (left, top))
                continue
            sheet.paste(picture_of(tensors[name][row]), (left, top))
            said = int(tensors[f"predicted_{name}"][row])
            right = said == int(tensors["label"][row])
            text = f"{'✓' if right else '✗'} {classes[said]}"
            pen.text((left, top + SIDE + 6), text[:27], font=font(15), fill=RIGHT if right else WRONG)
    path = ROOT / "docs" / "images" / "demo.jpg"
    sheet.save(path, quality=88)
    print(path, f"{path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
