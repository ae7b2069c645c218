"""torchvision's data sets, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from .decoding import Decoding
from .labels import UNLABELLED
from ..errors import UserError

class Flowers102(torch.utils.data.ConcatDataset[Any]):
    """Oxford's flowers: what is trained on is the set's own training and validation images, as transfers have it."""

    def __init__(self, root: str, download: bool, splits: Sequence[str]) -> None:
        parts = [torchvision_datasets.Flowers102(root, split=split, download=download) for split in splits]
        super().__init__(parts)
        self.targets = [label for part in parts for label in part._labels]
        self.classes = [str(number) for number in range(102)]


class OxfordPets(torchvision_datasets.OxfordIIITPet):  # type: ignore[misc]
    """Oxford-IIIT's pets, with their 37 breeds."""

    @property
    def targets(self) -> list[int]:
        return self._labels


# Splits: `pretrain` is everything one may train on without labels.
TORCHVISION_SETS: dict[str, tuple[type, dict[str, dict[str, Any]]]] = {
    "cifar10": (
        torchvision_datasets.CIFAR10,
        {"pretrain": {"train": True}, "train": {"train": True}, "test": {"train": False}},
    ),
    "cifar100": (
        torchvision_datasets.CIFAR100,
        {"pretrain": {"train": True}, "train": {"train": True}, "test": {"train": False}},
    ),
    "stl10": (
        torchvision_datasets.STL10,
        {"pretrain": {"split": "train+unlabeled"}, "train": {"split": "train"}, "test": {"split": "test"}},
    ),
    "svhn": (
        torchvision_datasets.SVHN,
        {"pretrain": {"split": "train"}, "train": {"split": "train"}, "test": {"split": "test"}},
    ),
    "flowers102": (
        Flowers102,
        {
            "pretrain": {"splits": ("train", "val")},
            "train": {"splits": ("train", "val")},
            "test": {"splits": ("test",)},
        },
    ),
    "oxford_pets": (
        OxfordPets,
        {"pretrain": {"split": "trainval"}, "train": {"split": "trainval"}, "test": {"split": "test"}},
    ),
}


class TorchvisionImages:
    """A torchvision data set under a local root, in torchvision's layout. Downloads only when told to."""

    def __init__(self, name: str, root: str | Path, split: str, download: bool = False) -> None:
        dataset_class, splits = TORCHVISION_SETS[name]
        self._name = f"{name} {split}"
        try:
            if download:
                Path(root).mkdir(parents=True, exist_ok=True)
            self._dataset = dataset_class(root=str(root), download=download, **splits[split])
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            advice = "" if download else "; pass --download to fetch it, or point --data_path at its root"
            raise UserError(f"{name} is not usable under {root}: {reason}{advice}") from None
        labels = getattr(self._dataset, "targets", None)
        if labels is None:
            labels = self._dataset.labels
        self.labels: list[int] = [int(label) for label in labels]
        names = getattr(self._dataset, "classes", None)
        self.classes: list[str] = list(names or map(str, sorted(set(self.labels) - {UNLABELLED})))

        self.decoding = Decoding()
        self.left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        image = self._dataset[index][0]
        assert isinstance(image, Image.Image)
        return image

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    relative_name = name
