"""Which folder or file is which split, told by its name."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from . import arrays, lists
from .source import ImageSource


# Kinds of data whose path is one split
OWN_KINDS = ("folder", "list", "lmdb", "webdataset", "array", "hf", "in100")
# What folders of splits are called
TRAINING = frozenset({"train", "training", "trainset", "train_set"})
_SPLITS = TRAINING | {
    *("val", "valid", "validation", "valset", "val_set", "dev", "eval", "test", "testing", "testset", "test_set"),
    *("unlabeled", "unlabelled", "extra"),
}


def is_own(dataset: str) -> bool:
    """Whether the path to this kind of data is one split, and not the root of a set that knows its splits."""
    return dataset in OWN_KINDS or ":" in dataset


def refuse_splits(source: ImageSource, path: str | Path) -> None:
    """Raises UserError where the "classes" are splits: the folder above the training images is a likely slip."""
    names = {name.lower(): name for name in source.classes}
    if len(names) > 1 and names.keys() <= _SPLITS and names.keys() & TRAINING:
        train = next(names[name] for name in sorted(names) if name in TRAINING)
        raise UserError(
            f"{path} holds {' and '.join(source.classes)}, which are splits and no classes; pre-training takes the "
            f"training folder: {Path(path) / train}"
        )


def require_apart(results: str | Path, images: str | Path) -> None:
    """Raises UserError where results, pictures among them, would be taken for images the next time."""
    if Path(images).is_dir() and Path(results).resolve().is_relative_to(Path(images).resolve()):
        raise UserError(f"the results would lie among the images of {images}: choose another --dump_path")


def _names(dataset: str, split: str) -> list[str]:
    """What a split may be called, with the ending of a format that is a file."""
    names = ["train"] if split == "train" else ["val", "test"]

    def ending(endings: Sequence[str]) -> list[str]:
        return [name + one for name in names for one in endings]

    kinds = {
        "folder": [*names, *ending(lists.ENDINGS)],
        "list": ending(lists.ENDINGS),
        "array": ending(arrays.ENDINGS),
        "lmdb": ending([".lmdb"]),
        "hf": [*names, *(["validation"] if split == "test" else [])],
    }
    return kinds.get(dataset, names)


def find_split(dataset: str, root: str | Path, split: str) -> Path:
    """``train`` below an evaluation root, or its ``val`` (also named ``test``)."""
    if not Path(root).exists():
        raise UserError(f"{root} does not exist")
    names = _names(dataset, split)
    for name in names:
        if (Path(root) / name).exists():
            return Path(root) / name
    kind = {"lmdb": "file", "array": "file", "list": "list"}.get(dataset, "folder")
    shown = names[:2] if kind == "folder" and split == "test" else names[:1] if kind == "folder" else names
    raise UserError(f"{root} has no {kind} {' or '.join(shown)}; evaluation takes the folder that holds train and val")


def find_classifier_images(dataset: str, root: str | Path) -> Path:
    """What classifiers are trained on: ``clf`` where there is one, as in CW-RGP's ImageNet-100, else ``train``."""
    classifier = Path(root) / "clf"
    return classifier if classifier.is_dir() else find_split(dataset, root, "train")


def name_of_data(path: str) -> str:
    """What to call the data at a path: ``imagenet`` for ``/data/imagenet/train``."""
    path = path.removesuffix(Path(path).suffix) if lists.is_list(path) else path
    parts = [part for part in Path(path).absolute().parts if part not in ("/", "train", "val", "test", "train.lmdb")]
    name = parts[-1] if parts else "data"
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)


def find_training(dataset: str, root: str | Path) -> str | Path:
    """The ``train`` below a root that has one; otherwise the root, which then is the training images themselves."""
    if is_own(dataset) and any((Path(root) / name).exists() for name in _names(dataset, "train")):
        return find_split(dataset, root, "train")
    return root


def find_val_beside(dataset: str, train: str | Path) -> Path:
    """The ``val`` or ``test`` beside the training split."""
    names = _names(dataset, "test")
    for name in names:
        path = Path(os.path.abspath(train)).parent / name  # as it was given: not where a link leads
        if path.exists():
            return path
    raise UserError(f"no {' or '.join(names)} beside {train}: pass the validation images with --val_path")
