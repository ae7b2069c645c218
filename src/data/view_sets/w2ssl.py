"""W2SSL's patches (Zhao et al. 2023, doi 10.1109/TCSVT.2023.3298937)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...settings import setting
from ..views import PartView

GRIDS = ("1x2", "2x1", "2x2")


@dataclass(frozen=True)
class W2SSLViewSettings:
    """Patches: every part of an image, in two views"""

    grid: str = setting(
        "1x2", "parts of an image, rows x columns; 2x2 is the papers' ablation, 2x1 is not in the papers", choices=GRIDS
    )
    cross_ratio: float = setting(
        0.3, "how far a part reaches over the middle of the image, as a share of its side", at_least=0, at_most=0.5
    )
    crop_size: int = setting(
        112, "side of a patch in pixels; montages are twice as large", at_least=1, at_most=2048
    )
    crop_min: float = setting(0.2, "smallest share of a part's area", above=0, at_most=1)
    flip: str = setting(
        "patch",
        "patch: each patch by itself, as published, which hides whether it was left or right; none: where can be learnt",
        choices=["patch", "none"],
    )
    jitter_strength: float = setting(
        1.0, "strength of the colour jitter, as a factor on the published one", at_least=0, at_most=2.5
    )
    grayscale: float = setting(0.2, "probability of grayscale", at_least=0, at_most=1)
    blur: tuple[float, float] = setting(
        (1.0, 0.1), "probability of a blur in each view; default: 1 0.1 (2x2: 0.5 0.1)", at_least=0, at_most=1
    )
    solarize: float = setting(0.2, "probability of solarisation in the second view", at_least=0, at_most=1)

    def views(self) -> list[PartView]:
        return w2ssl(
            self.grid,
            self.crop_size,
            cross_ratio=self.cross_ratio,
            least_area=self.crop_min,
            flip=0.5 if self.flip == "patch" else 0.0,
            jitter_strength=self.jitter_strength,
            grayscale=self.grayscale,
            blur=self.blur,
            solarize=self.solarize,
        )


def w2ssl(
    grid: str = "1x2",
    size: int = 112,
    *,
    cross_ratio: float = 0.3,
    least_area: float = 0.2,
    flip: float = 0.5,
    jitter_strength: float = 1.0,
    grayscale: float = 0.2,
    blur: Sequence[float] = (1.0, 0.1),
    solarize: float = 0.2,
) -> list[PartView]:
    """W2SSL's patches: all parts of an image in the first pipeline, then all in the second.

    Args:
        grid: ``1x2`` (left, right), ``2x1`` (top, bottom; not in the papers), or ``2x2`` (top left, bottom left, top
            right, bottom right), with the jitter and solarisation of that ablation.
        size: pixels of a patch.
        cross_ratio: how far a part reaches over the middle, as a share of the side.
        least_area: of a crop, as a share of its part.
        flip: probability, for each patch by itself.
        jitter_strength: a factor on the published strengths.
        grayscale, blur: probabilities, of the blur in each pipeline.
    """
    whole = ((0, 0.0), (2, 0.0))
    halves = (((0, 0.0), (1, cross_ratio)), ((1, -cross_ratio), (2, 0.0)))
    rows = (whole,) if grid == "1x2" else halves
    columns = (whole,) if grid == "2x1" else halves
    windows = [(left, top, right, bottom) for left, right in columns for top, bottom in rows]
    s = 0.4 * jitter_strength
    quarters = grid == "2x2"
    view = PartView(
        size,
        (least_area, 1.0),
        flip=flip,
        jitter=(s, s, s if quarters else s / 2, s / 4),
        grayscale=grayscale,
        blur=blur[0],
        solarize=0.5 if quarters else 0.0,
    )
    first = [replace(view, window=window) for window in windows]
    return first + [replace(one, blur=blur[1], solarize=solarize) for one in first]
