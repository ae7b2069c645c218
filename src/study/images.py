"""The images of a study: those that are trained on, and those that networks are judged by."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.datasets import IMAGENET_MEAN, IMAGENET_STD, check_channels, open_images, usual
from ..data.decoding import Decoding
from ..data.labels import UNLABELLED
from ..data.source import ImageSource, Subset, as_classes_of, evenly_spread, labelled
from ..data.splits import TRAINING, find_training, find_val_beside, is_own, require_apart
from ..errors import UserError
from .settings import StudyDataSettings

HELD_OUT = 5  # without test images, one of so many of a class is held out: trained on, but no neighbour


@dataclass(frozen=True)
class StudyImages:
    """What a study looks at.

    Attributes:
        train: all that is trained on; ``path`` is where they lie.
        watched: what trainings are told to look at; "" where they find it themselves.
        learnt, test: labelled ones for classifiers to learn from, and to be judged by; None without labels.
        scored: for the scores without labels.
        seen: as ``scored``, of the training images.
        is_tested_beside: whether test images are a folder of their own.
        mean, std: of the channels.
        words: one line that says what they are.
    """

    path: str
    watched: str
    train: ImageSource
    learnt: ImageSource | None
    test: ImageSource | None
    scored: ImageSource
    seen: ImageSource
    is_tested_beside: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: str

    def to_tune_by(self) -> tuple[ImageSource | None, ImageSource | None]:
        """As ``learnt`` and ``test``, of ``learnt`` alone. Raises UserError where its classes are too small."""
        return (None, None) if self.learnt is None else _held_out(self.learnt, "use one rate in --rates")


def open_study_images(data: StudyDataSettings, channels: int, folder: Path, judged: int, scored: int) -> StudyImages:
    """Opens them; raises UserError where there are none, or too few of a class to be judged by."""
    mean, std = data.mean or usual(channels, IMAGENET_MEAN, 0.5), data.std or usual(channels, IMAGENET_STD, 0.25)
    check_channels(mean, std, channels)
    exif = True if data.exif_orientation is None else data.exif_orientation
    how = data.how(Decoding(exif, data.value_range, channels), folder)
    if not is_own(data.dataset):
        raise UserError("a study takes images of your own: a folder, list, array or shards")
    found = find_training(data.dataset, data.data_path)
    path = str(Path(found).absolute()) if Path(found).exists() else str(found)  # a URL stays what it is
    within = find_training(data.dataset, path)  # the training scripts look, too
    if str(within) != path:
        raise UserError(f"{path} holds {Path(within).name}, which the training scripts take for the training images")
    require_apart(folder, path)
    train = open_images(data.dataset, path, "train", how)
    if not len(train):
        raise UserError(f"there are no images at {path}")
    is_split = str(found) != str(data.data_path) or Path(path).stem.lower() in TRAINING
    sibling = _beside(data.dataset, path)
    place = sibling if is_split else None
    if place is not None:
        require_apart(folder, place)
    beside = open_images(data.dataset, place, "test", how) if place is not None else None
    learnt, test = _labelled(train, beside) if data.labels else (None, None)
    is_tested_beside = test is not None and beside is not None and _has_labels(beside)
    words = f"{len(train):,} training images"
    if learnt is not None and test is not None:
        classes = [learnt.classes[number] for number in _occurring(learnt)]
        first = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        words += f" of {len(classes)} classes ({first}); {len(test):,} test images "
        words += "of their own" if is_tested_beside else "among them, held out from the classifiers"
        learnt = evenly_spread(learnt, judged)
    looked = evenly_spread(train if beside is None else beside, scored)
    seen = evenly_spread(train, scored)
    watched = path if sibling is not None and not is_split else ""  # what is called test there may be anything
    return StudyImages(path, watched, train, learnt, test, looked, seen, is_tested_beside, mean, std, words)


def _beside(dataset: str, path: str) -> Path | None:
    """Where the test images are that belong to a training split."""
    try:
        return find_val_beside(dataset, path)
    except UserError:
        return None


def _has_labels(images: ImageSource) -> bool:
    return len(_occurring(images)) > 0


def _occurring(images: ImageSource) -> np.ndarray:
    """Numbers of the classes that have images: labels that are numbers may leave many out."""
    labels = np.unique(np.asarray(images.labels))
    return labels[labels != UNLABELLED]


def _labelled(train: ImageSource, beside: ImageSource | None) -> tuple[ImageSource | None, ImageSource | None]:
    """Labelled images to learn from and to be judged by."""
    if len(_occurring(train)) < 2:
        return None, None
    if beside is not None and _has_labels(beside):
        return labelled(train), as_classes_of(train, labelled(beside))
    return _held_out(labelled(train), "give test images (val beside train), or --labels false")


def _held_out(images: ImageSource, otherwise: str) -> tuple[ImageSource, ImageSource]:
    """All but every HELD_OUT-th image of each class, and those, in an order that is drawn once for all.

    Raises UserError, which says what to do ``otherwise``, where no class has so many.
    """
    labels = np.asarray(images.labels)
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class
    starts = np.searchsorted(labels[order], labels[order])
    is_held = (np.arange(len(order)) - starts) % HELD_OUT == HELD_OUT - 1
    if not is_held.any():
        raise UserError(f"no class has {HELD_OUT} images, of which one could be held out to judge by: {otherwise}")
    return Subset(images, np.sort(order[~is_held])), Subset(images, np.sort(order[is_held]))
