"""What the papers report, to be shown beside what was reached."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Reported(NamedTuple):
    """A published result.

    Attributes:
        method: as in ``--method`` and src/checkpoints/layouts.py.
        evaluation: ``linear``; ``semisup 1``, ``10`` or ``100``; ``5-nn``; ``clusters``; ``boxes`` or ``masks``.
        arch: of the backbone.
        values: by measure, percent.
        run: the pre-training, in words.
        settings: flags of ours that tell this pre-training from others of the method.
        data: what it was evaluated on.
    """

    method: str
    evaluation: str
    arch: str
    values: Mapping[str, float]
    run: str
    settings: Mapping[str, Any]
    data: str = "imagenet"


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
    ("twist", "vit_s", 76.3, "300 epochs, batch 1024, lr 3e-4", {"epochs": 300, "batch": 1024}),
    ("twist", "vit_s", 75.6, "300 epochs, batch 2048 (first release)", {"epochs": 300, "batch": 2048}),
    ("twist", "vit_b", 78.4, "300 epochs, batch 1024, 2x224+10x96", {"epochs": 300, "batch": 1024}),
    ("twist", "vit_b", 77.3, "300 epochs, batch 2048, 2x224+6x96 (first release)", {"epochs": 300, "batch": 2048}),
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
    ("cwrgp", "resnet50", 69.7, "100 epochs, 4 views, batch 512", {"epochs": 100}),
    ("cwrgp", "resnet50", 71.0, "200 epochs, 4 views, batch 512", {"epochs": 200}),
    ("w2ssl", "resnet50", 70.8, "200 epochs, batch 256", {"epochs": 200, "batch": 256}),
    ("w2ssl", "resnet50", 72.8, "200 epochs, batch 1024", {"epochs": 200, "batch": 1024}),
)
_LONG, _WIDE = ("850 epochs, multi-crop", {"epochs": 850}), ("250 epochs, multi-crop", {"epochs": 250})
# method, percent of the labels, architecture, top-1 and top-5, the pre-training
_SEMISUP: tuple[tuple[str, int, str, float, float | None, tuple[str, dict[str, Any]]], ...] = (
    ("swav", 1, "resnet50", 53.9, 78.5, ("800 epochs", {"epochs": 800})),
    ("swav", 10, "resnet50", 70.2, 89.9, ("800 epochs", {"epochs": 800})),
    ("twist", 1, "resnet50", 61.5, None, _LONG),
    ("twist", 10, "resnet50", 71.7, None, _LONG),
    ("twist", 100, "resnet50", 78.4, None, _LONG),
    ("twist", 1, "resnet50w2", 67.2, None, _WIDE),
    ("twist", 10, "resnet50w2", 75.3, None, _WIDE),
    ("twist", 100, "resnet50w2", 80.3, None, _WIDE),
)
# Small data: method, its settings, and for each data set top-1 of a linear classifier and of 5 neighbours
_SMALL: tuple[tuple[str, dict[str, Any], dict[str, tuple[float, float]]], ...] = (
    ("cwrgp", {"num_samples": 2}, {
        "cifar10": (91.92, 89.54), "cifar100": (67.51, 57.35), "stl10": (90.76, 87.34), "tiny_in": (49.23, 34.04),
    }),
    ("cwrgp", {"num_samples": 4}, {
        "cifar10": (92.47, 90.74), "cifar100": (68.26, 58.67), "stl10": (92.04, 88.95), "tiny_in": (50.24, 35.99),
    }),
    ("intl", {}, {"cifar10": (92.60, 90.03), "cifar100": (70.88, 61.90), "imagenet100": (81.68, 73.46)}),
    # the baselines under the same protocol, as later papers quote them
    ("contrastive", {}, {
        "cifar10": (91.80, 88.42), "cifar100": (66.83, 56.56), "stl10": (90.51, 85.68), "tiny_in": (48.84, 32.86),
    }),
    ("byol", {}, {
        "cifar10": (91.73, 89.45), "cifar100": (66.60, 56.82), "stl10": (91.99, 88.64), "tiny_in": (51.00, 36.24),
    }),
    ("simsiam", {}, {
        "cifar10": (90.51, 86.82), "cifar100": (66.04, 55.79), "stl10": (88.91, 84.84), "tiny_in": (48.29, 34.21),
    }),
    ("barlowtwins", {}, {
        "cifar10": (88.51, 86.53), "cifar100": (65.78, 55.76), "stl10": (88.36, 83.71), "tiny_in": (47.44, 32.65),
    }),
    ("vicreg", {}, {
        "cifar10": (90.32, 88.41), "cifar100": (66.45, 56.78), "stl10": (90.78, 85.72), "tiny_in": (48.71, 33.35),
    }),
    ("zero_icl", {}, {
        "cifar10": (88.12, 86.64), "cifar100": (61.91, 53.47), "stl10": (86.35, 82.51), "tiny_in": (46.25, 32.74),
    }),
    ("wmse", {}, {
        "cifar10": (91.55, 89.69), "cifar100": (66.10, 56.69), "stl10": (90.36, 87.10), "tiny_in": (48.20, 34.16),
    }),
)  # fmt: skip
# Detection with ResNet-50: method, what is found, on which data, AP, AP50, AP75, the pre-training
_DETECTION = (
    ("twist", "boxes", "voc", 58.1, 84.2, 65.4, "850 epochs, multi-crop; FPN, 24k iterations"),
    ("twist", "boxes", "coco", 41.9, 62.6, 45.7, "850 epochs, multi-crop; FPN 1x"),
    ("twist", "masks", "coco", 37.9, 59.7, 40.6, "850 epochs, multi-crop; FPN 1x"),
    ("cwrgp", "boxes", "voc", 57.2, 82.2, 63.8, "200 epochs; C4, 24k iterations"),
    ("cwrgp", "boxes", "coco", 40.7, 60.5, 44.1, "200 epochs; C4"),
    ("cwrgp", "masks", "coco", 35.5, 57.3, 37.9, "200 epochs; C4"),
    ("intl", "boxes", "coco", 41.2, 61.2, 44.7, "200 epochs; C4"),
    ("intl", "masks", "coco", 35.7, 57.8, 38.1, "200 epochs; C4"),
    ("moco", "boxes", "voc", 57.0, 82.4, 63.6, "200 epochs of MoCo-v2; C4, 24k iterations"),
)
# Names under which files come whose method is that of others here
_SAME = {"cw-rgp": "cwrgp", "moco-v2": "moco"}


def _rows() -> Iterator[Reported]:
    for method, arch, top1, run, flags in _LINEAR:
        yield Reported(method, "linear", arch, {"top-1": top1}, run, flags)
    for method, percent, arch, top1, top5, (run, flags) in _SEMISUP:
        values = {"top-1": top1} if top5 is None else {"top-1": top1, "top-5": top5}
        yield Reported(method, f"semisup {percent}", arch, values, run, flags)
    for method, flags, sets in _SMALL:
        for data, (top1, neighbours) in sets.items():
            run = f"the paper's run with {flags['num_samples']} views" if flags else "the paper's run"
            yield Reported(method, "linear", "resnet18", {"top-1": top1}, run, flags, data)
            yield Reported(method, "5-nn", "resnet18", {"top-1": neighbours}, run, flags, data)
    scores = {"NMI": 74.4, "AMI": 57.7, "ARI": 30.1, "ACC": 40.5}
    yield Reported("twist", "clusters", "resnet50", scores, "800 epochs with 1000 classes", {"epochs": 800})
    for method, what, data, ap, ap50, ap75, run in _DETECTION:
        yield Reported(method, what, "resnet50", {"AP": ap, "AP50": ap50, "AP75": ap75}, run, {}, data)


REPORTED = tuple(_rows())


def data_of(dataset: str, num_classes: int) -> str:
    """What the papers call the data of an evaluation; "" for data that no paper has."""
    if dataset in ("cifar10", "cifar100", "stl10", "tiny_in"):
        return dataset
    if dataset == "in100":
        return "imagenet100"
    return {1000: "imagenet", 100: "imagenet100"}.get(num_classes, "")


def reported_line(
    family: str, evaluation: str, arch: str, settings: Mapping[str, Any], num_classes: int, dataset: str = "folder"
) -> str:
    """One line: the number of the same pre-training where the run tells it, else all of this method's.

    Args:
        family: the weights' method, "" if unknown.
        evaluation, arch: as in :class:`Reported`.
        settings: of the run that made the weights, with ``batch`` in all; empty for published files.
        num_classes: of the data. A folder of 1000 is taken for ImageNet, one of 100 for ImageNet-100.
        dataset: ``--dataset``.
    """
    data = data_of(dataset, num_classes)
    if not data:
        return f"paper: no number to compare with ({num_classes} classes; papers have ImageNet and a few small sets)"
    found = _listed(family, evaluation, arch, settings, data)
    if not found:
        return f"paper: no number is known to this program for {family or 'these weights'}, {arch}, {evaluation}"
    return f"paper: {family}, {arch}, {'ImageNet' if data == 'imagenet' else data}: {found}"


def reported_detection(family: str, what: str, arch: str, data: str) -> str:
    """The same for detection: ``what`` is ``boxes`` or ``masks``, ``data`` is ``voc`` or ``coco``."""
    found = _listed(family, what, arch, {}, data)
    if not found:
        return f"paper: no number is known to this program for {family or 'these weights'}, {arch}, {what} on {data}"
    return f"paper: {family}, {arch}, {what} on {data}: {found}"


def _listed(family: str, evaluation: str, arch: str, settings: Mapping[str, Any], data: str) -> str:
    key = (evaluation, arch, data)
    rows = [row for row in REPORTED if row.method == family and (row.evaluation, row.arch, row.data) == key]
    if not rows:
        other = _SAME.get(family)
        rows = [row for row in REPORTED if row.method == other and (row.evaluation, row.arch, row.data) == key]
    same = [row for row in rows if row.settings and all(settings.get(n) == v for n, v in row.settings.items())]
    return "; ".join(f"{_in_words(row.values)} after {row.run}" for row in same or rows)


def _in_words(values: Mapping[str, float]) -> str:
    """``75.3 %``; ``53.9 % (top-5 78.5 %)``; several measures by name."""
    if "top-1" in values:
        return f"{values['top-1']:g} %" + (f" (top-5 {values['top-5']:g} %)" if "top-5" in values else "")
    return "  ".join(f"{name} {value:g}" for name, value in values.items())
