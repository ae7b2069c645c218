"""How an opened image becomes levels from 0 to 255: its orientation, its value range, its channels."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from ..errors import UserError

def _jpeg_decoder() -> Any:
    """Torchvision's, which may go from there: it points to torchcodec. None without either."""
    for module in ("torchvision.io", "torchcodec.decoders"):
        with contextlib.suppress(ImportError):
            if found := getattr(importlib.import_module(module), "decode_jpeg", None):
                return found
    return None


_decode_jpeg = _jpeg_decoder()

# Black and white of images with more than 8 bits, by Pillow's mode or numpy's type, unless --value_range says otherwise
RANGES = {
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N", "uint16"), (0.0, 65535.0)),
    "I": (0.0, 65535.0),  # 32 bits, which is what Pillow makes of some 16-bit files
    **dict.fromkeys(("F", "float16", "float32", "float64"), (0.0, 1.0)),
}
_BYTES = ("uint8", "bool")
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Stack:
    """An opened ``.npy`` file: (h, w), or (h, w, n) or (n, h, w) with n channels. Stands where a Pillow image does."""

    mode = "npy"

    def __init__(self, array: np.ndarray) -> None:
        if array.ndim not in (2, 3) or not array.size:
            raise ValueError(f"an array of shape {array.shape}, expected (h, w), (h, w, n) or (n, h, w)")
        if array.ndim == 3 and array.shape[0] < min(array.shape[1:]):
            array = np.moveaxis(array, 0, 2)
        self.array = array if array.ndim == 3 else array[:, :, None]
        self.size = (self.array.shape[1], self.array.shape[0])

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tobytes(self) -> bytes:
        return self.array.tobytes()


Opened = Image.Image | Stack


def open_encoded(content: bytes) -> Opened:
    """An image file's content: whatever Pillow reads, or an array of numpy's."""
    if content.startswith(b"\x93NUMPY"):
        return Stack(np.load(io.BytesIO(content), allow_pickle=False))
    return Image.open(io.BytesIO(content))


def open_file(path: str) -> Opened:
    """An image file; Pillow's are not decoded yet."""
    return Stack(np.load(path, allow_pickle=False)) if path.lower().endswith(".npy") else Image.open(path)


@dataclass(frozen=True)
class Decoding:
    """How opened images become levels.

    Attributes:
        exif_orientation: turn images as their EXIF entry says.
        value_range: black and white of images with more than 8 bits; None takes RANGES.
        channels: 3 is RGB and 1 is grey, whatever the file has; n is what files of n bands, pages or planes have.
    """

    exif_orientation: bool = True
    value_range: tuple[float, float] | None = None
    channels: int = 3

    @property
    def is_picture(self) -> bool:
        """Whether Pillow can hold what comes out."""
        return self.channels in (1, 3)

    def orientation(self, image: Opened) -> int:
        """EXIF's number, 1 to 8; 1 where it is not to be applied, or Pillow has done so (TIFF)."""
        if not self.exif_orientation or isinstance(image, Stack) or image.format in ("TIFF", None):
            return 1
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in _TURNS else 1

    def picture(self, image: Opened, orientation: int = 1) -> Image.Image:
        """RGB, or ``L`` for one channel, turned. Raises ValueError or UserError for values without a meaning."""
        if isinstance(image, Stack) or image.mode in RANGES:
            levels = self._to_levels(_array(image), _kind(image))
            if levels.shape[2] not in (1, 3):
                raise UserError(_channels(levels.shape[2], self.channels))
            image = Image.fromarray(levels if levels.shape[2] == 3 else levels[:, :, 0])
        image = image.convert("RGB" if self.channels == 3 else "L")
        return image if orientation == 1 else image.transpose(_TURNS[orientation])

    def planes(self, image: Opened, orientation: int = 1) -> np.ndarray:
        """(h, w, n) uint8 for n channels that are no picture."""
        if isinstance(image, Stack):
            found = self._to_levels(image.array, _kind(image))
        elif getattr(image, "n_frames", 1) > 1:
            frames = []
            for number in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(number)
                frames.append(self._to_levels(_array(image), _kind(image)))
            found = np.concatenate(frames, axis=2)
        else:
            found = self._to_levels(_array(image), _kind(image))
        if found.shape[2] != self.channels:
            raise UserError(_channels(found.shape[2], self.channels))
        if orientation == 1:
            return found
        return turned_pixels(torch.from_numpy(found).permute(2, 0, 1), orientation).permute(1, 2, 0).numpy()

    def _to_levels(self, values: np.ndarray, kind: str) -> np.ndarray:
        """(h, w, n) uint8: value_range to 0..255, rounded; what lies outside is cut off only if the user gave it."""
        if kind in _BYTES:
            return values.astype(np.uint8) * (255 if kind == "bool" else 1)
        known = self.value_range or RANGES.get(kind)
        if known is None:
            raise UserError(f"values of the type {kind}: say with --value_range which are black and white")
        exact = values.astype(np.float64)
        if not np.isfinite(exact).all():
            raise ValueError("has values that are no numbers")
        low, high = known
        least, most = float(exact.min()), float(exact.max())
        if self.value_range is None and (least < low or most > high):
            raise UserError(
                f"values from {least:g} to {most:g}, where {low:g} to {high:g} is the rule for {kind}: say with "
                "--value_range which are black and white"
            )
        return np.clip(np.rint((exact - low) / (high - low) * 255.0), 0, 255).astype(np.uint8)


def _kind(image: Opened) -> str:
    if isinstance(image, Stack):
        return str(image.array.dtype)
    return image.mode if image.mode in RANGES else "uint8"


def _array(image: Opened) -> np.ndarray:
    if isinstance(image, Stack):
        return image.array
    if image.mode in ("P", "1"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    found = np.asarray(image)
    return found if found.ndim == 3 else found[:, :, None]


def _channels(found: int, expected: int) -> str:
    return f"an image of {found} channels, where --channels {expected} are expected"


def decode_jpeg(image: Opened) -> Tensor | None:
    """(3, h, w) uint8 of a colour JPEG at full scale, not turned; None for anything else, and where this decoder fails.

    The levels are Pillow's, since both are libjpeg-turbo, in little more than half the time (``benchmarks/decode.py``).
    """
    if _decode_jpeg is None or not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return None
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or image.tell():  # the first picture of the file
        return None
    image.fp.seek(0)
    content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    try:
        pixels: Tensor = _decode_jpeg(content)
    except RuntimeError:  # a damaged file, or a torchvision without libjpeg: Pillow decides
        return None
    return pixels if pixels.shape == (3, image.height, image.width) else None  # it was opened at a reduced scale


def turned_pixels(pixels: Tensor, orientation: int) -> Tensor:
    """(C, h, w), turned as EXIF's number says."""
    if orientation > 4:
        pixels = pixels.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def check_range(value_range: Sequence[Any] | None) -> None:
    """Raises UserError for a range that is none."""
    if value_range is not None and not value_range[0] < value_range[1]:
        raise UserError(f"--value_range {value_range[0]:g} {value_range[1]:g}: expected black below white")
