"""Images that have numbers, but no names."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .decoding import Decoding
from .labels import UNLABELLED


class NumberedImages:
    """The part of a source that is about its labels and names.

    Args:
        path: where the images are.
        labels: (n,) whole numbers, -1 for none; None where there are none at all.
        count: n.
        classes: names of the classes; None numbers them.
    """

    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __init__(self, path: str, labels: Any, count: int, classes: Sequence[str] | None = None) -> None:
        if not count:
            raise UserError(f"there are no images in {path}")
        self.path = path
        found = np.full(count, UNLABELLED) if labels is None else np.asarray(labels)
        if found.shape != (count,) or found.dtype.kind not in "iu":
            raise UserError(
                f"{path}: labels of the type {found.dtype} and shape {found.shape}, expected whole numbers, one for "
                f"each of {count} images"
            )
        self.labels = found.astype(np.int32)
        highest = int(self.labels.max())
        self.classes = [str(name) for name in (range(highest + 1) if classes is None else classes)]
        if self.labels.min() < UNLABELLED or highest >= len(self.classes):
            raise UserError(f"{path}: labels must be -1 or below {len(self.classes)}, the number of classes")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"

    def relative_name(self, index: int) -> str:
        return str(index)

    @property
    def list_digest(self) -> str | None:
        return hashlib.sha256(self.labels.tobytes()).hexdigest()[:16]
