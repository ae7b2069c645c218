"""Views of an image: what is drawn for each, and how it is cut out of the image. The colours are `augment.py`'s."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from .augment import apply_to_image
from .decoding import Decoding, Opened, decode_jpeg, turned_pixels
from .draws import GRAYSCALE, Draw
from ..errors import UserError

# A JPEG is decoded at 1/2, 1/4 or 1/8 when every crop still is at least this many times as large as its output, see
# `Picture`.
REDUCING_GAP = 2.0


class Picture:
    """An opened image that several views are cut from; decoded once, when the first one is cut.

    JPEGs can be decoded at a reduced scale, which takes a fraction of the time. As with Pillow's ``reducing_gap``, a
    crop then differs a little from the one cut at full scale. Where it is at least REDUCING_GAP times as large as its
    output in the reduced image, that is 0.1 to 0.9 levels on average, and up to 2 for saturated colours, whose
    resolution JPEG has halved already; its outermost pixels also see a little of what lies around it
    (``tests/data/test_views.py`` holds the bound).

    Args:
        image: opened by Pillow, any mode, decoded or not; or a stack of planes.
        decoding: how it becomes levels.

    Attributes:
        width, height: in pixels, of the whole image as it is seen.
        reduction: 1, 2, 4 or 8, to be set before the first view is cut; formats that cannot reduce ignore it.
    """

    def __init__(self, image: Opened, decoding: Decoding | None = None) -> None:
        self.decoding = decoding or Decoding()
        self._orientation = self.decoding.orientation(image)
        width, height = image.size
        self.width, self.height = (height, width) if self._orientation > 4 else (width, height)
        self.reduction = 1
        self._opened = image

    @classmethod
    def of_pixels(cls, pixels: Tensor, decoding: Decoding) -> "Picture":
        """One that is decoded, and turned, already: (channels, h, w) uint8."""
        picture = cls.__new__(cls)
        picture.decoding, picture.reduction = decoding, 1
        picture.height, picture.width = pixels.shape[1:]
        picture.__dict__["_whole"] = pixels if decoding.is_picture else pixels.contiguous()
        return picture

    def load(self) -> None:
        """Decodes; raises whatever the decoder does."""
        if self._whole is None:
            _ = self.image if self.decoding.is_picture else self.pixels

    @cached_property
    def _whole(self) -> Tensor | None:
        """The pixels of an image that needs no more than a fast decoder, at full scale."""
        if self.reduction > 1 or self.decoding.channels != 3:
            return None
        pixels = decode_jpeg(self._opened)
        return None if pixels is None else turned_pixels(pixels, self._orientation)

    @cached_property
    def image(self) -> Image.Image:
        """RGB (or grey, for one channel), at the reduced scale."""
        if self._whole is not None:
            levels = self._whole.permute(1, 2, 0).contiguous().numpy()
            return Image.fromarray(levels if self.decoding.channels == 3 else levels[:, :, 0])
        if self.reduction > 1 and isinstance(self._opened, Image.Image):
            # asks for at least this size, in a mode that the file may not have
            width, height = self._opened.size
            self._opened.draft(None, (width // self.reduction, height // self.reduction))
        return self.decoding.picture(self._opened, self._orientation)

    @cached_property
    def pixels(self) -> Tensor:
        """(channels, h, w) uint8."""
        if self._whole is not None:
            return self._whole
        if not self.decoding.is_picture:
            return torch.from_numpy(self.decoding.planes(self._opened, self._orientation)).permute(2, 0, 1).contiguous()
        levels = np.array(self.image)
        return torch.from_numpy(levels if levels.ndim == 3 else levels[:, :, None]).permute(2, 0, 1)

    @property
    def is_reduced(self) -> bool:
        return self.decoding.is_picture and self._whole is None and self.image.size != (self.width, self.height)


def runs_of_equal_size(crops: Sequence[Tensor]) -> list[slice]:
    """Neighbours of equal size among crops (..., s, s), as slices of the list: what is processed together."""
    sizes = [crop.shape[-1] for crop in crops]
    starts = [i for i in range(len(sizes)) if i == 0 or sizes[i] != sizes[i - 1]]
    return [slice(first, end) for first, end in zip(starts, [*starts[1:], len(sizes)], strict=True)]


class View(Protocol):
    """One view of an image: ``draw`` decides, ``cut`` computes (3, size, size) uint8 before any change of colours."""

    @property
    def size(self) -> int: ...

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw | None: ...

    def cut(self, picture: Picture, draw: Draw | None) -> Tensor: ...

    def reduction(self, draw: Draw | None) -> int:
        """At which fraction of its scale the image may be decoded for this view: 1, 2, 4 or 8."""
        ...


# Positions in the vector of uniform numbers that each view takes from its generator. Every decision has its own, so
# that switching one operation off does not change what is drawn for the others.
_ATTEMPTS = 10
_CROP = 0
_FLIP = 4 * _ATTEMPTS
_JITTER, _ORDER, _FACTORS, _GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE, _COUNT = (_FLIP + i for i in (1, 2, 6, 10, 11, 12, 13, 14))


def _factor(strength: float, uniform: float) -> float:
    """Uniform in [1 - strength, 1 + strength], of which torchvision cuts off what is below 0."""
    return 1.0 + strength * (2.0 * uniform - 1.0) if strength <= 1.0 else (1.0 + strength) * uniform


@dataclass(frozen=True)
class RandomView:
    """A random resized crop with flip, colour jitter, grayscale, blur and solarisation, in this order.

    The chain is that of SimCLR and SwAV (arXiv 2006.09882, appendix A.4); the defaults are SwAV's.

    Attributes:
        size: side of the output in pixels.
        scale: range of the crop's share of the image area.
        ratio: range of the crop's aspect ratio, drawn uniformly in its logarithm.
        flip: probability of a horizontal flip.
        jitter: strengths of brightness, contrast, saturation (factor uniform in 1 +- strength) and hue (shift
            uniform in +- strength, at most 0.5).
        jitter_probability: of all four together.
        grayscale, blur, solarize: probabilities.
        blur_sigma: range of the Gaussian's standard deviation in pixels.
        bicubic: interpolate bicubically instead of bilinearly; both antialiased.
        gray_first: grayscale comes before the jitter, as in MoCo-v1.
        colours_first: jitter and grayscale come before the crop, as in W-MSE's and CW-RGP's small-data programs: the
            contrast is then about the mean of the whole image. Always in the workers.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    bicubic: bool = False
    gray_first: bool = False
    colours_first: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a view that no image has."""
        low, high = self.scale
        if not 0.0 < low <= high <= 1.0:
            raise UserError(f"crop scales {low} to {high}: expected 0 < min <= max <= 1 (shares of the image area)")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"aspect ratios {self.ratio[0]} to {self.ratio[1]}: expected 0 < min <= max")
        if self.size < 1:
            raise UserError(f"crops of {self.size} pixels: expected at least 1")
        probabilities = (self.flip, self.jitter_probability, self.grayscale, self.blur, self.solarize)
        if not all(0.0 <= p <= 1.0 for p in probabilities):
            raise UserError(f"probabilities of a view's operations: expected 0 to 1, not {probabilities}")
        if min(self.jitter) < 0.0 or self.jitter[3] > 0.5:
            raise UserError(f"jitter {self.jitter}: strengths must not be negative, and the hue's at most 0.5")

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw:
        u = generator.random(_COUNT)
        top, left, crop_height, crop_width = self._draw_box(u, width, height)
        order: tuple[int, ...] = ()
        if u[_JITTER] < self.jitter_probability:
            order = tuple(int(i) for i in np.argsort(u[_ORDER : _ORDER + 4]))
        grayscale = bool(u[_GRAYSCALE] < self.grayscale)
        if grayscale and self.gray_first:
            order, grayscale = (GRAYSCALE, *order), False
        drawn = [float(x) for x in u[_FACTORS : _FACTORS + 4]]
        brightness, contrast, saturation = map(_factor, self.jitter, drawn[:3])
        low, high = self.blur_sigma
        draw = Draw(
            top,
            left,
            crop_height,
            crop_width,
            flip=bool(u[_FLIP] < self.flip),
            order=order,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=self.jitter[3] * (2.0 * drawn[3] - 1.0),
            grayscale=grayscale,
            blur_sigma=low + (high - low) * float(u[_SIGMA]) if u[_BLUR] < self.blur else 0.0,
            solarize=bool(u[_SOLARIZE] < self.solarize),
        )
        if not self.colours_first:
            return draw
        whole = draw._replace(blur_sigma=0.0, solarize=False)
        return draw._replace(order=(), grayscale=False, before=whole)

    def _draw_box(self, u: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
        """top, left, height, width of the crop: ten attempts at random shapes, then the largest central crop."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(_ATTEMPTS):
            u_area, u_ratio, u_top, u_left = (float(x) for x in u[_CROP + 4 * attempt : _CROP + 4 * attempt + 4])
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * u_area)
            ratio = math.exp(log_low + (log_high - log_low) * u_ratio)
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(u_top * (height - crop_height + 1))
                left = int(u_left * (width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_width, crop_height = width, height
        if width / height < self.ratio[0]:
            crop_height = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            crop_width = round(height * self.ratio[1])
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def cut(self, picture: Picture, draw: Draw | None) -> Tensor:
        """The drawn crop, resized with antialiasing and flipped.

        At full scale by torch's uint8 kernel, which rounds its weights more coarsely than Pillow and is twice as
        fast: nearly all pixels are equal to Pillow's or 1 level from it, none more than 3 (bicubic 4).
        """
        assert draw is not None
        if draw.before is not None:
            coloured = apply_to_image(picture.pixels, draw.before)
            pixels = self._cut_pixels(coloured, draw)
        elif picture.is_reduced:
            pixels = self._cut_reduced(picture, draw)
        else:
            pixels = self._cut_pixels(picture.pixels, draw)
        return pixels.flip(2) if draw.flip else pixels

    def _cut_pixels(self, pixels: Tensor, draw: Draw) -> Tensor:
        box = pixels[None, :, draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
        mode = "bicubic" if self.bicubic else "bilinear"
        return F.interpolate(box, size=(self.size, self.size), mode=mode, antialias=True)[0]

    def _cut_reduced(self, picture: Picture, draw: Draw) -> Tensor:
        image = picture.image
        x, y = image.width / picture.width, image.height / picture.height
        right, bottom = draw.left + draw.width, draw.top + draw.height
        filter_ = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        box = (draw.left * x, draw.top * y, min(right * x, image.width), min(bottom * y, image.height))
        return TF.pil_to_tensor(image.resize((self.size, self.size), filter_, box=box))

    def reduction(self, draw: Draw | None) -> int:
        assert draw is not None
        if self.colours_first:
            return 1
        scale = min(draw.width, draw.height) / (self.size * REDUCING_GAP)
        return max(factor for factor in (1, 2, 4, 8) if factor <= max(scale, 1.0))


@dataclass(frozen=True)
class PartView(RandomView):
    """A random view of one part of an image, cut before anything else.

    Attributes:
        window: left, top, right and bottom as (multiple of the half side, share of the side): W2SSL's left part ends at
            ``width // 2 + 0.3 width``, which is (1, 0.3). Rounded to pixels as Pillow does; at least one remains.
    """

    window: tuple[tuple[int, float], ...] = ((0, 0.0), (0, 0.0), (2, 0.0), (2, 0.0))

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels."""
        left, top, right, bottom = (
            side if halves == 2 else round(halves * (side // 2) + share * side)
            for (halves, share), side in zip(self.window, (width, height, width, height), strict=True)
        )
        return min(left, width - 1), min(top, height - 1), max(right, 1), max(bottom, 1)

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw:
        left, top, right, bottom = self.box(width, height)
        draw = super().draw(generator, right - left, bottom - top)
        return draw._replace(left=draw.left + left, top=draw.top + top)


@dataclass(frozen=True)
class CentreView:
    """The middle of an image: its short side resized to ``resize``, then a square of ``size`` pixels.

    The evaluation protocol of ImageNet is 256 and 224. Nothing is random.
    """

    size: int
    resize: int
    bicubic: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise UserError(f"cannot cut a crop of {self.size} pixels from images resized to {self.resize}")

    def draw(self, generator: np.random.Generator, width: int, height: int) -> None:
        return None

    def cut(self, picture: Picture, draw: Draw | None) -> Tensor:
        mode = InterpolationMode.BICUBIC if self.bicubic else InterpolationMode.BILINEAR
        if not picture.decoding.is_picture:
            pixels = TF.resize(picture.pixels, [self.resize], interpolation=mode, antialias=True)
            return TF.center_crop(pixels, [self.size])
        image = TF.resize(picture.image, [self.resize], interpolation=mode)
        return TF.pil_to_tensor(TF.center_crop(image, [self.size]))

    def reduction(self, draw: Draw | None) -> int:
        return 1  # published accuracies are those of full decoding
