"""Images in one LMDB file: encoded bytes by index, in a memory map that all workers of a machine share.

Written by ``scripts/make_lmdb.py``. The file holds, besides the images (keys ``00000000``, ``00000001``, ...),

============  ====================================================================================
``__meta__``  JSON: format, number of images, class names; written last, so an unfinished file has none
``__labels__``  int64, little-endian, one for each image
``__names__``   the images' paths, UTF-8, one a line
============  ====================================================================================
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .decoding import Decoding, Opened, open_encoded
from .packed import PackedStrings, list_digest

FORMAT = "ssl-vision-lmdb/1"


def import_lmdb() -> Any:
    """The optional dependency; raises UserError where it is missing."""
    try:
        import lmdb
    except ImportError:
        raise UserError("--dataset lmdb needs a package: pip install lmdb") from None
    return lmdb


def image_key(index: int) -> bytes:
    return b"%08d" % index


class LMDBImages:
    """The images of an LMDB file, in the order of their source."""

    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        import_lmdb()
        if not os.path.exists(self.path):
            raise UserError(f"{self.path} does not exist")
        try:
            meta = self._get(b"__meta__")
        except OSError as error:
            raise UserError(f"{self.path}: {error}") from None
        if meta is None:
            _environments.pop(self.path)[1].close()  # so that a writer of this process may go on with it
            raise UserError(f"{self.path} holds no finished image set; run scripts/make_lmdb.py again to finish it")
        try:
            description = json.loads(meta)
            found = description["format"]
            self.classes: list[str] = [str(name) for name in description["classes"]]
            self.labels: np.ndarray = np.frombuffer(self._get(b"__labels__") or b"", dtype="<i8")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is damaged: its description cannot be read ({type(error).__name__})") from None
        if found != FORMAT:
            raise UserError(f"{self.path} has the format {found!r}, expected {FORMAT!r}")
        in_range = (self.labels >= -1) & (self.labels < len(self.classes))
        if len(self.labels) != description.get("images") or not in_range.all():
            raise UserError(f"{self.path} is damaged: its labels are not those of its images and classes")
        self._names: PackedStrings | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Opened:
        encoded = self._get(image_key(index))
        if encoded is None:
            raise OSError("not in the LMDB file")
        return open_encoded(encoded)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else f"image {index}"

    @property
    def names(self) -> PackedStrings:
        if self._names is None:
            self._names = PackedStrings.of_lines(np.frombuffer(self._get(b"__names__") or b"", dtype=np.uint8))
        return self._names

    @property
    def list_digest(self) -> str | None:
        return list_digest(self.names, self.labels) if len(self.names) == len(self.labels) else None

    def _get(self, key: bytes) -> bytes | None:
        lmdb = import_lmdb()
        try:
            with _environment(self.path).begin() as transaction:
                value = transaction.get(key)
        except lmdb.Error as error:
            raise OSError(f"the LMDB file is damaged: {error}") from None
        return None if value is None else bytes(value)


# LMDB wants a file to be opened once in each process, and again in each that was forked from it.
_environments: dict[str, tuple[int, Any]] = {}


def _environment(path: str) -> Any:
    owner, environment = _environments.get(path, (0, None))
    if owner == os.getpid():
        return environment
    if environment is not None:
        environment.close()  # the parent's, of which this process has a copy
    lmdb = import_lmdb()
    try:
        environment = lmdb.open(
            path, subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0, max_readers=1024
        )
    except lmdb.Error as error:
        raise UserError(f"{path} is not a readable LMDB file: {error}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if os.path.getsize(path) < needed:  # reading what is not there would kill the process
        environment.close()
        raise UserError(f"{path} is cut off: {os.path.getsize(path):,} of {needed:,} bytes")
    _environments[path] = (os.getpid(), environment)
    return environment
