"""Copies of shards on the local disk, for all processes of a machine, within a bound."""

import contextlib
import fcntl
import functools
import hashlib
import os
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from . import remote
from ..errors import UserError, first_line

_CHUNK = 16 << 20  # bytes that are asked for at a time
_LOCK, _FILLING = "lock", "filling"
_IDLE = 24 * 3600.0  # seconds after which a copy that nobody has read is nobody's


class RemoteShard(NamedTuple):
    """A shard on a server, with its size in bytes and what else :class:`remote.State` says."""

    url: str
    size: int
    version: int = 0
    changed: float | None = None

    @classmethod
    def now(cls, url: str) -> "RemoteShard":
        """As it is on the server; fails as :func:`remote.state` does."""
        version, size, changed = remote.state(url)
        return cls(url, size, version, changed)


class ShardCache:
    """A folder of copies. Those that were not used for longest go when there is no room for another.

    Of a fetch that was killed the part that came is kept and continued.

    Args:
        folder: of the copies; on a disk of this machine, as processes exclude one another by locks on its files.
        limit: bytes that all copies together may take; None for any number.

    Attributes:
        full: whether there was no room for the last shard that was to be fetched.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        self.full = False
        self._fetcher: _Fetcher | None = None

    def place(self, shard: RemoteShard) -> Path:
        """Where the copy is, if there is one. With a limit its name depends on the shard's version."""
        name = name_of_copy(shard.url)
        # file names have at most 255 bytes, and URLs may differ in what was replaced
        return self.folder / (name if self.limit is None else f"{name[-150:]}.{_digest(shard)}")

    def read(self, shard: RemoteShard, start: int, size: int) -> bytes | None:
        """Bytes of the copy; None where there is none."""
        try:
            with open(self.place(shard), "rb") as file:
                with contextlib.suppress(OSError):  # another user's
                    os.utime(file.fileno())  # what was used last stays
                file.seek(start)
                content = file.read(size)
        except OSError:
            return None
        return content if len(content) == size else None

    def fetch(
        self, shard: RemoteShard, keep: Collection[str] = (), *, wait: bool = True, idle_for: float = 0.0
    ) -> bool:
        """Makes the copy, if there is none yet; returns whether there is one now.

        Args:
            shard: which one.
            keep: names of copies that must not go to make room.
            wait: until another process that is at it has done it.
            idle_for: copies that were used in these last seconds must not go either.

        Raises UserError where it cannot be had, and OSError where the disk refuses.
        """
        target = self.place(shard)
        if target.exists():
            return True
        if self.limit is not None and shard.size > self.limit:
            self.full = True
            return False
        part = self.folder / f"{target.name[-180:]}.{_digest(shard)}.{shard.size}.part"
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(part, wait) as file:
            if file is None:
                return target.exists()
            if target.exists():  # another process was faster
                part.unlink()
                return True
            self.full = not self._make_room(keep, part, idle_for)
            if self.full:
                part.unlink()
                return False
            for start in range(file.seek(0, os.SEEK_END), shard.size, _CHUNK):
                file.write(remote.read(shard.url, start, min(_CHUNK, shard.size - start)))
                file.flush()
            os.fsync(file.fileno())
            if RemoteShard.now(shard.url) != shard:
                part.unlink()
                raise UserError(f"{shard.url} was changed while it was copied")
            os.replace(part, target)
        return True

    def want(self, whose: object, shards: Sequence[RemoteShard], keep: Collection[str], *, fill: bool = False) -> None:
        """Has shards fetched beside the training, one after the other, instead of those that were wanted before.

        Args:
            whose: wishes these are; several sources may share the cache.
            shards: in the order in which they are needed.
            keep: names of copies that must not go for them, nor for others' wishes.
            fill: only into room that is free or idle, and only one process of the machine at a time.
        """
        if self._fetcher is None or self._fetcher.owner != os.getpid():  # threads do not follow into loader processes
            self._fetcher = _Fetcher(self)
            self._fetcher.start()
        self._fetcher.want(id(whose), _Wish(list(shards), keep, fill))

    def _make_room(self, keep: Collection[str], part: Path, idle_for: float = 0.0) -> bool:
        """Whether the shard that is fetched into ``part`` fits in, once what may go has gone; if not, nothing goes."""
        if self.limit is None:
            return True
        with _locked(self.folder / _LOCK) as lock:
            assert lock is not None
            sizes, times = {}, {}
            for entry in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    sizes[entry.name], times[entry.name] = _size(entry.name, status.st_size), status.st_mtime
            latest = time.time() - idle_for
            may_go = [name for name in sizes if name not in keep and (not idle_for or times[name] < latest)]
            may_go = [name for name in may_go if name not in (part.name, _LOCK, _FILLING)]
            excess = sum(sizes.values()) - self.limit
            if excess > sum(sizes[name] for name in may_go):
                return False
            for name in sorted(may_go, key=times.__getitem__):
                if excess > 0 and _remove(self.folder / name):
                    excess -= sizes[name]
            return excess <= 0


class _Wish(NamedTuple):
    shards: list[RemoteShard]
    keep: Collection[str]
    fill: bool


class _Fetcher(threading.Thread):
    """Fetches what is wanted, for one process."""

    def __init__(self, cache: ShardCache) -> None:
        super().__init__(name="shards", daemon=True)
        self.owner = os.getpid()
        self._cache = cache
        self._news = threading.Condition()
        self._wishes: dict[int, _Wish] = {}

    def want(self, whose: int, wish: _Wish) -> None:
        with self._news:
            self._wishes[whose] = wish
            self._news.notify()

    def run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: any(wish.shards for wish in self._wishes.values()))
                wish = next(wish for wish in self._wishes.values() if wish.shards)
                shard = wish.shards.pop(0)
                keep = {name for one in self._wishes.values() for name in one.keep}
            try:
                if not wish.fill:
                    self._cache.fetch(shard, keep, wait=False)
                    continue
                self._cache.folder.mkdir(parents=True, exist_ok=True)
                with _locked(self._cache.folder / _FILLING, wait=False) as lock:
                    if lock is not None:
                        self._cache.fetch(shard, keep, wait=False, idle_for=_IDLE)
            except (UserError, FileNotFoundError):
                pass  # the server is in trouble: who reads the image itself will say so
            except OSError as error:
                print(f"note: shards are no longer copied to {self._cache.folder}: {first_line(error)}", file=sys.stderr)
                return


@functools.cache
def bounded_cache(folder: Path, limit: int) -> ShardCache:
    """The cache that all sources of this process share, so that none removes what another one needs."""
    return ShardCache(folder, limit)


def name_of_copy(url: str) -> str:
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in url)


def _digest(shard: RemoteShard) -> str:
    return hashlib.sha256(f"{shard.url}\0{shard.version}".encode(errors="surrogateescape")).hexdigest()[:16]


def _size(name: str, found: int) -> int:
    """What a file takes, or will take once it has come."""
    stem, _, ending = name.rpartition(".")
    return int(stem.rpartition(".")[2]) if ending == "part" else found


def _remove(path: Path) -> bool:
    """Removes a copy, or a part that no process is at; whether it did."""
    if path.suffix != ".part":
        path.unlink(missing_ok=True)
        return True
    with _locked(path, wait=False) as file:
        if file is not None:
            path.unlink()
    return file is not None


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[BinaryIO | None]:
    """A file that no other process has locked, made if there is none; None where one has, and nobody waits."""
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            if _is_at(file, path):
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file was not renamed or removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
