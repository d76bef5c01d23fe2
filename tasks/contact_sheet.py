"""One picture of many: thumbnails in rows, each with a caption under it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP, TEXT, TITLE = 8, 12, 15  # pixels: between tiles, of the captions' type, of the title's
PAPER, FRAME, INK, STRONG = "#ffffff", "#f1f3f5", "#495057", "#212529"


def contact_sheet(tiles: Iterable[tuple[Image.Image, str]], columns: int, tile: int = 96, *, title: str = "") -> Image.Image:
    """Images side by side in the order given, `columns` a row, with their captions.

    Args:
        tiles: image and caption; a caption may have several lines, each cut at the width of the tile. Read once, only thumbnails are kept.
        columns: images a row.
        tile: side in pixels of the square that each image is fitted into, its proportions kept.
        title: a line above all.
    """
    small = [(thumbnail(image, tile), caption.split("\n") if caption else []) for image, caption in tiles]
    columns = max(1, min(columns, len(small)))
    lines = max((len(caption) for _, caption in small), default=0)
    step_x, step_y = tile + GAP, tile + GAP + lines * (TEXT + 4)
    head = TITLE + 2 * GAP if title else 0
    width = max(columns * step_x + GAP, int(face(TITLE, bold=True).getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, head + -(-len(small) // columns) * step_y + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=STRONG, font=face(TITLE, bold=True))
    for place, (image, caption) in enumerate(small):
        x, y = GAP + place % columns * step_x, head + GAP + place // columns * step_y
        draw.rectangle((x, y, x + tile - 1, y + tile - 1), fill=FRAME)
        sheet.paste(image, (x + (tile - image.width) // 2, y + (tile - image.height) // 2))
        for line, text in enumerate(caption):
            draw.text((x + tile / 2, y + tile + 2 + line * (TEXT + 4)), fitted(text, tile), fill=INK, font=face(TEXT), anchor="ma")
    return sheet


def thumbnail(image: Image.Image, tile: int) -> Image.Image:
    """The image in RGB, its longer side `tile` pixels; small images are enlarged smoothly, since people read shapes and not pixels."""
    scale = tile / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale > 1:
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def fitted(text: str, width: int) -> str:
    """The text, its end replaced by an ellipsis where it is wider than `width` pixels."""
    if face(TEXT).getlength(text) <= width:
        return text
    while text and face(TEXT).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache
def face(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib carries it: the same letters on every machine, whatever fonts it has."""
    from matplotlib import get_data_path

    file = Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
