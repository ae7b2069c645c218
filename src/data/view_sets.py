"""The papers' sets of views."""

from collections.abc import Sequence
from dataclasses import replace

from .randaugment import RandAugmentView
from .views import PartView, RandomView, View
from ..errors import UserError


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


def intl(
    nmb_crops: Sequence[int],
    crops_size: Sequence[int],
    min_scale: Sequence[float],
    max_scale: Sequence[float],
    blur: Sequence[float],
    solarize: Sequence[float],
) -> list[RandomView]:
    """INTL's views (arXiv 2305.16789), resized bicubically: for each entry of the lists so many alike."""
    lists = (nmb_crops, crops_size, min_scale, max_scale, blur, solarize)
    if len({len(one) for one in lists}) != 1:
        raise UserError(f"the crop lists need one entry each for the same crops, but have {[len(one) for one in lists]}")
    for low, high in zip(min_scale, max_scale, strict=True):
        if not 0.0 < low <= high <= 1.0:
            raise UserError(f"crop scales {low} to {high}: expected 0 < min <= max <= 1 (shares of the image area)")
    return [
        RandomView(size, (low, high), jitter=(0.4, 0.4, 0.2, 0.1), blur=p_blur, solarize=p_solarize, bicubic=True)
        for count, size, low, high, p_blur, p_solarize in zip(*lists, strict=True)
        for _ in range(count)
    ]


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


GRIDS = ("1x2", "2x1", "2x2")


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
    return first + [replace(one, blur=blur[1], solarize=0.2) for one in first]
