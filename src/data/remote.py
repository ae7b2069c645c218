"""Bytes from object stores and web servers, through fsspec: ``https://``, ``s3://``, ``gs://`` and what else it knows."""

import hashlib
import io
import os
import queue
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, NamedTuple, TypeVar

from ..errors import UserError, first_line

S = TypeVar("S")
T = TypeVar("T")

AT_ONCE = 16  # parts that a process asks for at the same time
TRIES = 6
FIRST_PAUSE = 0.5  # seconds; each one is twice as long as the one before, give or take half
SILENCE = 60.0  # seconds after which a web server that says nothing is given up
_EXTRA = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface-hub"}
# What tells versions of a file apart, under the names that file systems have for it
_SIGNS = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "generation", "VersionId", "blob_id", "lastCommit")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified")


class WholeFilesOnly(UserError):
    """The server sends files from the beginning to the end, and no parts of them."""


def is_remote(path: str) -> bool:
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises UserError where a package is missing."""
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE)}
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except ImportError:
        raise UserError(f"{protocol}:// needs a package: pip install {_EXTRA.get(protocol, protocol)}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    return found


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """The content of a file; with a size, so many bytes of it from ``start`` on.

    What fails is tried again, after longer and longer pauses. A file that is not there raises FileNotFoundError; one
    that cannot be had after TRIES tries raises UserError, since going on without it would give other numbers.
    """
    if size == 0:  # there is no way to ask for it
        return b""
    system, path = file_system(url)
    bounds = {} if size is None else {"start": start, "end": start + size}

    def read_once() -> bytes:
        content: bytes = system.cat_file(path, **bounds)
        if size is not None and len(content) > size:
            raise WholeFilesOnly(f"{url}: this server sends whole files only, where parts of them are needed")
        if size is not None and len(content) < size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    return _tried(url, read_once)


def copy_whole(url: str, target: BinaryIO) -> None:
    """Writes a file from its beginning to its end, for servers that cannot do more; fails as :func:`read` does."""
    system, path = file_system(url)
    options = {"block_size": 0} if url.startswith("http") else {}

    def copy_once() -> None:
        target.seek(0)
        target.truncate()
        with system.open(path, "rb", **options) as source:
            shutil.copyfileobj(source, target, 1 << 20)

    _tried(url, copy_once)


class State(NamedTuple):
    """What a server says about a file.

    Attributes:
        version: changes when the file does; 0 where the server says nothing that would tell.
        size: in bytes.
        changed: when it was changed last, in seconds since 1970; None where the server does not say.
    """

    version: int
    size: int
    changed: float | None


def state(url: str) -> State:
    """Fails as :func:`read` does; raises WholeFilesOnly where the server does not tell the size."""
    system, path = file_system(url)
    found = _tried(url, lambda: system.info(path))
    if found.get("size") is None:
        raise WholeFilesOnly(f"{url}: the server does not say how large the file is")
    signs = {name: str(found[name]) for name in (*_SIGNS, *_TIMES) if found.get(name) is not None}
    text = "\0".join([*sorted(signs.values()), str(found["size"])])
    version = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16) if signs else 0
    time_of = next((found[name] for name in _TIMES if found.get(name) is not None), None)
    return State(version, int(found["size"]), _seconds(time_of))


def _seconds(when: Any) -> float | None:
    try:
        if isinstance(when, str):
            when = datetime.fromisoformat(when) if when[:4].isdigit() else parsedate_to_datetime(when)
        return float(when.timestamp() if isinstance(when, datetime) else when)
    except (TypeError, ValueError):
        return None


def _tried(url: str, call: Callable[[], T]) -> T:
    for left in reversed(range(TRIES)):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own
            _raise_if_final(url, error)
            problem = first_line(error)
        if left:
            time.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - left) * random.uniform(0.5, 1.5))
    raise UserError(f"{url} could not be read in {TRIES} tries: {problem}")


def _raise_if_final(url: str, error: Exception) -> None:
    """Raises FileNotFoundError or UserError for what another try would not change.

    fsspec calls missing whatever a web server does not answer well, and tells the reason as the error's cause.
    """
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        if status in (404, 410):
            raise FileNotFoundError(url) from None
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise UserError(f"{url}: refused by the server ({status})") from None
    elif isinstance(error, PermissionError):
        raise UserError(f"{url}: permission denied ({first_line(error)})") from None
    elif isinstance(error, FileNotFoundError):
        # without a status a connection failed, unless the file system says itself that the file is missing
        if not (isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp")):
            raise error


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


class Crew:
    """Threads that work for one process, and that its end does not wait for, as it would for a ThreadPoolExecutor's."""

    def __init__(self, size: int = AT_ONCE) -> None:
        self.owner, self._size = os.getpid(), size
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        for _ in range(size):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        self._tasks.put((future, call))
        return future

    def close(self) -> None:
        """Ends the threads, each after what it is at."""
        for _ in range(self._size):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)


def in_parallel(call: Callable[[S], T], items: Sequence[S]) -> Iterable[T]:
    """``call`` of each, in order: servers answer many as fast as one. The first failure ends it."""
    crew = Crew(min(AT_ONCE, max(1, len(items))))
    futures = [crew.submit(lambda item=item: call(item)) for item in items]  # type: ignore[misc]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        crew.close()


class Part(NamedTuple):
    """Some bytes of a file on a server; all of it without a size."""

    url: str
    start: int = 0
    size: int | None = None


class ReadAhead:
    """Reads parts of files, and those of a batch that it is told of at once: the time is that of the slowest one."""

    def __init__(self) -> None:
        self._crew: Crew | None = None
        self._under_way: dict[Part, Future[bytes]] = {}

    def announce(self, parts: Iterable[Part]) -> None:
        """Starts to read parts, which :meth:`read` then finds; those of the batch before are forgotten."""
        for forgotten in self._under_way.values():
            forgotten.cancel()
        self._under_way = {}
        for part in parts:
            if self._crew is None or self._crew.owner != os.getpid():  # threads do not follow into loader processes
                self._crew = Crew()
            self._under_way[part] = self._crew.submit(lambda part=part: read(*part))  # type: ignore[misc]

    def read(self, part: Part) -> bytes:
        """Fails as :func:`read` does."""
        under_way = self._under_way.pop(part, None)
        return read(*part) if under_way is None else under_way.result()
