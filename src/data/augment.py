"""Applies what was drawn for the colours of a view: to one image in a worker, or to a whole batch on the device.

Both ways compute what Pillow's operations (so torchvision's, on Pillow images) compute, rounding to whole levels
after each operation included, in the same order: jitter operations as drawn, grayscale, blur, solarisation.
In a worker (:mod:`src.data.colours`) all but the blur are Pillow's levels exactly. How close the batched ones are:

==============================================  ====================================================================
brightness, contrast, saturation, grayscale,    equal, but for factors whose product lies within float32 rounding of a
solarisation                                    whole level, which may then fall on the other side: 1 level
hue                                             equal, but for 1 level where a channel rounds from a half
blur (in workers too)                           Pillow approximates a Gaussian by three box filters for each axis and
                                                rounds to a level after each; this computes the same six filters with
                                                float32 instead of fixed-point weights, so a sum close to a half may
                                                round the other way, once for each filter: at most 2 levels, and none
                                                in nearly all pixels
==============================================  ====================================================================

Operations that follow can amplify such a level by their factor (up to 1.8 with SwAV's jitter), or move it to
another hue; ``tests/data/test_augment.py`` holds both ways to the plain transforms, each operation alone and chains.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .colours import GRAY, SOLARIZE_FROM, TABLE_WIDTH, change_colours, hue_table
from .draws import BOX_PASSES, BRIGHTNESS, CONTRAST, GRAYSCALE, HUE, SATURATION, Draw, box_weights, hue_steps


def apply_to_image(pixels: Tensor, draw: Draw) -> Tensor:
    """The drawn operations on one image, (channels, h, w) uint8."""
    if len(pixels) != 3:
        return apply_to_batch(pixels[None], pack([draw]))[0].to(torch.uint8)
    return torch.from_numpy(change_colours(pixels.numpy(), draw))


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


# A short list of steps in which every order of three blends and a hue shift is found, from left to right; each step
# costs the device the same launches however few images it changes. The first blend is a grayscale before the jitter
_STEPS = ("blend", "blend", "hue", "blend", "blend", "hue", "blend")


def pack(draws: Sequence[Draw]) -> PackedDraws:
    """Groups what is to be done by operation: brightness, contrast, saturation and grayscale are all blends
    ``anchor + factor * (x - anchor)``, and each image's operations go to the first steps that keep their order."""
    rows_of: list[list[tuple[int, tuple[float, ...]]]] = [[] for _ in _STEPS]
    for row, draw in enumerate(draws):
        step = 0 if draw.order[:1] == (GRAYSCALE,) else 1
        for operation in draw.order:
            step = _STEPS.index("hue" if operation == HUE else "blend", step)
            rows_of[step].append((row, _parameters(operation, draw)))
            step += 1
    steps = list(zip(_STEPS, rows_of, strict=True))
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


def _parameters(operation: int, draw: Draw) -> tuple[float, ...]:
    """Of a hue shift its steps; of a blend its factor, and whether its anchor is the mean gray, or each pixel's gray."""
    if operation == HUE:
        return (float(hue_steps(draw.hue)),)
    if operation == BRIGHTNESS:
        return (draw.brightness, 0.0, 0.0)
    if operation == CONTRAST:
        return (draw.contrast, 1.0, 0.0)
    return (draw.saturation if operation == SATURATION else 0.0, 0.0, 1.0)


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
    weights = [weight / 65536 for weight in GRAY]  # sums are as exact as those of the whole numbers
    return (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2]).add_(0.5).floor_()


def _blend(images: Tensor, values: Tensor) -> Tensor:
    factor, is_contrast, is_saturation = (values[:, i].view(-1, 1, 1, 1) for i in range(3))
    gray = _gray(images)
    mean = gray.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).add_(0.5).floor_().float()
    anchor = torch.addcmul(mean.mul_(is_contrast), gray, is_saturation)
    return images.sub_(anchor).mul_(factor).add_(anchor).clamp_(0, 255).floor_()


def _grayscale(images: Tensor, values: Tensor) -> Tensor:
    return _gray(images).expand_as(images)


def _solarize(images: Tensor, values: Tensor) -> Tensor:
    return torch.where(images < SOLARIZE_FROM, images, 255.0 - images)


def _blur(images: Tensor, values: Tensor) -> Tensor:
    """Three box filters along the rows, three along the columns; the border is repeated outwards before each."""
    for horizontal in (True, False):
        for _ in range(BOX_PASSES):
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
    table, offsets = _hue_tables(images.device)
    hue = table[(chroma * TABLE_WIDTH + sixths).long()] + values[:, 0].view(-1, 1, 1)
    saturation = torch.floor(chroma * 255.0 / top.clamp(min=1.0))
    # each channel falls from full value as its distance on the circle grows; angles in 1/1530 turns, shape in 1/255
    angle = torch.remainder(torch.remainder(hue, 256.0).mul_(6.0).unsqueeze(1) + offsets, 1530.0)
    shape = torch.minimum(angle, 1020.0 - angle).clamp_(0, 255)
    value = (65025.0 - saturation.unsqueeze(1) * shape) * top.unsqueeze(1)
    return value.div_(65025.0).add_(0.5).floor_()


@functools.cache
def _hue_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """:func:`src.data.colours.hue_table`, and the channels' places (3, 1, 1) on the way back, in 1/1530 turns; float32."""
    places = torch.tensor([5.0, 3.0, 1.0]).mul_(255.0).view(3, 1, 1)
    return torch.from_numpy(hue_table()).float().to(device), places.to(device)


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "blend": _blend,
    "hue": _shift_hues,
    "grayscale": _grayscale,
    "blur": _blur,
    "solarize": _solarize,
}
