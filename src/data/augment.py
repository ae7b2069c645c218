"""Applies what was drawn for the colours of a view: to one image in a worker, or to a whole batch on the device.

Both ways compute what Pillow's operations (so torchvision's, on Pillow images) compute, rounding to whole levels
after each operation included, in the same order: jitter operations as drawn, grayscale, blur, solarisation.
In a worker they mostly are Pillow's operations. How close the batched ones are:

==============================================  ====================================================================
brightness, contrast, saturation, grayscale,    equal, but for factors whose product lies within float32 rounding of a
solarisation                                    whole level, which may then fall on the other side: 1 level
hue                                             equal, but for 1 level where a channel rounds from a half
blur (in workers too, from 128 pixels on)       Pillow approximates a Gaussian by three box filters for each axis and
                                                rounds to a level after each; this computes the same six filters with
                                                float32 instead of fixed-point weights, so a sum close to a half may
                                                round the other way, once for each filter: at most 2 levels, and none
                                                in nearly all pixels
==============================================  ====================================================================

Operations that follow can amplify such a level by their factor (up to 1.8 with SwAV's jitter), or move it to
another hue; ``tests/data/test_augment.py`` holds both ways to the plain transforms, each operation alone and chains.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from .draws import BRIGHTNESS, CONTRAST, GRAYSCALE, HUE, SATURATION, Draw

# Pillow's weights of red, green and blue in gray, in 1/65536 (ITU-R 601); the products are exact in float32
_GRAY = (19595.0, 38470.0, 7471.0)
_BOX_PASSES = 3
_SOLARIZE_FROM = 128
_FASTER_BLUR_FROM = 128  # pixels; in smaller images Pillow's blur is the faster one


def hue_steps(hue: float) -> int:
    """A shift in turns as torchvision applies it to Pillow images: whole 1/255, cut towards zero, 0 to 255."""
    return int(hue * 255) % 256


# ---------------------------------------------------------------------------------------------------- one image


def apply_to_image(pixels: Tensor, draw: Draw) -> Tensor:
    """The drawn operations on one image, (channels, h, w) uint8: by Pillow, and for large images by our faster blur.

    Images that are not RGB take the way of :func:`apply_to_batch`.
    """
    if len(pixels) != 3:
        return apply_to_batch(pixels[None], pack([draw]))[0].to(torch.uint8)
    blurs_in_torch = draw.blur_sigma > 0 and pixels.shape[-1] >= _FASTER_BLUR_FROM
    if draw.order or draw.grayscale or (draw.blur_sigma and not blurs_in_torch):
        image = Image.merge("RGB", [Image.fromarray(plane) for plane in pixels.numpy()])
        image = _change_colours(image, draw)
        if draw.blur_sigma and not blurs_in_torch:
            image = image.filter(ImageFilter.GaussianBlur(radius=draw.blur_sigma))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    if blurs_in_torch:
        pixels = _blur(pixels[None].float(), torch.tensor([box_weights(draw.blur_sigma)]))[0].to(torch.uint8)
    if draw.solarize:
        pixels = torch.where(pixels < _SOLARIZE_FROM, pixels, 255 - pixels)
    return pixels


def _change_colours(image: Image.Image, draw: Draw) -> Image.Image:
    for operation in draw.order:
        if operation == BRIGHTNESS:
            image = Image.blend(Image.new("RGB", image.size), image, draw.brightness)
        elif operation == CONTRAST:
            image = Image.blend(Image.new("RGB", image.size, (_mean_gray(image),) * 3), image, draw.contrast)
        elif operation == SATURATION:
            image = Image.blend(image.convert("L").convert("RGB"), image, draw.saturation)
        elif operation == GRAYSCALE:
            image = image.convert("L").convert("RGB")
        else:
            assert operation == HUE
            hue, saturation, value = image.convert("HSV").split()
            shifted = Image.fromarray(np.asarray(hue) + np.uint8(hue_steps(draw.hue)))  # wraps round at 256
            image = Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
    return image.convert("L").convert("RGB") if draw.grayscale else image


def _mean_gray(image: Image.Image) -> int:
    counts = np.asarray(image.convert("L").histogram())
    return int((counts * np.arange(256)).sum() / counts.sum() + 0.5)


# ---------------------------------------------------------------------------------------------------- a batch


@dataclass(frozen=True)
class PackedDraws:
    """The draws of n equally large views, as a list of operations with the images each applies to.

    Made in a worker, so that the device gets index lists that are ready to use and nothing waits for it.

    Attributes:
        rows: (m,) int64: image numbers, operation after operation.
        values: (m, k) float32: the parameters that belong to them.
        operations: name and number of rows of each operation, in order.
    """

    rows: Tensor
    values: Tensor
    operations: tuple[tuple[str, int], ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> "PackedDraws":
        """The same with ``change`` applied to its tensors."""
        return replace(self, rows=change(self.rows), values=change(self.values))

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, rows (n,) and values (n, k) of each operation."""
        counts = [count for _, count in self.operations]
        yield from zip(
            (name for name, _ in self.operations), self.rows.split(counts), self.values.split(counts), strict=True
        )


def pack(draws: Sequence[Draw]) -> PackedDraws:
    """Groups what is to be done by operation: for each of the five places in the order, its blends (brightness,
    contrast, saturation and grayscale, all of them ``anchor + factor * (x - anchor)``) and its hue shifts."""
    steps: list[tuple[str, list[tuple[int, tuple[float, ...]]]]] = []
    for place in range(5):
        blends: list[tuple[int, tuple[float, ...]]] = []
        hues: list[tuple[int, tuple[float, ...]]] = []
        for row, draw in enumerate(draws):
            operation = draw.order[place] if place < len(draw.order) else None
            if operation == BRIGHTNESS:
                blends.append((row, (draw.brightness, 0.0, 0.0)))
            elif operation == CONTRAST:
                blends.append((row, (draw.contrast, 1.0, 0.0)))
            elif operation == SATURATION:
                blends.append((row, (draw.saturation, 0.0, 1.0)))
            elif operation == GRAYSCALE:
                blends.append((row, (0.0, 0.0, 1.0)))
            elif operation == HUE:
                hues.append((row, (float(hue_steps(draw.hue)),)))
        steps += [("blend", blends), ("hue", hues)]
    steps.append(("grayscale", [(row, ()) for row, draw in enumerate(draws) if draw.grayscale]))
    steps.append(("blur", [(row, box_weights(draw.blur_sigma)) for row, draw in enumerate(draws) if draw.blur_sigma]))
    steps.append(("solarize", [(row, ()) for row, draw in enumerate(draws) if draw.solarize]))
    steps = [(name, rows) for name, rows in steps if rows]
    flat = [item for _, rows in steps for item in rows]
    values = np.zeros((len(flat), max((len(v) for _, v in flat), default=0)), dtype=np.float32)
    for i, (_, parameters) in enumerate(flat):
        values[i, : len(parameters)] = parameters
    return PackedDraws(
        rows=torch.tensor([row for row, _ in flat], dtype=torch.int64),
        values=torch.from_numpy(values),
        operations=tuple((name, len(rows)) for name, rows in steps),
    )


@functools.lru_cache(maxsize=4096)
def box_weights(sigma: float) -> tuple[float, ...]:
    """Weights at distance 0, 1, ... of the box filter that, applied three times, has variance ``sigma**2``.

    A box of fractional radius: full weight up to l, a part at l + 1 (Gwosdek et al. 2011, "Theoretical foundations
    of Gaussian convolution by extended box filtering"), in Pillow's fixed-point units of 2**-24.
    """
    variance = sigma * sigma / _BOX_PASSES
    whole = math.floor((math.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3.0 * variance) / (6.0 * (variance - (whole + 1) ** 2))
    unit = 1 << 24
    inner = int(unit / (2.0 * (whole + part) + 1.0))
    outer = (unit - (2 * whole + 1) * inner) // 2
    return tuple(w / unit for w in [inner] * (whole + 1) + [outer])


@torch.no_grad()
def apply_to_batch(images: Tensor, draws: PackedDraws) -> Tensor:
    """The drawn operations on a batch, each image with its own parameters.

    Every operation touches the images that have it and no others. Nothing is random here, nothing waits for the
    device, and no shape is compiled.

    Args:
        images: (n, 3, h, w) uint8.
        draws: of these n images.

    Returns:
        (n, 3, h, w) float32, whole levels from 0 to 255.
    """
    images = images.float()
    for name, rows, values in draws:
        images.index_copy_(0, rows, _OPERATIONS[name](images.index_select(0, rows), values))
    return images


def _gray(images: Tensor) -> Tensor:
    """(n, C, h, w) -> (n, 1, h, w), whole levels; of channels that are not RGB the mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True).add_(0.5).floor_()
    red, green, blue = images.split(1, dim=1)
    sums = (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])
    return sums.add_(0x8000).mul_(2.0**-16).floor_()


def _blend(images: Tensor, values: Tensor) -> Tensor:
    factor, is_contrast, is_saturation = (values[:, i].view(-1, 1, 1, 1) for i in range(3))
    gray = _gray(images)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).add_(0.5).floor_().float()
    anchor = gray.mul_(is_saturation).add_(mean.mul_(is_contrast))
    return images.sub_(anchor).mul_(factor).add_(anchor).clamp_(0, 255).floor_()


def _grayscale(images: Tensor, values: Tensor) -> Tensor:
    return _gray(images).expand_as(images)


def _solarize(images: Tensor, values: Tensor) -> Tensor:
    return torch.where(images < _SOLARIZE_FROM, images, 255.0 - images)


def _blur(images: Tensor, values: Tensor) -> Tensor:
    """Three box filters along the rows, three along the columns; the border is repeated outwards before each."""
    for horizontal in (True, False):
        for _ in range(_BOX_PASSES):
            images = _box_filter(images, values, horizontal)
    return images


def _box_filter(images: Tensor, weights: Tensor, horizontal: bool) -> Tensor:
    reach = weights.shape[1] - 1
    dim, length = (3, images.shape[3]) if horizontal else (2, images.shape[2])
    padded = F.pad(images, (reach, reach, 0, 0) if horizontal else (0, 0, reach, reach), mode="replicate")
    columns = weights.view(len(weights), reach + 1, 1, 1, 1).unbind(1)
    total = images * columns[0]
    for distance in range(1, reach + 1):
        before = padded.narrow(dim, reach - distance, length)
        after = padded.narrow(dim, reach + distance, length)
        total.addcmul_(before + after, columns[distance])
    return total.add_(0.5).floor_()


def _shift_hues(images: Tensor, values: Tensor) -> Tensor:
    """To 8-bit hue and saturation, round the circle, and back, as Pillow does."""
    red, green, blue = images.unbind(1)
    top, bottom = images.amax(dim=1), images.amin(dim=1)
    chroma = top - bottom
    # hue in units of chroma/6 turns: the sector of the largest channel, plus the lead of one of the others
    sixths = torch.where(
        red == top, green - blue, torch.where(green == top, chroma * 2 + blue - red, chroma * 4 + red - green)
    )
    sixths = torch.where(sixths < 0, sixths + chroma * 6, sixths)
    table, offsets = _hue_tables(images.device)
    hue = table[(chroma * _TABLE_WIDTH + sixths).long()] + values[:, 0].view(-1, 1, 1)
    saturation = torch.floor(chroma * 255.0 / top.clamp(min=1.0))
    # each channel falls from full value as its distance on the circle grows; angles in 1/1530 turns, shape in 1/255
    angle = torch.remainder(torch.remainder(hue, 256.0).mul_(6.0).unsqueeze(1) + offsets, 1530.0)
    shape = torch.minimum(angle, 1020.0 - angle).clamp_(0, 255)
    value = (65025.0 - saturation.unsqueeze(1) * shape) * top.unsqueeze(1)
    return value.div_(65025.0).add_(0.5).floor_()


_TABLE_WIDTH = 6 * 255


@functools.cache
def _hue_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Pillow's 8-bit hue for every chroma and position on the circle, (256 * 1530,), and the channels' places (3, 1, 1)
    on the way back, in 1/1530 turns; float32.

    The first is asked of Pillow itself, whose rounding in the few exact cases no shorter formula repeats.
    """
    table = np.zeros((256, _TABLE_WIDTH), dtype=np.float32)
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
        table[chroma, : 6 * chroma] = np.asarray(Image.fromarray(colours[None]).convert("HSV"))[0, :, 0]
    places = torch.tensor([5.0, 3.0, 1.0]).mul_(255.0).view(3, 1, 1)
    return torch.from_numpy(table.reshape(-1)).to(device), places.to(device)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "blend": _blend,
    "hue": _shift_hues,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}
