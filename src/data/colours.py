"""Changes the colours of one image, in a worker: what Pillow's operations compute, several times as fast.

All operations but the blur give Pillow's levels exactly, and round to whole levels where it does; for the blur see
:mod:`src.data.augment`. They work on planes and mostly on whole numbers of 8 and 16 bits, for which numpy has vector
instructions; masks and ``where`` have none, so choices are made by bits.
"""

import functools

import numpy as np
from PIL import Image

from .draws import BOX_PASSES, BRIGHTNESS, CONTRAST, GRAYSCALE, SATURATION, Draw, box_weights, hue_steps

SOLARIZE_FROM = 128
# Pillow's weights of red, green and blue in gray, in 1/65536 (ITU-R 601); sums of products are exact in float32
GRAY = (19595.0, 38470.0, 7471.0)
_WEIGHTS = np.array(GRAY, dtype=np.float32) / 65536
_LEVELS = np.arange(256, dtype=np.float32)


def change_colours(planes: np.ndarray, draw: Draw) -> np.ndarray:
    """The drawn operations on an RGB image, (3, h, w) uint8."""
    table = None  # operations level by level are put off, and done at once
    for operation in draw.order:
        if operation == BRIGHTNESS:
            table = _then(table, _blended(0.0, draw.brightness))
            continue
        if operation == CONTRAST:
            planes, table = _looked_up(planes, table), None
            table = _blended(_mean(_gray(planes)), draw.contrast)
            continue
        planes, table = _looked_up(planes, table), None
        if operation == SATURATION:
            planes = _saturated(planes, draw.saturation)
        elif operation == GRAYSCALE:
            planes = _grayscale(planes)
        else:
            planes = _with_shifted_hues(planes, hue_steps(draw.hue))
    if draw.grayscale:
        planes, table = _grayscale(_looked_up(planes, table)), None
    if draw.blur_sigma:
        planes, table = blurred(_looked_up(planes, table), draw.blur_sigma), None
    if draw.solarize:
        table = _then(table, np.where(_LEVELS < SOLARIZE_FROM, _LEVELS, 255 - _LEVELS).astype(np.uint8))
    return _looked_up(planes, table)


# ---------------------------------------------------------------------------------------------------- level by level


def _then(table: np.ndarray | None, other: np.ndarray) -> np.ndarray:
    return other if table is None else other[table]


def _blended(anchor: float, factor: float) -> np.ndarray:
    """What becomes of each level, (256,) uint8."""
    return np.clip(np.float32(anchor) + np.float32(factor) * (_LEVELS - np.float32(anchor)), 0, 255).astype(np.uint8)


def _looked_up(planes: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    if table is None:
        return planes
    # twice as fast as numpy's indexing
    return np.frombuffer(bytearray(planes).translate(table.tobytes()), dtype=np.uint8).reshape(planes.shape)


# ---------------------------------------------------------------------------------------------------- gray


def _gray(planes: np.ndarray) -> np.ndarray:
    """(3, h, w) uint8 -> (h, w) uint8."""
    sums = _WEIGHTS @ planes.reshape(3, -1).astype(np.float32)
    return (sums + np.float32(0.5)).astype(np.uint8).reshape(planes.shape[1:])


def _mean(gray: np.ndarray) -> int:
    return int(gray.sum(dtype=np.uint64) / gray.size + 0.5)


def _grayscale(planes: np.ndarray) -> np.ndarray:
    return np.broadcast_to(_gray(planes), planes.shape).copy()


def _saturated(planes: np.ndarray, factor: float) -> np.ndarray:
    gray = _gray(planes).astype(np.float32)
    changed = np.empty_like(planes)
    for plane, out in zip(planes, changed, strict=True):
        exact = plane.astype(np.float32)
        exact -= gray
        exact *= np.float32(factor)
        exact += gray
        out[...] = exact if factor <= 1.0 else _clamped(exact.astype(np.int16), 0, 255)
    return changed


def _clamped(numbers: np.ndarray, low: int, high: int) -> np.ndarray:
    """Numbers (h, w) int16, changed in place. Between two arrays numpy's minimum is ten times as fast as with a number."""
    height, width = numbers.shape
    np.maximum(numbers, _filled(low, (height, width)), out=numbers)
    return np.minimum(numbers, _filled(high, (height, width)), out=numbers)


_FILLED: dict[int, np.ndarray] = {}


def _filled(value: int, shape: tuple[int, int]) -> np.ndarray:
    """An array of one value, cut from one that is kept."""
    size = shape[0] * shape[1]
    if value not in _FILLED or len(_FILLED[value]) < size:
        _FILLED[value] = np.full(size, value, dtype=np.int16)
    return _FILLED[value][:size].reshape(shape)


# ---------------------------------------------------------------------------------------------------- hue


def _with_shifted_hues(planes: np.ndarray, steps: int) -> np.ndarray:
    """To 8-bit hue, saturation and value, round the circle, and back."""
    red, green, blue = planes
    top = np.maximum(np.maximum(red, green), blue)
    chroma = top - np.minimum(np.minimum(red, green), blue)
    hue = hue_table().take(_place_in_table(planes, top, chroma))
    hue += np.uint8(steps)  # wraps round at 256
    value = top.astype(np.float32)
    saturation = chroma.astype(np.float32)
    saturation *= np.float32(255)
    saturation /= (top | (top == 0).view(np.uint8)).astype(np.float32)
    np.floor(saturation, out=saturation)
    saturation *= value
    saturation *= np.float32(1 / 65025)
    value += np.float32(0.5)
    angle = hue * np.int16(6)  # in 1/1530 turns
    changed = np.empty_like(planes)
    for channel, opposite in enumerate((765, 510, 1020)):
        # a channel falls from full value as its distance on the circle grows, from a sixth of a turn to two
        distance = angle - np.int16(opposite)
        np.abs(distance, out=distance)
        exact = _clamped(distance, 255, 510).astype(np.float32)
        exact -= np.float32(510 if channel == 0 else 255)
        exact *= saturation
        changed[channel] = np.add(value, exact, out=exact) if channel == 0 else np.subtract(value, exact, out=exact)
    return changed


# Room for six sectors of up to 255, and for what lies before the first one: it is at the end of the row before
TABLE_WIDTH = 7 * 255


def _place_in_table(planes: np.ndarray, top: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Chroma times TABLE_WIDTH, plus the hue in units of chroma/6 turns, -1 to 5 sixths: the sector of the largest
    channel and the lead of one of the others. (h, w) int32."""
    red, green, blue = planes
    # all bits are set where a channel is the largest; the first one of equal ones
    is_red = np.negative((red == top).view(np.int8)).view(np.uint8)
    is_green = np.negative((green == top).view(np.int8)).view(np.uint8)
    is_green &= ~is_red
    red_or_green = red ^ green
    ahead, behind = red_or_green & is_red, red_or_green & is_green
    ahead ^= (red ^ blue) & is_green
    ahead ^= red  # the next channel on the circle after the largest
    behind ^= (green ^ blue) & is_red
    behind ^= green
    sector = np.uint8(4) - (is_red & np.uint8(4))
    sector -= is_green & np.uint8(2)
    place = sector.astype(np.int16)
    place *= chroma
    place += ahead
    place -= behind
    start = chroma.astype(np.int32)
    start *= TABLE_WIDTH
    start += place
    return start


@functools.cache
def hue_table() -> np.ndarray:
    """Pillow's 8-bit hue for every chroma and place on the circle, see :func:`_place_in_table`.

    Asked of Pillow itself, whose rounding in a few exact cases no shorter formula repeats.
    """
    table = np.zeros(256 * TABLE_WIDTH, dtype=np.uint8)
    for chroma in range(1, 256):
        rising = np.arange(chroma, dtype=np.uint8)
        none, full, falling = np.zeros_like(rising), np.full_like(rising, chroma), chroma - rising
        sectors = (
            (full, rising, none),
            (falling, full, none),
            (none, full, rising),
            (none, falling, full),
            (rising, none, full),
            (full, none, falling),
        )
        colours = np.concatenate([np.stack(sector, axis=1) for sector in sectors])
        hues = np.asarray(Image.fromarray(colours[None]).convert("HSV"))[0, :, 0]
        start = chroma * TABLE_WIDTH
        table[start : start + 6 * chroma] = hues
        table[start - chroma : start] = hues[-chroma:]
    return table


# ---------------------------------------------------------------------------------------------------- blur


_AT_ONCE = 1 << 15  # numbers that are worked on together: what fits into a core's cache, and repays a call


def blurred(planes: np.ndarray, sigma: float) -> np.ndarray:
    """Three box filters along the rows, three along the columns; the border is repeated outwards before each."""
    weights = [np.float32(weight) for weight in box_weights(sigma)]
    reach = len(weights) - 1
    height, width = planes.shape[1:]
    row, size = width + 2 * reach, (height + 2 * reach) * (width + 2 * reach)
    count = len(planes) if len(planes) * size <= _AT_ONCE else 1
    flat, total, part = np.zeros((3, count * size), dtype=np.float32)
    padded = flat.reshape(count, height + 2 * reach, row)
    inner = padded[:, reach : reach + height, reach : reach + width]
    changed = np.empty_like(planes)
    for first in range(0, len(planes), count):
        inner[...] = planes[first : first + count]
        for step, lines in ((1, padded.transpose(2, 0, 1)), (row, padded.transpose(1, 0, 2))):
            # all is one long line, in which the next one to the right or below is a step away; what this makes of the
            # margins is overwritten
            margin = reach * step
            middle, sums, term = flat[margin:-margin], total[: -2 * margin], part[: -2 * margin]
            for _ in range(BOX_PASSES):
                lines[:reach] = lines[reach]
                lines[-reach:] = lines[-reach - 1]
                np.multiply(middle, weights[0], out=sums)
                for distance in range(1, reach + 1):
                    near, far = margin - distance * step, margin + distance * step
                    np.add(flat[near : near + len(sums)], flat[far : far + len(sums)], out=term)
                    np.multiply(term, weights[distance], out=term)
                    np.add(sums, term, out=sums)
                np.rint(sums, out=middle)
        changed[first : first + count] = inner
    return changed
