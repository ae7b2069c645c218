"""A source of one's own: ``--dataset my_module:MyImages``."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from .decoding import Opened
from .numbered import NumberedImages

EXPECTED = "MODULE:CLASS"


class OwnImages(NumberedImages):
    """Images of a class that the user wrote.

    It is made with the path, and needs ``__len__`` and ``open(index)``, which returns a Pillow image; in every worker
    the same index must give the same image. ``labels`` (class numbers, -1 for none), ``classes`` (their names),
    ``name(index)`` and ``relative_name(index)`` may be there, as in :class:`src.data.source.ImageSource`.

    Args:
        where: ``module:Class``; the module is looked for in the current folder too.
        path: what the class is made with.
    """

    def __init__(self, where: str, path: str) -> None:
        self._images = _class_at(where)(path)
        missing = [name for name in ("__len__", "open") if not callable(getattr(self._images, name, None))]
        if missing:
            raise UserError(f"--dataset {where}: the class has no {' and no '.join(missing)}")
        labels, classes = getattr(self._images, "labels", None), getattr(self._images, "classes", None)
        super().__init__(where, labels, len(self._images), classes)
        self.left_out = getattr(self._images, "left_out", ())

    @property
    def list_digest(self) -> None:
        """Not known: the images may have names."""
        return None

    def open(self, index: int) -> Opened:
        found: Opened = self._images.open(index)
        return found

    def name(self, index: int) -> str:
        name = getattr(self._images, "name", None)
        return str(name(index)) if callable(name) else super().name(index)

    def relative_name(self, index: int) -> str:
        name = getattr(self._images, "relative_name", None)
        return str(name(index)) if callable(name) else super().relative_name(index)


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
