"""Views of an image: what is drawn for each, and how a draw is applied to one image.

A draw is a value. It is made from a generator keyed by (seed, epoch, index, view) before anything is applied, so the
same epoch gives the same pixels whatever the number of workers, ranks or restarts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from src.errors import UserError


class Draw(NamedTuple):
    """Everything that is random about one view of one image.

    ``order`` lists the jitter operations (0 brightness, 1 contrast, 2 saturation, 3 hue) as they are applied, and is
    empty when the view is not jittered. Factors are multiplicative around 1, ``hue`` is a shift in turns, and
    ``blur_sigma`` is in pixels of the output, 0 for no blur.
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


class View(Protocol):
    """One view of an image: ``draw`` decides, ``apply`` computes (3, size, size) uint8."""

    size: int

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw | None: ...

    def apply(self, image: Image.Image, draw: Draw | None) -> Tensor: ...


def keyed_generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The generator of one view of one image in one epoch; a counter-based one, so distinct keys never collide.

    Each part must fit into 32 bits (seed, epoch, view) or 32 bits (index).
    """
    key = np.array([(seed & 0xFFFFFFFF) << 32 | epoch, index << 32 | view], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


# Positions in the vector of uniform numbers that each view takes from its generator. Every decision has its own, so
# that switching one operation off does not change what is drawn for the others.
_ATTEMPTS = 10
_CROP = 0
_FLIP = 4 * _ATTEMPTS
_JITTER, _ORDER, _FACTORS, _GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE, _COUNT = (_FLIP + i for i in (1, 2, 6, 10, 11, 12, 13, 14))


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

    def draw(self, generator: np.random.Generator, width: int, height: int) -> Draw:
        u = generator.random(_COUNT)
        top, left, crop_height, crop_width = self._draw_box(u, width, height)
        order: tuple[int, ...] = ()
        if u[_JITTER] < self.jitter_probability:
            order = tuple(int(i) for i in np.argsort(u[_ORDER : _ORDER + 4]))
        brightness, contrast, saturation, hue = (
            strength * (2.0 * float(x) - 1.0)
            for strength, x in zip(self.jitter, u[_FACTORS : _FACTORS + 4], strict=True)
        )
        low, high = self.blur_sigma
        return Draw(
            top,
            left,
            crop_height,
            crop_width,
            flip=bool(u[_FLIP] < self.flip),
            order=order,
            # strengths above 1 would make negative factors; torchvision cuts them off the same way
            brightness=max(0.0, 1.0 + brightness),
            contrast=max(0.0, 1.0 + contrast),
            saturation=max(0.0, 1.0 + saturation),
            hue=hue,
            grayscale=bool(u[_GRAYSCALE] < self.grayscale),
            blur_sigma=low + (high - low) * float(u[_SIGMA]) if u[_BLUR] < self.blur else 0.0,
            solarize=bool(u[_SOLARIZE] < self.solarize),
        )

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

    def apply(self, image: Image.Image, draw: Draw | None) -> Tensor:
        """The drawn view of an RGB image, (3, size, size) uint8, by torchvision's and Pillow's own operations."""
        assert draw is not None
        mode = InterpolationMode.BICUBIC if self.bicubic else InterpolationMode.BILINEAR
        image = TF.resized_crop(
            image, draw.top, draw.left, draw.height, draw.width, [self.size, self.size], interpolation=mode
        )
        if draw.flip:
            image = TF.horizontal_flip(image)
        for operation in draw.order:
            if operation == 0:
                image = TF.adjust_brightness(image, draw.brightness)
            elif operation == 1:
                image = TF.adjust_contrast(image, draw.contrast)
            elif operation == 2:
                image = TF.adjust_saturation(image, draw.saturation)
            else:
                image = TF.adjust_hue(image, draw.hue)
        if draw.grayscale:
            image = TF.rgb_to_grayscale(image, num_output_channels=3)
        if draw.blur_sigma:
            image = image.filter(ImageFilter.GaussianBlur(radius=draw.blur_sigma))
        if draw.solarize:
            image = TF.solarize(image, 128)
        return TF.pil_to_tensor(image)


@dataclass(frozen=True)
class CentreView:
    """The middle of an image: its short side resized to ``resize``, then a square of ``size`` pixels.

    The evaluation protocol of ImageNet is 256 and 224. Nothing is random.
    """

    size: int
    resize: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise UserError(f"cannot cut a crop of {self.size} pixels from images resized to {self.resize}")

    def draw(self, generator: np.random.Generator, width: int, height: int) -> None:
        return None

    def apply(self, image: Image.Image, draw: Draw | None) -> Tensor:
        image = TF.resize(image, [self.resize], interpolation=InterpolationMode.BILINEAR)
        return TF.pil_to_tensor(TF.center_crop(image, [self.size]))


def multi_crop(
    size_crops: Sequence[int],
    nmb_crops: Sequence[int],
    min_scale_crops: Sequence[float],
    max_scale_crops: Sequence[float],
    jitter_strength: float = 1.0,
    grayscale: float = 0.2,
    blur: float = 0.5,
) -> list[RandomView]:
    """SwAV's multi-crop: ``nmb_crops[g]`` views of ``size_crops[g]`` pixels for each resolution group g, in order.

    Args:
        size_crops, nmb_crops, min_scale_crops, max_scale_crops: one entry for each group.
        jitter_strength: s in the colour jitter's strengths (0.8 s, 0.8 s, 0.8 s, 0.2 s).
        grayscale, blur: their probabilities.

    Raises UserError for lists of different lengths, and for values no image has a crop of.
    """
    lengths = {
        "--size_crops": len(size_crops),
        "--nmb_crops": len(nmb_crops),
        "--min_scale_crops": len(min_scale_crops),
        "--max_scale_crops": len(max_scale_crops),
    }
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"the crop lists need one entry for each resolution, but have: {listing}")
    for size, count, low, high in zip(size_crops, nmb_crops, min_scale_crops, max_scale_crops, strict=True):
        if not 8 <= size <= 2048:
            raise UserError(f"--size_crops {size}: expected 8 to 2048 pixels")
        if count < 1:
            raise UserError(f"--nmb_crops {count}: expected at least one crop of each resolution")
        if not 0.0 < low <= high <= 1.0:
            raise UserError(f"crop scales {low} to {high}: expected 0 < min <= max <= 1 (shares of the image area)")
    if not 0.0 <= jitter_strength <= 2.5:
        raise UserError(f"--jitter_strength {jitter_strength}: expected 0 to 2.5 (the hue shift is 0.2 times it)")
    for name, probability in (("--grayscale", grayscale), ("--blur", blur)):
        if not 0.0 <= probability <= 1.0:
            raise UserError(f"{name} {probability}: expected a probability from 0 to 1")
    s = jitter_strength
    return [
        RandomView(size, (low, high), jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), grayscale=grayscale, blur=blur)
        for size, count, low, high in zip(size_crops, nmb_crops, min_scale_crops, max_scale_crops, strict=True)
        for _ in range(count)
    ]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, h, w) -> float32, scaled to [0, 1] and standardised by channel."""
    shape = (3, 1, 1)
    mean_ = torch.tensor(mean, device=images.device).view(shape)
    std_ = torch.tensor(std, device=images.device).view(shape)
    return images.to(torch.float32).div_(255.0).sub_(mean_).div_(std_)
