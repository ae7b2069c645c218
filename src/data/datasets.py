"""Where images come from: a folder, or a torchvision data set by name. All give an image and a label by index."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torchvision import datasets as torchvision_datasets

from src.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})

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
}

UNLABELLED = -1


class ImageSource(Protocol):
    """A list of images. ``labels[i]`` is -1 where there is none."""

    labels: list[int]
    classes: list[str]

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """The image in its own mode, perhaps not decoded yet; a bad file raises OSError or ValueError here or then."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


class FolderImages:
    """Images below a folder, in the sorted order of their paths.

    Every sub-folder that holds images, at any depth, is a class; classes are numbered in sorted order. A folder whose
    images lie directly in it has no classes, and its labels are -1. If there are both, the class folders count.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist")
        if not self.root.is_dir():
            raise UserError(f"{self.root} is a file; expected a folder of images")
        by_class: dict[str, list[str]] = {}
        flat: list[str] = []
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except PermissionError:
            raise UserError(f"{self.root} cannot be read: permission denied") from None
        for entry in entries:
            if entry.is_dir():
                images = _images_below(entry.path)
                if images:
                    by_class[entry.name] = images
            elif _is_image(entry.name):
                flat.append(entry.path)
        if not by_class and not flat:
            kinds = " ".join(sorted(EXTENSIONS))
            raise UserError(f"no images in {self.root} (looked for {kinds} in it and in its sub-folders)")
        self.classes = list(by_class)
        self.paths = [path for images in by_class.values() for path in images] if by_class else flat
        self.labels: list[int] = (
            [label for label, images in enumerate(by_class.values()) for _ in images]
            if by_class
            else [UNLABELLED] * len(flat)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def _images_below(folder: str) -> list[str]:
    found: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        found.extend(os.path.join(parent, name) for name in sorted(files) if _is_image(name))
    return found


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

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        image = self._dataset[index][0]
        assert isinstance(image, Image.Image)
        return image

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"


class Subset:
    """Some images of a source, by index."""

    def __init__(self, source: ImageSource, indices: Iterable[int]) -> None:
        self._source = source
        self._indices = list(indices)
        self.labels = [source.labels[index] for index in self._indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def open(self, index: int) -> Image.Image:
        return self._source.open(self._indices[index])

    def name(self, index: int) -> str:
        return self._source.name(self._indices[index])


def first_images(source: ImageSource, count: int) -> ImageSource:
    """The first ``count`` images, as the published code's ``size_dataset``; -1 stands for all.

    Folders are sorted by class, so a small count holds only the first classes.
    """
    if count == -1:
        return source
    if not 0 < count <= len(source):
        raise UserError(f"--size_dataset {count}: expected 1 to {len(source)}, the images there are")
    return Subset(source, range(count))


def evenly_spread(source: ImageSource, count: int) -> ImageSource:
    """``count`` images evenly spread over a source, so over its classes; the source itself when it is not larger."""
    if count >= len(source):
        return source
    return Subset(source, (index * len(source) // count for index in range(count)))


def open_images(dataset: str, path: str | Path, split: str = "pretrain", download: bool = False) -> ImageSource:
    """The images of one split.

    Args:
        dataset: ``folder``, or a key of TORCHVISION_SETS.
        path: the folder of the images itself, or the root of the named set.
        split: ``pretrain``, ``train`` or ``test``; a folder is a split already, so it does not matter there.
        download: fetch a named set that is missing.
    """
    if dataset == "folder":
        return FolderImages(path)
    if dataset not in TORCHVISION_SETS:
        raise UserError(f"unknown --dataset {dataset!r}: expected folder, {', '.join(TORCHVISION_SETS)}")
    return TorchvisionImages(dataset, path, split, download)


def refuse_split_root(path: str | Path) -> None:
    """Pre-training takes the folder of the classes; its parent, with `train` and `val` in it, is a likely slip."""
    root = Path(path)
    if root.is_dir() and (root / "train").is_dir() and ((root / "val").is_dir() or (root / "test").is_dir()):
        raise UserError(f"{root} holds train and val; pre-training takes the training folder: {root / 'train'}")


def find_split_folder(root: str | Path, split: str) -> Path:
    """The ``train`` folder below an evaluation root, or its ``val`` (also named ``test``)."""
    names = ("train",) if split == "train" else ("val", "test")
    if not Path(root).exists():
        raise UserError(f"{root} does not exist")
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    raise UserError(f"{root} has no folder {' or '.join(names)}; evaluation takes the folder that holds train and val")


def require_labels(source: ImageSource, where: str | Path) -> None:
    """Raises UserError for a source in which no image has a label."""
    if all(label == UNLABELLED for label in source.labels):
        raise UserError(f"{where} has no class folders, and labels are needed here: expected {where}/CLASS/IMAGE")


def find_val_beside(train: str | Path) -> Path:
    """The folder ``val`` or ``test`` beside the training folder."""
    for name in ("val", "test"):
        folder = Path(train).resolve().parent / name
        if folder.is_dir():
            return folder
    raise UserError(f"no folder val or test beside {train}: pass the validation images with --val_path")
