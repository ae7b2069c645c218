"""INTL's views (Weng et al. 2024, arXiv 2305.16789)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...errors import UserError
from ...settings import setting
from ..views import RandomView


@dataclass(frozen=True)
class IntlViewSettings:
    """Views (one entry for each kind of view)"""

    nmb_crops: tuple[int, ...] = setting(
        (1, 1), "number of views of this kind; for CIFAR, one number: views in all", at_least=1, at_most=1000
    )
    crops_size: tuple[int, ...] = setting((224, 224), "side of the views in pixels", at_least=1, at_most=2048)
    min_scale_crops: tuple[float, ...] = setting((0.08, 0.08), "smallest share of the image area", above=0, at_most=1)
    max_scale_crops: tuple[float, ...] = setting((1.0, 1.0), "largest share of the image area", above=0, at_most=1)
    gaussian_prob: tuple[float, ...] = setting((1.0, 0.1), "probability of a blur", at_least=0, at_most=1)
    solarization_prob: tuple[float, ...] = setting((0.0, 0.2), "probability of solarisation", at_least=0, at_most=1)
    jitter_strength: float = setting(
        1.0, "strength of the colour jitter, as a factor on the paper's", at_least=0, at_most=2.5
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    multi_crop: bool = setting(
        False, "views of 2x224, 192, 160, 128 and 96 pixels, whatever the lists above say", switch=True
    )

    def views(self) -> list[RandomView]:
        return intl(
            self.nmb_crops,
            self.crops_size,
            self.min_scale_crops,
            self.max_scale_crops,
            self.gaussian_prob,
            self.solarization_prob,
            jitter_strength=self.jitter_strength,
            grayscale=self.grayscale,
        )


# What --multi_crop stands for
MULTI_CROP = IntlViewSettings(
    nmb_crops=(2, 1, 1, 1, 1),
    crops_size=(224, 192, 160, 128, 96),
    min_scale_crops=(0.2, 0.171, 0.143, 0.114, 0.086),
    max_scale_crops=(1.0, 0.857, 0.714, 0.571, 0.429),
    gaussian_prob=(0.5,) * 5,
    solarization_prob=(0.1,) * 5,
    multi_crop=True,
)


def intl(
    nmb_crops: Sequence[int],
    crops_size: Sequence[int],
    min_scale: Sequence[float],
    max_scale: Sequence[float],
    blur: Sequence[float],
    solarize: Sequence[float],
    jitter_strength: float = 1.0,
    grayscale: float = 0.2,
) -> list[RandomView]:
    """INTL's views (arXiv 2305.16789), resized bicubically: for each entry of the lists so many alike.

    ``jitter_strength`` is a factor on the paper's strengths.
    """
    lists = (nmb_crops, crops_size, min_scale, max_scale, blur, solarize)
    if len({len(one) for one in lists}) != 1:
        raise UserError(f"the crop lists need one entry each for the same crops, but have {[len(one) for one in lists]}")
    s = jitter_strength
    view = RandomView(224, (0.08, 1.0), jitter=(0.4 * s, 0.4 * s, 0.2 * s, 0.1 * s), grayscale=grayscale, bicubic=True)
    return [
        replace(view, size=size, scale=(low, high), blur=p_blur, solarize=p_solarize)
        for count, size, low, high, p_blur, p_solarize in zip(*lists, strict=True)
        for _ in range(count)
    ]
