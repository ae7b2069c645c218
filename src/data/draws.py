"""What is random about one view of one image, and the generator it is drawn from.

A draw is a value. It is made from a generator keyed by (seed, epoch, index, view) before anything is applied, so the
same epoch gives the same pixels whatever the number of workers, ranks or restarts.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

BOX_PASSES = 3  # of which Pillow makes a Gaussian, along each axis

# Operations as numbered in `Draw.order`
BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE = range(5)


class Draw(NamedTuple):
    """Everything that is random about one view of one image.

    ``order`` lists the jitter operations as they are applied, and is empty when the view is not jittered; it begins with
    GRAYSCALE where that goes before the jitter, otherwise ``grayscale`` says whether it follows. Factors are
    multiplicative around 1, ``hue`` is a shift in turns, and ``blur_sigma`` is in pixels of the output, 0 for no
    blur. The box is in pixels of the original image. ``seed`` is for views that leave the rest to another library;
    ``before`` holds colours that are changed before the image is cropped, by views that do so.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool
    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: bool
    blur_sigma: float
    solarize: bool
    seed: int = 0
    before: "Draw | None" = None


def without_colours(draw: Draw) -> Draw:
    """The same without saturation, hue and grayscale, which only RGB has."""
    return draw._replace(
        order=tuple(operation for operation in draw.order if operation in (BRIGHTNESS, CONTRAST)),
        grayscale=False,
        before=None if draw.before is None else without_colours(draw.before),
    )


def no_change(width: int, height: int) -> Draw:
    """The whole image as it is."""
    return Draw(0, 0, height, width, False, (), 1.0, 1.0, 1.0, 0.0, False, 0.0, False)


def keyed_generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The generator of one view of one image in one epoch; a counter-based one, so distinct keys never collide.

    Each part must fit into 32 bits.
    """
    key = np.array([(seed & 0xFFFFFFFF) << 32 | epoch, index << 32 | view], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def hue_steps(hue: float) -> int:
    """A shift in turns as torchvision applies it to Pillow images: whole 1/255, cut towards zero, 0 to 255."""
    return int(hue * 255) % 256


@functools.lru_cache(maxsize=4096)
def box_weights(sigma: float) -> tuple[float, ...]:
    """Weights at distance 0, 1, ... of the box filter that, applied three times, has variance ``sigma**2``.

    A box of fractional radius: full weight up to l, a part at l + 1 (Gwosdek et al. 2011, "Theoretical foundations
    of Gaussian convolution by extended box filtering"), in Pillow's fixed-point units of 2**-24.
    """
    variance = sigma * sigma / BOX_PASSES
    whole = math.floor((math.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3.0 * variance) / (6.0 * (variance - (whole + 1) ** 2))
    unit = 1 << 24
    inner = int(unit / (2.0 * (whole + part) + 1.0))
    outer = (unit - (2 * whole + 1) * inner) // 2
    return tuple(w / unit for w in [inner] * (whole + 1) + [outer])
