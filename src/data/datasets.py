"""Where images come from: all sources give an image and a label by index.

Of a set of one's own (a folder, an LMDB file, shards) a path is one split; a named set knows its splits itself.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from .folder import FolderImages
from .labels import UNLABELLED
from .lmdb_file import LMDBImages
from .named import TORCHVISION_SETS, TorchvisionImages
from .shards import ShardImages
from .tiny_imagenet import TinyImageNetImages
from ..errors import UserError
from ..settings import Word, setting


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)  # the red channel with which SwAV was published

_Channels = tuple[float, float, float]


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

    def relative_name(self, index: int) -> str:
        """The same without where the set lies, so that it stays when the set is moved."""
        ...


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

    def relative_name(self, index: int) -> str:
        return self._source.relative_name(self._indices[index])


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


OWN_SETS: dict[str, Callable[[str], ImageSource]] = {
    "folder": FolderImages,
    "lmdb": LMDBImages,
    "webdataset": ShardImages,
    "in100": FolderImages,  # ImageNet-100, for which CW-RGP has settings of its own
}
DATASETS = (*OWN_SETS, *TORCHVISION_SETS, "tiny_in")


def _use_lmdb(words: list[str]) -> dict[str, str]:
    """A switch in TWIST's training, 0 or 1 in its evaluations."""
    return {"dataset": "lmdb"} if not words or words[0].lower() in ("1", "true", "on") else {}


@dataclass(frozen=True)
class SourceSettings:
    """Data"""

    data_path: str = setting(
        "",
        "folder that holds train and val (or test); for pre-training also the training images themselves; or the root "
        "of a torchvision set",
        required=True,
    )
    dataset: str = setting(
        "folder",
        "kind of data: a folder of images (class sub-folders are optional where no label is needed), a file made by "
        "scripts/make_lmdb.py, WebDataset shards (a folder of .tar files, a pattern, or URLs), or a torchvision set",
        choices=DATASETS,
        spellings={"imagenet": "folder"},
        words=[Word("--use_lmdb", "the same as --dataset lmdb", _use_lmdb, nargs="?")],
    )
    download: bool = setting(False, "download a torchvision set that is not there yet", switch=True)
    workers: int = setting(
        10, "loader processes of each rank; 0 loads in the training process", flags=["--num_workers", "-j"],
        at_least=0, at_most=1024,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainingDataSettings(SourceSettings):
    """Data"""

    mean: _Channels = setting(IMAGENET_MEAN, "means of the channels, to normalise images", at_least=-10, at_most=10)
    std: _Channels = setting(IMAGENET_STD, "standard deviations of the channels", above=0, at_most=10)
    size_dataset: int = setting(-1, "use only the first images, this many; -1 = all", at_least=-1, at_most=1e12)
    augment_on: str = setting(
        "auto",
        "where colours are changed: image by image in the loader's workers, or a batch at a time on the device (the "
        "same draws, the same pictures); auto: on the device if it is a GPU",
        choices=["auto", "worker", "device"],
    )

    def colours_on(self, device: torch.device) -> bool:
        """Whether colours are changed on this device, and not in the workers."""
        return self.augment_on == "device" or (self.augment_on == "auto" and device.type == "cuda")


@dataclass(frozen=True)
class EvaluationDataSettings(SourceSettings):
    """Data"""

    mean: _Channels | None = setting(
        None, "means of the channels; default: those of the run that made the checkpoint", at_least=-10, at_most=10
    )
    std: _Channels | None = setting(None, "standard deviations of the channels; default: likewise", above=0, at_most=10)


def open_images(dataset: str, path: str | Path, split: str = "pretrain", download: bool = False) -> ImageSource:
    """The images of one split.

    Args:
        dataset: one of DATASETS.
        path: the folder, file or shards of the images themselves, or the root of the named set.
        split: ``pretrain``, ``train`` or ``test``; the path to a set of one's own is a split already.
        download: fetch a named set that is missing.
    """
    if dataset in OWN_SETS:
        return OWN_SETS[dataset](str(path))
    if dataset == "tiny_in":
        return TinyImageNetImages(path, split)
    if dataset not in TORCHVISION_SETS:
        raise UserError(f"unknown --dataset {dataset!r}: expected {', '.join(DATASETS)}")
    return TorchvisionImages(dataset, path, split, download)


def open_train_and_test(dataset: str, root: str | Path, download: bool = False) -> tuple[ImageSource, ImageSource]:
    """The two labelled splits that evaluations need, below the root that holds both."""
    if dataset in OWN_SETS:
        paths = find_classifier_images(dataset, root), find_split(dataset, root, "test")
        train, test = (open_labelled(dataset, path) for path in paths)
    else:
        train, test = (open_images(dataset, root, split, download) for split in ("train", "test"))
    return train, test


def open_labelled(dataset: str, path: str | Path) -> ImageSource:
    """A split of a set of one's own; raises UserError where no image has a label."""
    source = open_images(dataset, path)
    require_labels(source, path)
    return source


def require_labels(source: ImageSource, where: str | Path) -> None:
    """Raises UserError for a source in which no image has a label."""
    if all(label == UNLABELLED for label in source.labels):
        raise UserError(f"{where} has no class folders, and labels are needed here: expected {where}/CLASS/IMAGE")


def refuse_split_root(path: str | Path) -> None:
    """Pre-training takes the folder of the classes; its parent, with `train` and `val` in it, is a likely slip."""
    root = Path(path)
    if root.is_dir() and (root / "train").is_dir() and ((root / "val").is_dir() or (root / "test").is_dir()):
        raise UserError(f"{root} holds train and val; pre-training takes the training folder: {root / 'train'}")


def _names(dataset: str, split: str) -> list[str]:
    """What a split may be called, with the ending of a format that is a file."""
    names = ["train"] if split == "train" else ["val", "test"]
    return [name + ".lmdb" for name in names] if dataset == "lmdb" else names


def find_split(dataset: str, root: str | Path, split: str) -> Path:
    """``train`` below an evaluation root, or its ``val`` (also named ``test``)."""
    if not Path(root).exists():
        raise UserError(f"{root} does not exist")
    names = _names(dataset, split)
    for name in names:
        if (Path(root) / name).exists():
            return Path(root) / name
    kind = "file" if dataset == "lmdb" else "folder"
    raise UserError(f"{root} has no {kind} {' or '.join(names)}; evaluation takes the folder that holds train and val")


def find_classifier_images(dataset: str, root: str | Path) -> Path:
    """What classifiers are trained on: ``clf`` where there is one, as in CW-RGP's ImageNet-100, else ``train``."""
    classifier = Path(root) / "clf"
    return classifier if classifier.is_dir() else find_split(dataset, root, "train")


def name_of_data(path: str) -> str:
    """What to call the data at a path: ``imagenet`` for ``/data/imagenet/train``."""
    parts = [part for part in Path(path).absolute().parts if part not in ("/", "train", "val", "test", "train.lmdb")]
    name = parts[-1] if parts else "data"
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)


def find_training(dataset: str, root: str | Path) -> str | Path:
    """The ``train`` below a root that has one; otherwise the root, which then is the training images themselves."""
    if dataset in OWN_SETS and any((Path(root) / name).exists() for name in ("train", "train.lmdb")):
        return find_split(dataset, root, "train")
    return root


def find_val_beside(dataset: str, train: str | Path) -> Path:
    """The ``val`` or ``test`` beside the training split."""
    names = _names(dataset, "test")
    for name in names:
        path = Path(train).resolve().parent / name
        if path.exists():
            return path
    raise UserError(f"no {' or '.join(names)} beside {train}: pass the validation images with --val_path")
