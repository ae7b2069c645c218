"""What the papers report on ImageNet, to be shown beside what was reached."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Reported(NamedTuple):
    """A published result.

    Attributes:
        method: as in ``--method`` and src/layouts.py.
        evaluation: ``linear``, ``semisup 1``, ``semisup 10`` or ``semisup 100``.
        arch: of the backbone.
        top1, top5: percent.
        run: the pre-training, in words.
        settings: flags of ours that tell this pre-training from others of the method.
    """

    method: str
    evaluation: str
    arch: str
    top1: float
    top5: float | None
    run: str
    settings: Mapping[str, Any]


TWO_VIEWS, MULTI_CROP = {"nmb_crops": [2]}, {"nmb_crops": [2, 6]}
SMALLER = {"nmb_crops": [2, 4]}

# method, arch, top-1, what the pre-training was, the flags of ours that tell it
_LINEAR: tuple[tuple[str, str, float, str, dict[str, Any]], ...] = (
    ("swav", "resnet50", 72.1, "100 epochs, batch 4096, 2x224+6x96", {"epochs": 100}),
    ("swav", "resnet50", 73.9, "200 epochs, batch 4096, 2x224+6x96", {"epochs": 200, "batch": 4096}),
    ("swav", "resnet50", 74.6, "400 epochs, batch 4096, 2x224+6x96", {"epochs": 400, "batch": 4096, **MULTI_CROP}),
    ("swav", "resnet50", 75.3, "800 epochs, batch 4096, 2x224+6x96", {"epochs": 800}),
    ("swav", "resnet50", 72.7, "200 epochs, batch 256, 2x224+6x96", {"epochs": 200, "batch": 256}),
    ("swav", "resnet50", 74.3, "400 epochs, batch 256, 2x224+6x96", {"epochs": 400, "batch": 256}),
    ("swav", "resnet50", 70.1, "400 epochs, batch 4096, 2x224", {"epochs": 400, "batch": 4096, **TWO_VIEWS}),
    ("swav", "resnet50w2", 77.3, "400 epochs, batch 4096, 2x224+4x96", {"epochs": 400}),
    ("swav", "resnet50w4", 77.9, "400 epochs, batch 2560, 2x224+4x96", {"epochs": 400}),
    ("swav", "resnet50w5", 78.5, "400 epochs, batch 1536, 2x224+4x96", {"epochs": 400}),
    ("deepcluster-v2", "resnet50", 75.2, "800 epochs, batch 4096, 2x224+6x96", {"epochs": 800}),
    ("deepcluster-v2", "resnet50", 74.3, "400 epochs, batch 4096, 2x160+4x96", {"epochs": 400, **SMALLER}),
    ("deepcluster-v2", "resnet50", 70.2, "400 epochs, batch 4096, 2x224", {"epochs": 400, **TWO_VIEWS}),
    ("sela-v2", "resnet50", 71.8, "400 epochs, batch 4096, 2x160+4x96", {"epochs": 400, **SMALLER}),
    ("sela-v2", "resnet50", 67.2, "400 epochs, batch 4096, 2x224", {"epochs": 400, **TWO_VIEWS}),
    ("twist", "resnet50", 72.6, "800 epochs, 2 views", {"epochs": 800}),
    ("twist", "resnet50", 75.5, "850 epochs, multi-crop", {"epochs": 850}),
    ("twist", "resnet50w2", 77.7, "250 epochs, multi-crop", {"epochs": 250}),
    ("twist", "vit_s", 76.3, "300 epochs", {"epochs": 300}),
    ("twist", "vit_b", 78.4, "300 epochs", {"epochs": 300}),
    ("intl", "resnet50", 73.5, "100 epochs, multi-crop, EMA", {"epochs": 100, "method": "intl_m"}),
    ("intl", "resnet50", 75.2, "200 epochs, multi-crop, EMA", {"epochs": 200, "method": "intl_m"}),
    ("intl", "resnet50", 76.1, "400 epochs, multi-crop, EMA", {"epochs": 400, "method": "intl_m"}),
    ("intl", "resnet50", 76.6, "800 epochs, multi-crop, EMA", {"epochs": 800, "method": "intl_m"}),
    ("intl", "resnet50", 73.1, "800 epochs, 2 views", {"epochs": 800, "method": "intl"}),
    *(
        (method, arch, top1, "200 epochs (as DisCo's table 1 has it)", {"epochs": 200})
        for method in ("moco", "moco-v2")
        for arch, top1 in (
            ("resnet50", 67.4),
            ("efficientb0", 46.8),
            ("efficientb1", 48.4),
            ("mobilenetv3", 36.2),
            ("resnet18", 52.2),
            ("resnet34", 56.8),
        )
    ),
    *(
        ("disco", arch, top1, "200 epochs, MoCo-v2's ResNet-50 as teacher (table 1)", {})
        for arch, top1 in (
            ("efficientb0", 66.5),
            ("efficientb1", 66.6),
            ("mobilenetv3", 64.4),
            ("resnet18", 60.6),
            ("resnet34", 62.5),
        )
    ),
    ("w2ssl", "resnet50", 70.8, "200 epochs, batch 256", {"epochs": 200, "batch": 256}),
    ("w2ssl", "resnet50", 72.8, "200 epochs, batch 1024", {"epochs": 200, "batch": 1024}),
)
_SEMISUP = (
    Reported("swav", "semisup 1", "resnet50", 53.9, 78.5, "800 epochs", {"epochs": 800}),
    Reported("swav", "semisup 10", "resnet50", 70.2, 89.9, "800 epochs", {"epochs": 800}),
    Reported("twist", "semisup 1", "resnet50", 61.5, None, "850 epochs, multi-crop", {"epochs": 850}),
    Reported("twist", "semisup 10", "resnet50", 71.7, None, "850 epochs, multi-crop", {"epochs": 850}),
    Reported("twist", "semisup 100", "resnet50", 78.4, None, "850 epochs, multi-crop", {"epochs": 850}),
    Reported("twist", "semisup 1", "resnet50w2", 67.2, None, "250 epochs, multi-crop", {"epochs": 250}),
    Reported("twist", "semisup 10", "resnet50w2", 75.3, None, "250 epochs, multi-crop", {"epochs": 250}),
    Reported("twist", "semisup 100", "resnet50w2", 80.3, None, "250 epochs, multi-crop", {"epochs": 250}),
)
REPORTED = (
    *(Reported(method, "linear", arch, top1, None, run, flags) for method, arch, top1, run, flags in _LINEAR),
    *_SEMISUP,
)


def reported_line(family: str, evaluation: str, arch: str, settings: Mapping[str, Any], num_classes: int) -> str:
    """One line: the number of the same pre-training where the run tells it, else all of this method's.

    Args:
        family: the weights' method, "" if unknown.
        evaluation, arch: as in :class:`Reported`.
        settings: of the run that made the weights, with ``batch`` in all; empty for published files.
        num_classes: of the data; the papers' numbers are for ImageNet's 1000.
    """
    if num_classes != 1000:
        return f"paper: no number to compare with ({num_classes} classes; the published ones are ImageNet's 1000)"
    rows = [row for row in REPORTED if (row.method, row.evaluation, row.arch) == (family, evaluation, arch)]
    same = [row for row in rows if row.settings and all(settings.get(n) == v for n, v in row.settings.items())]
    if not rows:
        return f"paper: no number is known to this program for {family or 'these weights'}, {arch}, {evaluation}"
    listing = "; ".join(
        f"{row.top1} %" + (f" (top-5 {row.top5} %)" if row.top5 else "") + f" after {row.run}" for row in same or rows
    )
    return f"paper: {family}, {arch}, ImageNet: {listing}"
