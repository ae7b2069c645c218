"""Images in tar shards of the WebDataset layout, by index.

The members of each sample share a name up to the first dot: ``n01440764/10026.jpg`` and ``n01440764/10026.cls``. What
is not on a local disk (every URL that the webdataset package opens: https, s3, gs, pipe, ...) is fetched once, shard
by shard, and read from the copy. Reading by index, instead of streaming, is what makes shuffling complete and a
resume exact; the price is disk space for the copies. Each shard's list of members is kept beside it, so that only
the first start has to scan.
"""

import contextlib
import glob
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from .decoding import Decoding, Opened, open_encoded
from .folder import is_image
from .index_cache import IndexCache, states_of
from .labels import UNLABELLED
from .packed import PackedIndex, Packer
from ..errors import UserError, first_line
from ..checkpoints.files import write_atomically

CACHE_VARIABLE = "SSL_SHARD_CACHE"


class ShardIndex(NamedTuple):
    """Where the images of one shard lie: byte offset and size of each, its label, its name."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray


class ShardImages:
    """The images of a list of shards, in the shards' order.

    Args:
        where: a folder of ``.tar`` files, one such file, a glob or brace pattern (``train-{000..146}.tar``), or URLs
            in the same notation.
        run_pipes: whether the commands of ``pipe:`` are run; without it they are refused.
        cache: where copies of remote shards are kept; by default the environment variable ``SSL_SHARD_CACHE``, else
            ``~/.cache/ssl-vision-training/shards``.
    """

    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __init__(
        self,
        where: str | Path,
        cache: str | Path | None = None,
        index_cache: IndexCache | None = None,
        run_pipes: bool = False,
    ) -> None:
        default = os.environ.get(CACHE_VARIABLE, "~/.cache/ssl-vision-training/shards")
        folder = Path(cache or default).expanduser()
        shards = expand(str(where))
        pipes = [shard for shard in shards if shard.startswith("pipe:")]
        if pipes and not run_pipes:
            raise UserError(f"{pipes[0]} would run a command on this machine: say --run_pipes if you trust it")
        self.paths = [_local_copy(shard, folder) for shard in shards]
        of = ["webdataset", *map(os.path.abspath, self.paths)]
        index = (index_cache or IndexCache()).find(of, lambda: _listed(self.paths), lambda kept: np.array_equal(kept.columns["shard_times"], states_of(self.paths)))
        if not len(index.names):
            raise UserError(f"no images in the {len(self.paths)} shards of {where}")
        self._index, self._names, self._columns = index, index.names, index.columns
        self.labels: np.ndarray = index.columns["labels"]
        self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> Opened:
        with open(self._shard_of(index), "rb") as file:
            file.seek(int(self._columns["offsets"][index]))
            return open_encoded(file.read(int(self._columns["sizes"][index])))

    def name(self, index: int) -> str:
        return os.path.join(os.path.dirname(self._shard_of(index)), self._names[index])

    def relative_name(self, index: int) -> str:
        return self._names[index]

    @property
    def list_digest(self) -> str:
        return self._index.list_digest

    def _shard_of(self, index: int) -> str:
        return self.paths[int(np.searchsorted(self._columns["shard_ends"], index, side="right"))]


def _listed(paths: Sequence[str]) -> PackedIndex:
    """The lists of all shards as one; names are ``SHARD:MEMBER``."""
    packer = Packer()
    states, indices = states_of(paths), []
    for path in tqdm(paths, "reading shards", disable=None, leave=False):
        index = read_index(path)
        shard = os.path.basename(path)
        packer.add([f"{shard}:{name}" for name in index.names.tolist()])
        indices.append(index._replace(names=index.names[:0]))
    columns = ShardIndex(*(np.concatenate(column) for column in zip(*indices, strict=True)))
    return PackedIndex(
        packer.packed(),
        {
            "labels": columns.labels.astype(np.int32),
            "offsets": columns.offsets,
            "sizes": columns.sizes,
            "shard_ends": np.cumsum([len(index.offsets) for index in indices]),
            "shard_times": states,
        },
        {},
    )


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


def _local_copy(shard: str, cache: Path) -> str:
    """The shard itself, or the copy of a remote one, fetched now if it is not there yet."""
    if not _is_remote(shard):
        return shard
    copy = cache / "".join(c if c.isalnum() or c in ".-_" else "_" for c in shard)
    if copy.exists():
        return str(copy)
    print(f"fetching {shard} into {cache}", file=sys.stderr)
    gopen = _webdataset()[1]

    def fetch(target: BinaryIO) -> None:
        with gopen(shard) as source:
            shutil.copyfileobj(source, target, 1 << 20)

    try:
        write_atomically(copy, fetch)
    except (UserError, ValueError) as error:
        raise UserError(f"cannot fetch {shard}: {first_line(error)}") from None
    return str(copy)


def read_index(path: str) -> ShardIndex:
    """The members of a shard, from the list beside it if that is newer than the shard, else by scanning it."""
    listing = Path(f"{path}.index.npz")
    try:
        if listing.stat().st_mtime_ns >= os.stat(path).st_mtime_ns:
            with np.load(listing, allow_pickle=False) as columns:
                found = ShardIndex(*(columns[name] for name in ShardIndex._fields))
            if _fits(found, os.path.getsize(path)):
                return found
    except Exception:  # there is none, or none that is any use: damaged files make numpy raise all kinds
        pass
    try:
        index = _scan(path)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} is not a readable tar file: {first_line(error)}") from None
    except UserError:
        raise
    except Exception as error:  # headers that are damaged in other ways
        raise UserError(f"{path} is not a readable tar file ({type(error).__name__})") from None
    if not _fits(index, os.path.getsize(path)):
        raise UserError(f"{path} is cut off in the middle of an image")
    with contextlib.suppress(UserError):  # a read-only place: the next start scans again
        write_atomically(listing, lambda file: np.savez(file, **index._asdict()))
    return index


def _fits(index: ShardIndex, size: int) -> bool:
    """Whether a list can be that of a shard of so many bytes."""
    kinds = [column.dtype.kind for column in index]
    lengths = {len(column) for column in index}
    if kinds != ["i", "i", "i", "U"] or len(lengths) != 1:
        return False
    ends = index.offsets + index.sizes
    return not len(ends) or bool(index.offsets.min() >= 0 and index.sizes.min() >= 0 and ends.max() <= size)


def _scan(path: str) -> ShardIndex:
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path, "r:") as archive:
        for member, key, ending in _members(archive):
            if ending == "cls":
                file = archive.extractfile(member)
                text = file.read().decode(errors="replace").strip() if file else ""
                if not text.lstrip("-").isdigit():
                    raise UserError(f"{path}: {member.name} holds {text[:20]!r}, expected a class number")
                labels[key] = int(text)
            elif is_image(f"x.{ending.rpartition('.')[2]}") and key not in images:
                images[key] = (member.offset_data, member.size, member.name)
    columns = list(zip(*images.values(), strict=True)) or [(), (), ()]
    return ShardIndex(
        offsets=np.array(columns[0], dtype=np.int64),
        sizes=np.array(columns[1], dtype=np.int64),
        labels=np.array([labels.get(key, UNLABELLED) for key in images], dtype=np.int64),
        names=np.array(columns[2], dtype=np.str_),
    )


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Each file with its sample's key and its ending."""
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if member.isfile() and stem and dot:
            yield member, f"{folder}/{stem}", ending.lower()
