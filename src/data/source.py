"""A list of images, and parts of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import UserError
from .decoding import Decoding, Opened
from .labels import UNLABELLED, Labels


class ImageSource(Protocol):
    """A list of images.

    Attributes:
        labels: class numbers from 0 on; -1 where there is none.
        classes: their names.
        decoding: how its images become levels.
        left_out: what was found at its place and is not among the images, in words.
    """

    classes: list[str]
    decoding: Decoding
    left_out: Sequence[str]

    @property
    def labels(self) -> Labels: ...

    def __len__(self) -> int: ...

    def open(self, index: int) -> Opened:
        """The image in its own mode, perhaps not decoded yet; a bad file raises an exception here or then."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...

    def relative_name(self, index: int) -> str:
        """The same without where the set lies, so that it stays when the set is moved."""
        ...


class Subset:
    """Some images of a source, by index."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self._source = source
        self._indices = indices if isinstance(indices, range) else np.asarray(indices, dtype=np.int64)
        labels = np.asarray(source.labels)
        self.labels: Labels = (
            labels[indices.start : indices.stop : indices.step]
            if isinstance(indices, range)
            else labels[self._indices]
        )
        self.classes, self.decoding, self.left_out = source.classes, source.decoding, source.left_out

    def __len__(self) -> int:
        return len(self._indices)

    def open(self, index: int) -> Opened:
        return self._source.open(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def relative_name(self, index: int) -> str:
        return self._source.relative_name(int(self._indices[index]))

    def read_ahead(self, images: Sequence[int], soon: Sequence[int]) -> None:
        theirs = ([int(self._indices[index]) for index in some] for some in (images, soon))
        read_ahead(self._source, *theirs)

    @property
    def storage_sizes(self) -> np.ndarray:
        return storage_sizes(self._source)

    @property
    def storage_ends(self) -> np.ndarray | None:
        ends = storage_ends(self._source)
        is_start = isinstance(self._indices, range) and self._indices == range(len(self))
        return np.minimum(ends, len(self)) if is_start and ends is not None else None


def read_ahead(source: ImageSource, images: Sequence[int], soon: Sequence[int] = ()) -> None:
    """Tells a source what will be opened next, in this process, if it wants to know; see ``ShardImages.read_ahead``."""
    told = getattr(source, "read_ahead", None)
    if told is not None:
        told(images, soon)


def storage_sizes(source: ImageSource) -> np.ndarray:
    """Bytes of all that is stored together on a server, such as a shard."""
    found: np.ndarray = getattr(source, "storage_sizes", np.zeros(0, dtype=np.int64))
    return found


def storage_ends(source: ImageSource) -> np.ndarray | None:
    """Where the images end that are stored together, such as in a shard; None where each is stored alone."""
    found: np.ndarray | None = getattr(source, "storage_ends", None)
    return found


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
    return Subset(source, np.arange(count) * len(source) // count)


def require_labels(source: ImageSource, where: str | Path) -> None:
    """Raises UserError for a source in which no image has a label."""
    if not (np.asarray(source.labels) != UNLABELLED).any():
        raise UserError(f"{where} has no class folders, and labels are needed here: expected {where}/CLASS/IMAGE")


def labelled(source: ImageSource) -> ImageSource:
    """The images with a label; the source itself where all have one."""
    indices = np.flatnonzero(np.asarray(source.labels) != UNLABELLED)
    if len(indices) == len(source):
        return source
    some = Subset(source, indices)
    some.left_out = [*source.left_out, f"{len(source) - len(indices)} without a label"]
    return some


class Relabelled(Subset):
    """All images of a source, with the class numbers of another one."""

    def __init__(self, source: ImageSource, classes: list[str]) -> None:
        super().__init__(source, range(len(source)))
        self.labels = _translation(source, classes)[np.asarray(source.labels)]
        self.classes = classes


def _translation(source: ImageSource, classes: Sequence[str]) -> np.ndarray:
    """A source's class number -> that in ``classes``; the last entry is -1's."""
    number = {name: label for label, name in enumerate(classes)}
    return np.array([*(number[name] for name in source.classes), UNLABELLED])


def unite_classes(sources: Sequence[ImageSource]) -> tuple[list[str], list[np.ndarray]]:
    """All classes, in the order in which the sources bring them, and for each source what its numbers become."""
    classes = list(dict.fromkeys(name for source in sources for name in source.classes))
    return classes, [_translation(source, classes) for source in sources]


def as_classes_of(train: ImageSource, test: ImageSource) -> ImageSource:
    """Test images with the class numbers of the training images, whose classes they may lack some of.

    Raises UserError for a test class that no training image has, and where there is one class only.
    """
    if len(train.classes) < 2:
        names = " ".join(train.classes)
        raise UserError(f"all training images have the same class ({names}): expected train/CLASS/IMAGE")
    unknown = [name for name in test.classes if name not in set(train.classes)]
    if unknown:
        raise UserError(
            f"{len(unknown)} of the {len(test.classes)} classes of the test images have no training images "
            f"(such as {unknown[0]})"
        )
    return test if list(test.classes) == list(train.classes) else Relabelled(test, train.classes)
