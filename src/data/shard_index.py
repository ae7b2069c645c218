"""What a tar shard holds: the place, the size, the label and the name of each image."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from . import remote
from .folder import is_image
from .labels import UNLABELLED
from .remote import RemoteFile
from .shard_cache import RemoteShard
from ..checkpoints.files import write_atomically
from ..errors import UserError, first_line

LISTING = ".index.npz"  # beside a shard, what it holds
_BYTES = "bytes"  # in it, the shard's size
_BUFFER = 4 << 20  # bytes of a remote shard that are read at a time


class ShardIndex(NamedTuple):
    """Where the images of one shard lie: byte offset and size of each, its label, its name."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray


def read_index(shard: str | RemoteShard) -> ShardIndex:
    """The members of a shard, from the list beside it if that is the shard's, else by scanning it.

    Of a shard on a server nearly everything is read, as what lies between the headers of files below some megabytes comes
    along. Raises UserError for what is no whole tar file.
    """
    where, size = shard[:2] if isinstance(shard, RemoteShard) else (shard, os.path.getsize(shard))
    with contextlib.suppress(Exception):  # there is none, or none that is any use: damaged files make numpy raise all kinds
        found = _kept(shard)
        if found is not None and _fits(found, size):
            return found
    try:
        raw = RemoteFile(where, size) if isinstance(shard, RemoteShard) else open(where, "rb", buffering=0)
        with io.BufferedReader(raw, _BUFFER if isinstance(shard, RemoteShard) else io.DEFAULT_BUFFER_SIZE) as file:
            index = _scan(where, file)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{where} is not a readable tar file: {first_line(error)}") from None
    except UserError:
        raise
    except Exception as error:  # headers that are damaged in other ways
        raise UserError(f"{where} is not a readable tar file ({type(error).__name__})") from None
    if not _fits(index, size):
        raise UserError(f"{where} is cut off in the middle of an image")
    if not isinstance(shard, RemoteShard):
        with contextlib.suppress(UserError):  # a read-only place: the next start scans again
            columns = {**index._asdict(), _BYTES: np.int64(size)}
            write_atomically(Path(where + LISTING), lambda file: np.savez(file, **columns))
    return index


def _kept(shard: str | RemoteShard) -> ShardIndex | None:
    """The list beside a shard; None for one that may be another shard's."""
    if isinstance(shard, RemoteShard):
        written = remote.state(shard.url + LISTING).changed
        if written is None or shard.changed is None or written < shard.changed:
            return None
        listing: Any = io.BytesIO(remote.read(shard.url + LISTING))
    else:
        listing = shard + LISTING
        if os.stat(listing).st_mtime_ns < os.stat(shard).st_mtime_ns:
            return None
    with np.load(listing, allow_pickle=False) as columns:
        if _BYTES in columns and int(columns[_BYTES]) != (shard.size if isinstance(shard, RemoteShard) else os.path.getsize(shard)):
            return None
        return ShardIndex(*(columns[name] for name in ShardIndex._fields))


def _fits(index: ShardIndex, size: int) -> bool:
    """Whether a list can be that of a shard of so many bytes."""
    kinds = [column.dtype.kind for column in index]
    lengths = {len(column) for column in index}
    if kinds != ["i", "i", "i", "U"] or len(lengths) != 1:
        return False
    ends = index.offsets + index.sizes
    return not len(ends) or bool(index.offsets.min() >= 0 and index.sizes.min() >= 0 and ends.max() <= size)


def _scan(path: str, file: IO[bytes]) -> ShardIndex:
    images: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member, key, ending in _members(archive):
            if ending == "cls":
                content = archive.extractfile(member)
                text = content.read().decode(errors="replace").strip() if content else ""
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
