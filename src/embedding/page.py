"""One static page: all pictures and words are inside, so that it can be sent, kept and opened anywhere."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoints.files import write_atomically
from .sheets import THUMBNAIL

COLUMNS = 48
_DATA = '<script type="application/json" id="data">'


def write_page(path: Path, content: Mapping[str, Any], thumbnails: np.ndarray) -> None:
    """Fills ``page.html``.

    Args:
        path: of the page.
        content: what its script reads, as JSON can hold it.
        thumbnails: (P, THUMBNAIL, THUMBNAIL, 3) uint8, in the order of ``content["names"]``.
    """
    told = {**content, "columns": COLUMNS, "atlas": data_uri(_atlas(thumbnails), "JPEG")}
    # nothing in it may end the element that holds it
    text = json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    assert _DATA in template
    page = template.replace(_DATA, _DATA + text).encode("utf-8")
    write_atomically(path, lambda file: file.write(page))


def data_uri(image: Image.Image, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 85} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _atlas(thumbnails: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """All thumbnails in one picture, row by row."""
    rows = -(-len(thumbnails) // COLUMNS)
    canvas = Image.new("RGB", (min(COLUMNS, max(1, len(thumbnails))) * THUMBNAIL, rows * THUMBNAIL))
    for number, picture in enumerate(thumbnails):
        place = (number % COLUMNS * THUMBNAIL, number // COLUMNS * THUMBNAIL)
        canvas.paste(Image.fromarray(picture), place)
    return canvas
