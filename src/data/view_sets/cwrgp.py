"""The views of CW-RGP's programs and of the baselines in them (Weng et al. 2022, arXiv 2210.03586)."""

from dataclasses import dataclass

from ...settings import setting
from ..views import RandomView


@dataclass(frozen=True)
class CWRGPViewSettings:
    """Views, all alike"""

    num_samples: int = setting(2, "number of views", at_least=1, at_most=1000)
    crop_size: int = setting(224, "side of the views in pixels; default: the data set's", at_least=1, at_most=2048)
    cj0: float = setting(0.4, "strength of the jitter's brightness", at_least=0, at_most=10)
    cj1: float = setting(0.4, "strength of the jitter's contrast", at_least=0, at_most=10)
    cj2: float = setting(0.4, "strength of the jitter's saturation", at_least=0, at_most=10)
    cj3: float = setting(0.1, "strength of the jitter's hue", at_least=0, at_most=0.5)
    cj_p: float = setting(0.8, "probability of the jitter", at_least=0, at_most=1)
    gs_p: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: float | None = setting(
        None, "probability of a blur; default: 0.5 from 224 pixels on, else 0", at_least=0, at_most=1
    )
    hf_p: float = setting(0.5, "probability of a horizontal flip", at_least=0, at_most=1)
    crop_s0: float = setting(0.2, "smallest share of the image area", above=0, at_most=1)
    crop_s1: float = setting(1.0, "largest share of the image area", above=0, at_most=1)
    crop_r0: float = setting(0.75, "smallest aspect ratio", above=0, at_most=100)
    crop_r1: float = setting(4 / 3, "largest aspect ratio", above=0, at_most=100)

    def views(self, small: bool) -> list[RandomView]:
        """``small``: those of the small-data programs, which change colours first and resize bicubically."""
        view = RandomView(
            self.crop_size,
            (self.crop_s0, self.crop_s1),
            (self.crop_r0, self.crop_r1),
            flip=self.hf_p,
            jitter=(self.cj0, self.cj1, self.cj2, self.cj3),
            jitter_probability=self.cj_p,
            grayscale=self.gs_p,
            blur=(0.0 if self.crop_size < 224 else 0.5) if self.blur is None else self.blur,
            bicubic=small,
            colours_first=small,
        )
        return [view] * self.num_samples
