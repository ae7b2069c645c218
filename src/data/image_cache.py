"""Decoded images in memory that all processes of a machine share, for data that is small and trained on for long."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .source import ImageSource, evenly_spread
from .views import Picture

_SHARED = Path("/dev/shm")  # where Linux has files that are memory
_CGROUP = Path("/sys/fs/cgroup")
_ALIGNED = 64
_SAMPLED = 64  # images whose size is looked at
SHARE = 0.9  # of the free memory that may be used


class ImageCache:
    """Decoded images at full scale, each kept by the process that decodes it first.

    Args:
        name: under which the processes of a machine find the same memory.
        images: how many there can be.
        limit: bytes that they may take. What comes later is not kept.
    """

    def __init__(self, name: str, images: int, limit: int) -> None:
        self._path = memory_folder() / name
        self._limit = limit
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        first = _aligned(8 + images * 32)
        os.ftruncate(self._file, first + limit)  # nothing is taken before it is written
        os.posix_fallocate(self._file, 0, first)
        # as a plain array, whose slices are made several times as fast
        self._bytes = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r+", shape=first + limit))
        self._used = self._bytes[:8].view(np.int64)
        # start, channels, height, width
        self._table = self._bytes[8 : 8 + images * 32].view(np.int64).reshape(images, 4)
        self._first, self._full = first, False

    def forget_name(self) -> None:
        """To be called when all processes have it: the memory is then freed with the last of them, however it ends."""
        self._path.unlink(missing_ok=True)

    @property
    def used(self) -> int:
        """Bytes that the images take."""
        return int(self._used[0])

    def get(self, index: int) -> Tensor | None:
        """(channels, h, w) uint8, in memory that must not be changed; None where the image is not there."""
        start, channels, height, width = self._table[index].tolist()
        if not start:
            return None
        pixels = self._bytes[start : start + channels * height * width]
        return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)

    def put(self, index: int, pixels: Tensor) -> None:
        """Keeps an image, (channels, h, w) uint8, if there is room."""
        channels, height, width = pixels.shape
        size = pixels.numel()
        with contextlib.suppress(OSError):  # no memory is left, or no lock can be had
            start = 0 if self._full else self._take(index, _aligned(size))
            if start:
                self._bytes[start : start + size].reshape(height, width, channels)[...] = pixels.permute(1, 2, 0).numpy()
                self._table[index, 1:] = channels, height, width
                with self._alone():  # what was written is seen before where it is
                    self._table[index, 0] = start

    def _take(self, index: int, size: int) -> int:
        """The start of so many bytes for an image; 0 if it is there, or there is no room."""
        with self._alone():
            start = self._first + self.used
            self._full = self.used + size > self._limit
            if self._full or self._table[index, 0]:
                return 0
            os.posix_fallocate(self._file, start, size)  # to write where there is no memory left would end the process
            self._used[0] += size
        return start

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def memory_folder() -> Path:
    return _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())


def free_memory() -> int:
    """Bytes that shared memory can still take: of the machine, of the container or job, of the place where it lies."""
    status = os.statvfs(memory_folder())
    found = [status.f_bavail * status.f_frsize]
    with contextlib.suppress(OSError, ValueError, KeyError):  # another system
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(meminfo["MemAvailable"].split()[0]) * 1024)
    for folder in _control_groups():
        with contextlib.suppress(OSError, ValueError, KeyError):  # no bound here
            found.append(_left_in(folder))
    return max(0, min(found))


def _control_groups() -> list[Path]:
    """The folders of this process's control groups of memory (versions 1 and 2), from the innermost outwards."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, ValueError):
        return []
    found = []
    for _, controllers, path in lines:
        if controllers in ("", "memory"):
            root = _CGROUP / controllers
            inner = root / path.lstrip("/")
            found += [inner, *(parent for parent in inner.parents if parent.is_relative_to(root)), root]
    return list(dict.fromkeys(found))


def _left_in(group: Path) -> int:
    """Bytes below the bound of a control group; what it has of files can be taken back."""
    new = (group / "memory.max").exists()
    bound, used = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    files = int(statistics["inactive_file" if new else "total_inactive_file"])
    return int((group / bound).read_text()) - int((group / used).read_text()) + files


def bytes_decoded(source: ImageSource) -> int:
    """About how much all images of a source take, by the sizes of a few."""
    few = evenly_spread(source, _SAMPLED)
    sizes = []
    for index in range(len(few)):
        with contextlib.suppress(Exception), few.open(index) as opened:  # unreadable ones take no room
            picture = Picture(opened, source.decoding)
            sizes.append(_aligned(picture.width * picture.height * source.decoding.channels))
    return int(np.mean(sizes or [0]) * len(source))
