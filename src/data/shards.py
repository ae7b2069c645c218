"""Images in tar shards of the WebDataset layout, by index.

The members of each sample share a name up to the first dot: ``n01440764/10026.jpg`` and ``n01440764/10026.cls``.
Reading by index, instead of streaming, is what makes shuffling complete and a resume exact. What lies on a server
(``https://``, ``s3://``, ``gs://``, ...) is either copied whole before the start, or read image by image, with copies
of as many shards as a bound on the disk space allows.
"""

import glob
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from tqdm import tqdm

from . import remote
from .decoding import Decoding, Opened, open_encoded
from .index_cache import IndexCache, states_of
from .packed import PackedIndex, Packer
from .remote import Part, ReadAhead
from .shard_cache import RemoteShard, ShardCache, bounded_cache, name_of_copy
from .shard_index import ShardIndex, read_index
from ..errors import UserError, first_line
from ..checkpoints.files import write_atomically

S = TypeVar("S")
T = TypeVar("T")

CACHE_VARIABLE = "SSL_SHARD_CACHE"
_BOUNDED = "bounded"  # the copies that may go lie apart from those that stay


class ShardImages:
    """The images of a list of shards, in the shards' order.

    Args:
        where: a folder of ``.tar`` files, one such file, a glob or brace pattern (``train-{000..146}.tar``), or URLs
            in the same notation.
        cache: where copies of remote shards are kept; by default the environment variable ``SSL_SHARD_CACHE``, else
            ``~/.cache/ssl-vision-training/shards``.
        index_cache: where the list of the images is kept.
        run_pipes: whether the commands of ``pipe:`` are run; without it they are refused.
        cache_gb: remote shards are read image by image, and copies of them take so much (10^9 bytes); None copies all
            of them before the start.

    Attributes:
        storage_ends: (shards,) where the images of each shard end.
        storage_sizes: (shards,) bytes of each shard that lies on a server, 0 for others.
    """

    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __init__(
        self,
        where: str | Path,
        cache: str | Path | None = None,
        index_cache: IndexCache | None = None,
        run_pipes: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        default = os.environ.get(CACHE_VARIABLE, "~/.cache/ssl-vision-training/shards")
        folder = Path(cache or default).expanduser()
        index_cache = index_cache or IndexCache()
        shards = expand(str(where))
        pipes = [shard for shard in shards if shard.startswith("pipe:")]
        if pipes and not run_pipes:
            raise UserError(f"{pipes[0]} would run a command on this machine: say --run_pipes if you trust it")
        self._ahead, self._cache = ReadAhead(), bounded_cache(folder / _BOUNDED, int((cache_gb or 0) * 1e9))
        have = partial(_local_copy, folder=folder) if cache_gb is None else _asked
        self._shards: list[str | RemoteShard] = list(_of_each(have, shards))
        self._own_copies = {self._cache.place(one).name for one in self._shards if isinstance(one, RemoteShard)}
        _tell_unknown_versions(self._shards)
        if self._own_copies:  # to look through shards on a server again is slow, however few they are
            index_cache = replace(index_cache, at_least=0)
        index = index_cache.find(
            ["webdataset", *map(_named, self._shards)],
            lambda: _listed(self._shards),
            lambda kept: all(np.array_equal(kept.columns[name], now) for name, now in _states(self._shards).items()),
        )
        if not len(index.names):
            raise UserError(f"no images in the {len(self._shards)} shards of {where}")
        self._index, self._names, self._columns = index, index.names, index.columns
        self.storage_ends = index.columns["shard_ends"]
        self.storage_sizes = np.array([one.size if isinstance(one, RemoteShard) else 0 for one in self._shards])
        self.labels: np.ndarray = index.columns["labels"]
        self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> Opened:
        shard, (start, size) = self._shard_of(index), self._extent(index)
        if not isinstance(shard, RemoteShard):
            with open(shard, "rb") as file:
                file.seek(start)
                return open_encoded(file.read(size))
        copied = self._cache.read(shard, start, size)
        return open_encoded(self._ahead.read(Part(shard.url, start, size)) if copied is None else copied)

    def read_ahead(self, images: Sequence[int], soon: Sequence[int]) -> None:
        """Starts to fetch what lies on a server.

        Args:
            images: will be opened next.
            soon: any image of each shard that will be needed, in order; none if all shards are, in no order.
        """
        if not self._own_copies:
            return
        missing = [(shard, index) for index in images for shard in self._missing(index)]
        self._ahead.announce(Part(shard.url, *self._extent(index)) for shard, index in missing)
        if soon:
            keep = {self._cache.place(shard).name for index in soon if isinstance(shard := self._shard_of(index), RemoteShard)}
            self._cache.want(self, [shard for index in soon for shard in self._missing(index)], keep)
        elif missing and not self._cache.full:
            self._cache.want(self, [missing[0][0]], self._own_copies, fill=True)

    def name(self, index: int) -> str:
        return os.path.join(os.path.dirname(_named(self._shard_of(index))), self._names[index])

    def relative_name(self, index: int) -> str:
        return self._names[index]

    @property
    def list_digest(self) -> str:
        return self._index.list_digest

    def _shard_of(self, index: int) -> str | RemoteShard:
        return self._shards[int(np.searchsorted(self.storage_ends, index, side="right"))]

    def _extent(self, index: int) -> tuple[int, int]:
        """Where in its shard an image starts, and its size, in bytes."""
        return int(self._columns["offsets"][index]), int(self._columns["sizes"][index])

    def _missing(self, index: int) -> list[RemoteShard]:
        """The shard of an image, if it is neither local nor copied."""
        shard = self._shard_of(index)
        return [shard] if isinstance(shard, RemoteShard) and not self._cache.place(shard).exists() else []


def _listed(shards: Sequence[str | RemoteShard]) -> PackedIndex:
    """The lists of all shards as one; names are ``SHARD:MEMBER``."""
    packer = Packer()
    states = _states(shards)
    indices = []
    found = tqdm(_of_each(read_index, shards), "reading shards", total=len(shards), disable=None, leave=False)
    for shard, index in zip(shards, found, strict=True):
        name = os.path.basename(shard.url if isinstance(shard, RemoteShard) else shard)
        packer.add([f"{name}:{member}" for member in index.names.tolist()])
        indices.append(index._replace(names=index.names[:0]))
    columns = ShardIndex(*(np.concatenate(column) for column in zip(*indices, strict=True)))
    return PackedIndex(
        packer.packed(),
        {
            "labels": columns.labels.astype(np.int32),
            "offsets": columns.offsets,
            "sizes": columns.sizes,
            "shard_ends": np.cumsum([len(index.offsets) for index in indices]),
            **states,
        },
        {},
    )


def _states(shards: Sequence[str | RemoteShard]) -> dict[str, np.ndarray]:
    """Columns that tell whether any shard has changed."""
    remote_states = [(shard.version, shard.size) for shard in shards if isinstance(shard, RemoteShard)]
    return {
        "shard_times": states_of([shard for shard in shards if isinstance(shard, str)]),
        "remote_states": np.array(remote_states, dtype=np.int64).reshape(-1, 2),
    }


def _of_each(call: Callable[[S], T], shards: Sequence[S]) -> Iterable[T]:
    """``call`` of each shard. Servers answer many as fast as one; local files are read twice as fast one by one."""
    any_remote = any(isinstance(shard, RemoteShard) or _is_remote(str(shard)) for shard in shards)
    return remote.in_parallel(call, shards) if any_remote else map(call, shards)


def _tell_unknown_versions(shards: Sequence[str | RemoteShard]) -> None:
    unknown = [shard.url for shard in shards if isinstance(shard, RemoteShard) and not shard.version]
    if unknown:
        print(
            f"warning: the server does not tell versions of {unknown[0]}"
            f"{f' and {len(unknown) - 1} others' if unknown[1:] else ''}: a change that keeps the size is not noticed",
            file=sys.stderr,
        )


def _named(shard: str | RemoteShard) -> str:
    return shard.url if isinstance(shard, RemoteShard) else os.path.abspath(shard)


def _asked(shard: str) -> str | RemoteShard:
    """A local shard itself; of one on a server its size and version now."""
    if not _is_remote(shard):
        return shard
    if _gives_whole_only(shard):
        raise UserError(f"{shard} cannot be read in parts: leave out --shard_cache_gb, and it is copied before the start")
    try:
        return RemoteShard.now(shard)
    except FileNotFoundError:
        raise UserError(f"{shard} does not exist") from None


def _webdataset() -> tuple[Callable[[str], list[str]], Callable[[str], BinaryIO]]:
    """The optional dependency's expansion of patterns and opening of URLs."""
    try:
        from webdataset.gopen import gopen
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise UserError("brace patterns and remote shards need a package: pip install webdataset") from None
    return expand_urls, gopen


def _is_remote(shard: str) -> bool:
    return "://" in shard or shard.startswith("pipe:")


def expand(where: str) -> list[str]:
    """The shards that a folder, file, pattern or URL stands for, in order. Raises UserError when there are none."""
    if os.path.isdir(where):
        found = sorted(glob.glob(os.path.join(glob.escape(where), "*.tar")))
    elif os.path.exists(where):
        found = [where]
    else:
        found = _webdataset()[0](where) if "{" in where or "::" in where else [where]
        found = [path for shard in found for path in ([shard] if _is_remote(shard) else sorted(glob.glob(shard)))]
    if not found:
        raise UserError(f"no .tar shards at {where}")
    return found


def _gives_whole_only(shard: str) -> bool:
    """Whether a URL is one that only the webdataset package opens."""
    import fsspec

    return shard.partition(":")[0] not in fsspec.available_protocols()


def _local_copy(shard: str, folder: Path) -> str:
    """The shard itself, or the copy of a remote one, fetched now if it is not there yet."""
    if not _is_remote(shard):
        return shard
    copy = folder / name_of_copy(shard)
    if copy.exists():
        return str(copy)
    try:
        if _gives_whole_only(shard):
            _tell_fetching(shard, folder)
            gopen = _webdataset()[1]

            def fetch(target: BinaryIO) -> None:
                with gopen(shard) as source:
                    shutil.copyfileobj(source, target, 1 << 20)

            write_atomically(copy, fetch)
        else:
            _fetch(shard, folder, copy)
    except FileNotFoundError:
        raise UserError(f"cannot fetch {shard}: it does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {shard}: {first_line(error)}") from None
    return str(copy)


def _fetch(shard: str, folder: Path, copy: Path) -> None:
    """Copies a shard that fsspec can open: by parts, if the server sends parts."""
    try:
        known = RemoteShard.now(shard)
        _tell_fetching(shard, folder)
        ShardCache(folder).fetch(known)
    except remote.WholeFilesOnly:
        write_atomically(copy, lambda target: remote.copy_whole(shard, target))


def _tell_fetching(shard: str, folder: Path) -> None:
    print(f"fetching {shard} into {folder}", file=sys.stderr)
