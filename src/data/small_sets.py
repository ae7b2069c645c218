"""What INTL's and CW-RGP's programs assume about the small data sets that they know by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .named import TORCHVISION_SETS
from .datasets import IMAGENET_MEAN, IMAGENET_STD

Channels = tuple[float, float, float]


class SmallSet(NamedTuple):
    """How a data set is trained on and evaluated.

    Attributes:
        mean, std: of the channels.
        crop: side of the views in pixels.
        resize: side that images are resized to for evaluation.
        stem: of the ResNet.
    """

    mean: Channels
    std: Channels
    crop: int
    resize: int
    stem: str


IMAGENET = SmallSet(IMAGENET_MEAN, IMAGENET_STD, 224, 256, "imagenet")
SMALL_SETS = {
    "cifar10": SmallSet((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 32, 32, "small"),
    "cifar100": SmallSet((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 32, 32, "small"),
    "stl10": SmallSet((0.43, 0.42, 0.39), (0.27, 0.26, 0.27), 64, 70, "small_pool"),
    "tiny_in": SmallSet((0.480, 0.448, 0.398), (0.277, 0.269, 0.282), 64, 64, "small_pool"),
    "in100": IMAGENET,
}
# INTL's program for CIFAR has other numbers
INTL_MEAN: dict[str, Channels] = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
INTL_STD: dict[str, Channels] = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


def known_set(dataset: str) -> SmallSet:
    """What is known about ``--dataset``; ImageNet's values for all others."""
    return SMALL_SETS.get(dataset, IMAGENET)


def default_path(given: Mapping[str, Any]) -> dict[str, str]:
    """Where the papers' programs look for a named set, if ``--data_path`` is not given."""
    dataset = given.get("dataset", "folder")
    if "data_path" in given or dataset not in (*TORCHVISION_SETS, "tiny_in"):
        return {}
    return {"data_path": "data/tiny-imagenet-200" if dataset == "tiny_in" else "data"}


def bicubic_evaluation(dataset: str) -> bool:
    """Whether the papers' programs resize a set's evaluated images bicubically."""
    return dataset in ("stl10", "tiny_in")


def evaluation_resize(dataset: str, eval_size: int) -> int | None:
    """The side that a known set is resized to for crops of its own size; None for all else."""
    known = SMALL_SETS.get(dataset)
    return known.resize if known and eval_size == known.crop else None
