"""One picture of many: thumbnails in rows, each with a caption under it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE, GAP, TEXT, TITLE = 96, 8, 12, 15  # pixels: side of a tile, between tiles, of the captions' type, of the title's
PAPER, FRAME, INK, STRONG = "#ffffff", "#f1f3f5", "#495057", "#212529"


def contact_sheet(tiles: Iterable[tuple[Image.Image, str]], columns: int, title: str) -> Image.Image:
    """Images side by side in the order given, `columns` a row, each with its caption, which is short, under the title.

    The images are read once, and only thumbnails are kept.
    """
    small = [(thumbnail(image), caption) for image, caption in tiles]
    columns = max(1, min(columns, len(small)))
    step_x, step_y, head = TILE + GAP, TILE + GAP + TEXT + 4, TITLE + 2 * GAP
    width = max(columns * step_x + GAP, int(face(TITLE, bold=True).getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, head + -(-len(small) // columns) * step_y + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=STRONG, font=face(TITLE, bold=True))
    for place, (image, caption) in enumerate(small):
        x, y = GAP + place % columns * step_x, head + GAP + place // columns * step_y
        draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), fill=FRAME)
        sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
        draw.text((x + TILE / 2, y + TILE + 2), caption, fill=INK, font=face(TEXT), anchor="ma")
    return sheet


def thumbnail(image: Image.Image) -> Image.Image:
    """The image in RGB, its longer side as long as a tile's; small images are enlarged smoothly, since people read shapes and not pixels."""
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale > 1:
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


@lru_cache
def face(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib carries it: the same letters on every machine, whatever fonts it has."""
    from matplotlib import get_data_path

    file = Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
