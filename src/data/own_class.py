"""A source of one's own: ``--dataset my_module:MyImages``."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .decoding import Decoding, Opened
from .labels import UNLABELLED

EXPECTED = "MODULE:CLASS"


class OwnImages:
    """Images of a class that the user wrote.

    It is made with the path, and needs ``__len__`` and ``open(index)``, which returns a Pillow image; in every worker
    the same index must give the same image. ``labels`` (class numbers, -1 for none), ``classes`` (their names),
    ``name(index)`` and ``relative_name(index)`` may be there, as in :class:`src.data.source.ImageSource`.

    Args:
        where: ``module:Class``; the module is looked for in the current folder too.
        path: what the class is made with.
    """

    decoding = Decoding()

    def __init__(self, where: str, path: str) -> None:
        self._where = where
        self._images = _class_at(where)(path)
        missing = [name for name in ("__len__", "open") if not callable(getattr(self._images, name, None))]
        if missing:
            raise UserError(f"--dataset {where}: the class has no {' and no '.join(missing)}")
        if not len(self._images):
            raise UserError(f"--dataset {where}: there are no images at {path}")
        labels = getattr(self._images, "labels", None)
        self.labels = np.asarray([UNLABELLED] * len(self._images) if labels is None else labels)
        if self.labels.shape != (len(self._images),) or self.labels.dtype.kind not in "iu":
            raise UserError(f"--dataset {where}: labels must be whole numbers, one for each of {len(self)} images")
        names = getattr(self._images, "classes", None)
        highest = int(self.labels.max())
        self.classes = [str(name) for name in (range(highest + 1) if names is None else names)]
        if self.labels.min() < UNLABELLED or highest >= len(self.classes):
            raise UserError(f"--dataset {where}: labels must be -1 or below {len(self.classes)}, the number of classes")
        self.left_out: Sequence[str] = getattr(self._images, "left_out", ())

    def __len__(self) -> int:
        return len(self._images)

    def open(self, index: int) -> Opened:
        found: Opened = self._images.open(index)
        return found

    def name(self, index: int) -> str:
        name = getattr(self._images, "name", None)
        return str(name(index)) if callable(name) else f"{self._where}[{index}]"

    def relative_name(self, index: int) -> str:
        name = getattr(self._images, "relative_name", None)
        return str(name(index)) if callable(name) else str(index)


def _class_at(where: str) -> Callable[[str], Any]:
    module, _, name = where.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UserError(f"--dataset {where}: there is no module {error.name}") from None
    if not callable(found):
        raise UserError(f"--dataset {where}: {module} has no class {name}")
    return found
