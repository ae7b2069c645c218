"""SwAV's multi-crop (Caron et al. 2020, arXiv 2006.09882, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UserError
from ...settings import setting
from ..views import RandomView


@dataclass(frozen=True)
class MultiCropSettings:
    """Views: one entry for each resolution"""

    nmb_crops: tuple[int, ...] = setting((2,), "number of crops; the paper uses 2 6", at_least=1, at_most=1000)
    size_crops: tuple[int, ...] = setting(
        (224,), "side of the crops in pixels; the paper uses 224 96", at_least=8, at_most=2048
    )
    min_scale_crops: tuple[float, ...] = setting((0.14,), "smallest share of the image area", above=0, at_most=1)
    max_scale_crops: tuple[float, ...] = setting((1.0,), "largest share of the image area", above=0, at_most=1)
    jitter_strength: float = setting(
        1.0, "strength of the colour jitter; 0.5 suits small images", at_least=0, at_most=2.5
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: float = setting(0.5, "probability of a blur; 0 suits images of some 32 pixels", at_least=0, at_most=1)

    def views(self) -> list[RandomView]:
        return multi_crop(
            self.size_crops,
            self.nmb_crops,
            self.min_scale_crops,
            self.max_scale_crops,
            jitter_strength=self.jitter_strength,
            grayscale=self.grayscale,
            blur=self.blur,
        )


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

    Raises UserError for lists of different lengths.
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
    s = jitter_strength
    return [
        RandomView(size, (low, high), jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), grayscale=grayscale, blur=blur)
        for size, count, low, high in zip(size_crops, nmb_crops, min_scale_crops, max_scale_crops, strict=True)
        for _ in range(count)
    ]
