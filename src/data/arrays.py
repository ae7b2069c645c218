"""Images in one array: ``.npy``, HDF5 or Zarr."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .decoding import Opened, Stack, open_encoded
from .numbered import NumberedImages

ENDINGS = (".npy", ".h5", ".hdf5", ".zarr")
# What the arrays in a file are called where nobody says it
IMAGES = ("images", "image", "x", "X", "data")
LABELS = ("labels", "label", "y", "Y", "targets")


class ArrayImages(NumberedImages):
    """The images along the first axis of an array: (n, h, w), (n, h, w, c) or (n, c, h, w).

    In HDF5 and Zarr the array may also hold the content of image files, as byte strings or as arrays of uint8 of
    different lengths. Labels are another array of the file, or of ``x.labels.npy`` beside ``x.npy``. Values become
    levels by the rules for ``.npy`` files.

    Args:
        path: the file, or the folder of a Zarr store.
        images, labels: names of the arrays in it; "" looks for those of IMAGES and LABELS.
    """

    def __init__(self, path: str | Path, images: str = "", labels: str = "") -> None:
        self._file, self._array = str(path), images
        if not os.path.exists(self._file):
            raise UserError(f"{self._file} does not exist")
        if not self._file.lower().endswith(ENDINGS):
            raise UserError(f"{self._file}: expected {', '.join(ENDINGS)}")
        if self._is_npy and (images or labels):
            raise UserError(f"{self._file} holds one array, which has no name: leave out {images or labels}")
        try:
            file = _opened(self._file)
            self._array = "" if self._is_npy else _choose(self._file, file, images, IMAGES, required=True)
            array = self._images()
            beside = Path(self._file).with_suffix(".labels.npy")
            if self._is_npy:
                found = np.load(beside, allow_pickle=False) if beside.exists() else None
            else:
                name = _choose(self._file, file, labels, LABELS, required=False)
                found = np.asarray(file[name][:]) if name else None
        except (OSError, EOFError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read {self._file}: {first_line(error)}") from None
        if array.ndim not in (1, 3, 4):
            raise UserError(
                f"{self._file}: an array of shape {array.shape}, expected (n, h, w), (n, h, w, c) or (n, c, h, w)"
            )
        if found is not None and found.dtype == bool:
            found = found.astype(np.int32)
        super().__init__(self._file, found, array.shape[0])

    def open(self, index: int) -> Opened:
        found = self._images()[index]
        if isinstance(found, (bytes, np.bytes_)):
            return open_encoded(bytes(found))
        found = np.asarray(found)
        return open_encoded(found.tobytes()) if found.ndim == 1 else Stack(found)

    @property
    def _is_npy(self) -> bool:
        return self._file.lower().endswith(".npy")

    def _images(self) -> Any:
        file = _opened(self._file)
        return file if self._is_npy else file[self._array]


def _choose(path: str, file: Any, name: str, usual: Sequence[str], required: bool) -> str:
    there = [key for key in file if hasattr(file[key], "shape")]
    if name and name not in there:
        raise UserError(f"{path} has no array {name}; it has {', '.join(there) or 'none'}")
    found = name or next((one for one in usual if one in there), "")
    if required and not found:
        raise UserError(f"{path} has the arrays {', '.join(there) or 'none'}: say with --path_column which is the images")
    return found


# HDF5 wants a file to be opened anew in each process that was forked
_files: dict[str, tuple[int, Any]] = {}


def _opened(path: str) -> Any:
    owner, file = _files.get(path, (0, None))
    if owner != os.getpid():
        file = _open(path)
        _files[path] = (os.getpid(), file)
    return file


def _open(path: str) -> Any:
    if path.lower().endswith(".npy"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    try:
        if path.lower().endswith(".zarr"):
            import zarr

            return zarr.open_group(path, mode="r")
        import h5py

        return h5py.File(path, "r", locking=False)  # locks fail on some network file systems, and nobody writes
    except ImportError as error:
        raise UserError(f"{path} needs a package: pip install {error.name}") from None
