"""Decoded images in memory that all processes of a machine share, for data that is small and trained on for long."""

import fcntl
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .source import ImageSource, evenly_spread
from .views import Picture
from ..errors import UserError

_SHARED = Path("/dev/shm")  # where Linux has files that are memory
_CGROUP = Path("/sys/fs/cgroup")
_ALIGNED = 64
_SAMPLED = 64  # images whose size is looked at
_SHARE = 0.9  # of the free memory that may be used


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
        first = _aligned(8 + images * 24)
        os.ftruncate(self._file, first + limit)  # nothing is taken before it is written
        os.posix_fallocate(self._file, 0, first)
        # as a plain array, whose slices are made several times as fast
        self._bytes = np.asarray(np.memmap(self._path, dtype=np.uint8, mode="r+", shape=first + limit))
        self._used = self._bytes[:8].view(np.int64)
        self._table = self._bytes[8 : 8 + images * 24].view(np.int64).reshape(images, 3)  # start, height, width
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
        start, height, width = self._table[index].tolist()
        if not start:
            return None
        channels = int(self._bytes[start])
        pixels = self._bytes[start + _ALIGNED : start + _ALIGNED + height * width * channels]
        return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)

    def put(self, index: int, pixels: Tensor) -> None:
        """Keeps an image, (channels, h, w) uint8, if there is room."""
        channels, height, width = pixels.shape
        size = _aligned(_ALIGNED + pixels.numel())
        if self._full:
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            start = self._first + self.used
            self._full = self.used + size > self._limit
            if self._full or self._table[index, 0]:
                return
            os.posix_fallocate(self._file, start, size)  # to write where there is no memory left would end the process
            self._used[0] += size
        except OSError:
            self._full = True
            return
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._bytes[start] = channels
        target = self._bytes[start + _ALIGNED : start + _ALIGNED + pixels.numel()]
        target.reshape(height, width, channels)[...] = pixels.permute(1, 2, 0).numpy()
        self._table[index, 1:] = height, width
        self._table[index, 0] = start  # last: from here on others read it


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def memory_folder() -> Path:
    return _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())


def free_memory() -> int:
    """Bytes that shared memory can still take: of the machine, of the container, of the place where it lies."""
    status = os.statvfs(memory_folder())
    found = [status.f_bavail * status.f_frsize]
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(meminfo["MemAvailable"].split()[0]) * 1024)
        found.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError, KeyError):  # another system, or no bound
        pass
    return max(0, min(found))


def room_for(source: ImageSource) -> int:
    """The limit of a cache for all images of a source. Raises UserError where they do not fit."""
    few = evenly_spread(source, _SAMPLED)
    sizes = []
    for index in range(len(few)):
        try:
            with few.open(index) as opened:
                picture = Picture(opened, source.decoding)
                sizes.append(picture.width * picture.height * source.decoding.channels + 2 * _ALIGNED)
        except Exception:  # unreadable ones take no room
            continue
    needed, free = float(np.mean(sizes or [0])) * len(source), free_memory() * _SHARE
    if needed > free:
        raise UserError(
            f"--cache_images ram: the decoded images take about {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB of memory "
            f"can be had at {memory_folder()}"
        )
    return int(free)
