"""Files of a run that lines and points are added to; what a disk refuses does not end the run, and is said."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError


class Lines:
    """A text file that lines are appended to. A full disk, or a folder that was deleted, does not end the run.

    Args:
        path: of the file; opened now, and again when it is gone.
        complain: told once when writing begins to fail, and when it works again.

    Raises UserError if it cannot be opened to begin with.
    """

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        self.path, self._complain = path, complain
        self._failing = self._cut_off = False
        try:
            self._file = self._open()
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None

    def _open(self) -> FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(self.path, "a")

    def write(self, line: str) -> None:
        # a line that the disk has cut off stays one, and the next begins anew
        content = ("\n" * self._cut_off + line + "\n").encode(errors="backslashreplace")
        try:
            if not self.path.exists():
                self._complain(f"{self.path} is gone; it is begun anew")
                self._file.close()
                self._file = self._open()
            self._cut_off = self._file.write(content) < len(content)
            if self._cut_off:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._failing:
                self._complain(
                    f"cannot write {self.path}: {error.strerror}; the run goes on, lines are lost until it can"
                )
            self._failing = True
            return
        if self._failing:
            self._complain(f"{self.path} can be written again")
        self._failing = False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class Points:
    """TensorBoard's event files; what cannot be written is left out, and said once."""

    def __init__(self, folder: Path, complain: Callable[[str], None]) -> None:
        self.folder, self._complain = folder, complain
        if threading.excepthook is not _hook:
            threading.excepthook = _hook
        self._writer = self._open()

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(str(self.folder))

    def write(self, values: Mapping[str, float], step: int) -> None:
        def add(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._try(add)

    def picture(self, name: str, path: Path, step: int) -> None:
        def add(writer: Any) -> None:
            with Image.open(path) as picture:
                writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

        self._try(add)

    def _try(self, add: Callable[[Any], None]) -> None:
        if self._writer is None:
            return
        try:
            if not self.folder.exists():
                self._complain(f"{self.folder} is gone; it is begun anew")
                self._writer = self._open()
            add(self._writer)
        except Exception as error:  # its writing thread raises what it met, later
            self._complain(f"cannot write {self.folder}: {error}; the run goes on without it")
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()


_usual_hook = threading.excepthook


def _hook(arguments: "threading.ExceptHookArgs") -> None:
    """What a thread of TensorBoard met is raised again by its next write, and needs no traceback here."""
    if not type(arguments.thread).__module__.startswith("tensorboard."):
        _usual_hook(arguments)
