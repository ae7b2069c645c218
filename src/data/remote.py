"""Bytes from object stores and web servers, through fsspec: ``https://``, ``s3://``, ``gs://`` and what else it knows."""

import hashlib
import io
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from ..errors import UserError, first_line

T = TypeVar("T")

AT_ONCE = 16  # parts that a process asks for at the same time
TRIES = 6
FIRST_PAUSE = 0.5  # seconds; each one is twice as long as the one before, give or take half
_EXTRA = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface-hub"}


def is_remote(path: str) -> bool:
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises UserError where a package is missing."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError:
        raise UserError(f"{protocol}:// needs a package: pip install {_EXTRA.get(protocol, protocol)}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    return found


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """The content of a file, or ``size`` bytes of it from ``start`` on.

    What fails is tried again, after longer and longer pauses. A file that is not there raises FileNotFoundError; one
    that cannot be had after TRIES tries raises UserError, since going on without it would give other numbers.
    """
    system, path = file_system(url)
    end = None if size is None else start + size

    def read_once() -> bytes:
        content: bytes = system.cat_file(path, start=start or (None if size is None else 0), end=end)
        if size is not None and len(content) > size:
            raise UserError(f"{url}: this server sends whole files only, where parts of them are needed")
        if size is not None and len(content) < size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    return _tried(url, read_once)


def state(url: str) -> tuple[int, int]:
    """What tells whether a file has changed, as a number, and its size in bytes; fails as :func:`read` does."""
    system, path = file_system(url)
    found = _tried(url, lambda: system.info(path))
    if found.get("size") is None:
        raise UserError(f"{url}: the server does not say how large the file is")
    signs = [str(found.get(key)) for key in ("ETag", "etag", "LastModified", "mtime", "updated", "size")]
    return int(hashlib.sha256("\0".join(signs).encode()).hexdigest()[:15], 16), int(found["size"])


def _tried(url: str, call: Callable[[], T]) -> T:
    for left in reversed(range(TRIES)):
        try:
            return call()
        except UserError:
            raise
        except FileNotFoundError as error:
            if not _is_other_trouble(error.__cause__):
                raise
            problem = first_line(error)
        except PermissionError as error:
            raise UserError(f"{url}: permission denied ({first_line(error)})") from None
        except Exception as error:  # each file system has errors of its own
            problem = first_line(error)
        if left:
            time.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - left) * random.uniform(0.5, 1.5))
    raise UserError(f"{url} could not be read in {TRIES} tries: {problem}")


def _is_other_trouble(cause: BaseException | None) -> bool:
    """Whether a file that is said to be missing may well be there: fsspec says so of whatever a web server refuses."""
    return type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", None) not in (404, 410)


class RemoteFile(io.RawIOBase):
    """A file on a server that is read from any place, part by part: for readers that want a file.

    Args:
        url: of the file.
        size: in bytes.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._place = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._place))
        if size:
            buffer[:size] = read(self._url, self._place, size)
            self._place += size
        return size


class Part(NamedTuple):
    """Some bytes of a file on a server; all of it without a size."""

    url: str
    start: int = 0
    size: int | None = None


class ReadAhead:
    """Reads parts of files, and those of a batch that it is told of at once: the time is that of the slowest one."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0
        self._under_way: dict[Part, Future[bytes]] = {}

    def announce(self, parts: Iterable[Part]) -> None:
        """Starts to read parts, which :meth:`read` then finds; those of the batch before are forgotten."""
        for forgotten in self._under_way.values():
            forgotten.cancel()
        wanted = list(parts)
        if wanted and (self._pool is None or self._owner != os.getpid()):  # threads do not follow into loader processes
            self._pool, self._owner = ThreadPoolExecutor(AT_ONCE, "read-ahead"), os.getpid()
        self._under_way = {part: self._pool.submit(read, *part) for part in wanted if self._pool}

    def read(self, part: Part) -> bytes:
        """Fails as :func:`read` does."""
        under_way = self._under_way.pop(part, None)
        return read(*part) if under_way is None else under_way.result()
