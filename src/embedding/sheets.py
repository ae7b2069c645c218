"""Contact sheets: rows of thumbnails with words, and a map with thumbnails at their places."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from ..checkpoints.files import write_atomically

THUMBNAIL = 64
_GAP, _LINE = 4, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Row:
    """A line of words above thumbnails.

    Attributes:
        title: the line; "" leaves no room for one.
        images: (s, s, 3) uint8 each, of any size.
        captions: a few letters below each; none leaves no room for them.
    """

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str] = ()


def thumbnail(crop: np.ndarray) -> np.ndarray:
    """(s, s, 3) uint8 -> (THUMBNAIL, THUMBNAIL, 3): smaller ones show their pixels, larger ones are averaged."""
    method = Image.Resampling.NEAREST if len(crop) <= THUMBNAIL else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(crop).resize((THUMBNAIL, THUMBNAIL), method))


def sheet(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG of rows, one below another."""
    font = ImageFont.load_default(size=12)
    small = ImageFont.load_default(size=10)
    heights = [bool(row.title) * _LINE + THUMBNAIL + bool(row.captions) * _LINE + 2 * _GAP for row in rows]
    columns = max(len(row.images) for row in rows)
    canvas = Image.new("RGB", (max(480, columns * (THUMBNAIL + _GAP) + _GAP), sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        below = top
        if row.title:
            draw.text((_GAP, below), row.title, _INK, font)
            below += _LINE
        for column, image in enumerate(row.images):
            left = _GAP + column * (THUMBNAIL + _GAP)
            canvas.paste(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST), (left, below))
            if row.captions:
                draw.text((left, below + THUMBNAIL + 1), row.captions[column], _INK, small)
        top += height
    save(canvas, path)


def save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda file: image.save(file, "PNG", optimize=True))


def scatter(places: np.ndarray, thumbnails: np.ndarray, groups: np.ndarray, path: Path, side: int = 1200) -> None:
    """Writes a PNG of a map: a thumbnail where there is room for one, and a dot for every other image.

    Args:
        places: (P, 2) in the unit square, the second upwards.
        thumbnails: (P, s, s, 3) uint8.
        groups: (P,), which colour each has.
        side: of the picture in pixels.
    """
    size = side // 40
    places = places * (side - 2 * size) + size
    places[:, 1] = side - places[:, 1]
    canvas = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(canvas)
    colours = [tuple(round(255 * c) for c in colour[:3]) for colour in colormaps["tab20"](np.arange(20))]
    taken = set()
    shown = []
    for number, (x, y) in enumerate(places):
        colour = colours[int(groups[number]) % 20]
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        cell = (int(x) // size, int(y) // size)
        if cell not in taken:
            taken.add(cell)
            shown.append((cell, number, colour))
    for (column, row), number, colour in shown:
        corner = (column * size, row * size)
        draw.rectangle((*corner, corner[0] + size - 1, corner[1] + size - 1), fill=colour)
        picture = Image.fromarray(thumbnails[number]).resize((size - 4, size - 4), Image.Resampling.LANCZOS)
        canvas.paste(picture, (corner[0] + 2, corner[1] + 2))
    save(canvas, path)
