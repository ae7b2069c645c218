"""MoCo's views, v1 and v2 (arXiv 1911.05722, 2003.04297), which DisCo's, too, are."""

from dataclasses import dataclass, replace

from ...settings import setting
from ..views import RandomView


@dataclass(frozen=True)
class MoCoViewSettings:
    """Views: two, alike (SEED: one)"""

    aug_plus: bool = setting(False, "MoCo-v2's augmentation, otherwise v1's", switch=True)
    crop_size: int = setting(
        224, "side of the crops in pixels; default: 224 (efficientb5: 456)", at_least=8, at_most=2048
    )
    crop_scale: tuple[float, float] = setting(
        (0.2, 1.0), "smallest and largest share of the image area", above=0, at_most=1
    )
    jitter_strength: float = setting(
        1.0, "strength of the colour jitter, as a factor on MoCo's", at_least=0, at_most=1.25
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: float = setting(
        0.0, "probability of a blur; 0 suits small images. Default: 0.5 with --aug_plus, else 0", at_least=0, at_most=1
    )

    def views(self) -> list[RandomView]:
        return moco(
            self.aug_plus,
            self.crop_size,
            scale=self.crop_scale,
            jitter_strength=self.jitter_strength,
            grayscale=self.grayscale,
            blur=self.blur,
        )


def moco(
    aug_plus: bool,
    size: int = 224,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    jitter_strength: float = 1.0,
    grayscale: float = 0.2,
    blur: float = 0.5,
) -> list[RandomView]:
    """MoCo's two views, alike: those of v2 (arXiv 2003.04297) with ``aug_plus``, else of v1 (arXiv 1911.05722).

    v1 always jitters, its hue more strongly, turns gray before that, and has no blur (``blur`` 0).
    ``jitter_strength`` is a factor on the published strengths.
    """
    s = 0.4 * jitter_strength
    view = RandomView(size, scale, jitter=(s, s, s, s / 4), grayscale=grayscale, blur=blur)
    if not aug_plus:
        view = replace(view, jitter=(s, s, s, s), jitter_probability=1.0, gray_first=True)
    return [view] * 2
