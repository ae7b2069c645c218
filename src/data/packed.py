"""Lists of a hundred million names in flat arrays, which processes share: a Python string costs each worker 100 bytes."""

import hashlib
import json
import operator
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..checkpoints.files import temporary_beside

FORMAT = "ssl-vision-index/1"
_NAMES, _ENDS, _META = "names", "ends", "index.json"
_BLOCK = 1 << 16  # names that are made strings at a time


class PackedStrings(Sequence[str]):
    """Strings in one array of bytes.

    Args:
        content: (bytes,) uint8, the strings one after the other, encoded as the file system's names are.
        ends: (n,) uint64, where each one ends.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content, self.ends = content, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "PackedStrings":
        packer = Packer()
        packer.add(list(strings))
        return packer.packed()

    @classmethod
    def of_lines(cls, text: np.ndarray, *, skip_empty: bool = False) -> "PackedStrings":
        """The lines of a text, (bytes,) uint8; what comes after the last line break is a line too."""
        is_break = np.append(text == ord("\n"), True)
        breaks = np.flatnonzero(is_break)
        ends = (breaks - np.arange(len(breaks))).astype(np.uint64)  # in the text without line breaks
        if skip_empty:
            ends = ends[np.diff(ends, prepend=np.uint64(0)) > 0]
        return cls(text[~is_break[:-1]], ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = operator.index(index)
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} names")
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.content[start : int(self.ends[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from map(os.fsdecode, block)

    def blocks(self) -> Iterator[list[bytes]]:
        """All of them, encoded, some thousands at a time: much faster than one by one."""
        start = 0
        for first in range(0, len(self), _BLOCK):
            ends = (self.ends[first : first + _BLOCK] - np.uint64(start)).tolist()
            content = self.content[start : start + ends[-1]].tobytes()
            yield [content[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            start += ends[-1]


class Packer:
    """Makes :class:`PackedStrings` of strings that come in parts."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._lengths: list[np.ndarray] = []

    def add(self, strings: Sequence[str]) -> None:
        self.add_joined(*joined(strings))

    def add_joined(self, content: bytes, lengths: np.ndarray) -> None:
        """What :func:`joined` has made of some."""
        self._content += content
        self._lengths.append(lengths)

    def packed(self) -> PackedStrings:
        lengths = np.concatenate([np.zeros(0, dtype=np.uint32), *self._lengths])
        return PackedStrings(np.frombuffer(self._content, dtype=np.uint8), np.cumsum(lengths, dtype=np.uint64))


def joined(strings: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """The encoded strings as one, and their lengths in bytes, (n,) uint32."""
    whole = "".join(strings)
    if whole.isascii():  # then bytes are characters
        return whole.encode(), np.fromiter(map(len, strings), dtype=np.uint32, count=len(strings))
    encoded = [os.fsencode(string) for string in strings]
    return b"".join(encoded), np.fromiter(map(len, encoded), dtype=np.uint32, count=len(encoded))


class PackedIndex:
    """What is known about each image of a source: its name, and columns of numbers; and what is known about all.

    Attributes:
        names: relative to where the images are.
        columns: arrays with one row for each image, or others that the source needs; ``labels`` is (n,) int32.
        meta: plain values that JSON can hold.
    """

    def __init__(self, names: PackedStrings, columns: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        self.names, self.columns = names, dict(columns)
        self.meta = {"format": FORMAT, "images": len(names), **meta}

    @property
    def list_digest(self) -> str:
        """See :func:`list_digest`; computed once, and kept with the index."""
        if "list" not in self.meta:
            self.meta["list"] = list_digest(self.names, self.columns["labels"])
        found: str = self.meta["list"]
        return found

    def save(self, folder: Path) -> None:
        """Writes a folder that holds each array in a file; whoever looks sees all of it or nothing.

        Raises OSError when the disk refuses.
        """
        temporary = temporary_beside(folder)
        old = temporary.with_suffix(".old")
        try:
            temporary.mkdir(parents=True)
            for name, array in {_NAMES: self.names.content, _ENDS: self.names.ends, **self.columns}.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            meta = {**self.meta, "columns": list(self.columns), "list": self.list_digest}
            (temporary / _META).write_text(json.dumps(meta))
            if folder.exists():
                folder.rename(old)  # processes that have mapped it keep it
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> "PackedIndex":
        """Maps the arrays of such a folder into memory. Raises OSError, ValueError or KeyError for one that is none."""
        meta = json.loads((folder / _META).read_text())
        if meta["format"] != FORMAT:
            raise ValueError(f"{folder} has the format {meta['format']!r}")
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in (_NAMES, _ENDS, *meta["columns"])
        }
        content, ends = arrays.pop(_NAMES), arrays.pop(_ENDS)
        whole = len(ends) == len(arrays["labels"]) == meta["images"] and len(content) == (ends[-1] if len(ends) else 0)
        if not whole:
            raise ValueError(f"{folder} is damaged")
        return cls(PackedStrings(content, ends), arrays, meta)


def list_digest(names: PackedStrings, labels: np.ndarray) -> str:
    """Of every image's name and label, in order; 16 hexadecimal digits."""
    digest = hashlib.sha256()
    first = 0
    for block in names.blocks():
        some = labels[first : first + len(block)].tolist()
        digest.update(b"".join([b"%b\0%d\n" % pair for pair in zip(block, some, strict=True)]))
        first += len(block)
    return digest.hexdigest()[:16]
