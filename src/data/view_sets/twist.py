"""TWIST's views (Wang et al. 2021, arXiv 2110.07402)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...settings import setting
from ..randaugment import RandAugmentView
from ..views import RandomView, View

# Crops of the self-labelling epochs: shares of the area of global and of local views
HARDER = (0.14, 1.0), (0.05, 0.14)


@dataclass(frozen=True)
class TwistViewSettings:
    """Views"""

    aug: str = setting(
        "multicrop",
        "multicrop: two global and some local crops; barlow: two that differ in blur and solarisation; moco: two alike; "
        "rand: two by timm's RandAugment",
        choices=["multicrop", "barlow", "moco", "rand"],
    )
    img_size: int = setting(224, "side of the crops of barlow and moco, in pixels", at_least=8, at_most=2048)
    size_crops: tuple[int, int] = setting(
        (224, 96), "side of the global and the local crops of multicrop, in pixels", at_least=8, at_most=2048
    )
    local_crops_number: int = setting(12, "number of local crops of multicrop", at_least=0, at_most=1000)
    min1: float = setting(0.4, "smallest share of the image area of global crops", above=0, at_most=1)
    max1: float = setting(1.0, "largest share of the image area of global crops", above=0, at_most=1)
    min2: float = setting(0.05, "smallest share of the image area of local crops", above=0, at_most=1)
    max2: float = setting(0.4, "largest share of the image area of local crops", above=0, at_most=1)
    jitter_strength: float = setting(
        1.0, "strength of the colour jitter, as a factor on the paper's", at_least=0, at_most=2.5
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: float | None = setting(
        None, "probability of a blur in every view; 0 suits small images. Default: each view's own", at_least=0, at_most=1
    )
    solarize: float = setting(0.2, "probability of solarisation in the second view", at_least=0, at_most=1)

    @property
    def local_crops(self) -> int:
        """Those there are: only multicrop has any."""
        return self.local_crops_number if self.aug == "multicrop" else 0

    @property
    def main_size(self) -> int:
        """Of the global crops, in pixels."""
        return self.img_size if self.aug in ("barlow", "moco") else self.size_crops[0]

    def views(self) -> Sequence[View]:
        """Those of the main loss."""
        if self.aug == "multicrop":
            first, second = (self.min1, self.max1), (self.min2, self.max2)
            found = twist(self.aug, self.local_crops, global_scale=first, local_scale=second, sizes=self.size_crops)
        else:
            found = twist(self.aug, 0, self.main_size, sizes=(self.main_size, self.main_size))
        return self._coloured(found)

    def harder_views(self) -> Sequence[View]:
        """Those of self-labelling: always multi-crop, with as many local crops as before."""
        size = self.main_size
        local = self.size_crops[1] if self.local_crops else size
        return self._coloured(twist("multicrop", self.local_crops, size, *HARDER, sizes=(size, local)))

    def _coloured(self, views: Sequence[View]) -> Sequence[View]:
        """With the colours that were asked for; RandAugment's are its own."""
        return [self._one_coloured(view) if isinstance(view, RandomView) else view for view in views]

    def _one_coloured(self, view: RandomView) -> RandomView:
        brightness, contrast, saturation, hue = (self.jitter_strength * factor for factor in view.jitter)
        jitter = (brightness, contrast, saturation, hue)
        blur = view.blur if self.blur is None else self.blur
        solarize = self.solarize if view.solarize else 0.0
        return replace(view, jitter=jitter, grayscale=self.grayscale, blur=blur, solarize=solarize)


def twist(
    aug: str,
    local_crops: int,
    img_size: int = 224,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    sizes: tuple[int, int] = (224, 96),
) -> Sequence[View]:
    """TWIST's views (arXiv 2110.07402): two global ones, then the local ones; all resized bicubically.

    Args:
        aug: ``multicrop`` (two global and ``local_crops`` local views), ``barlow`` (two views that differ in blur and
            solarisation), ``moco`` (two alike) or ``rand`` (two by timm's RandAugment and random erasing).
        local_crops: of ``multicrop``.
        img_size: pixels of ``barlow`` and ``moco``.
        global_scale, local_scale: shares of the area, of ``multicrop``.
        sizes: pixels of the global and the local views of ``multicrop``, and (the first) of ``rand``.
    """
    view = RandomView(img_size, (0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), bicubic=True)
    if aug == "rand":
        return [RandAugmentView(sizes[0])] * 2
    if aug == "moco":
        return [replace(view, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)] * 2
    local = replace(view, size=sizes[1], scale=local_scale, blur=0.5)
    if aug == "multicrop":
        view = replace(view, size=sizes[0], scale=global_scale)
    first, second = replace(view, blur=1.0), replace(view, blur=0.1, solarize=0.2)
    return [first, second] + [local] * (local_crops if aug == "multicrop" else 0)
