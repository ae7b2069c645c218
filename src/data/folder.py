"""Images below a folder."""

import multiprocessing
import os
import stat
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Never

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .decoding import Decoding, Opened, open_file
from .index_cache import IndexCache
from .labels import UNLABELLED
from .packed import PackedIndex, Packer, PackedStrings, joined

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_PATIENCE = 0.5  # seconds of looking before more processes help
_PROCESSES = 16  # that look at a time; what they wait for is the disk, or the network


class ImageFiles:
    """Images by their paths.

    Attributes:
        root: the folder that ``names`` are relative to.
        names: where the images are.
    """

    root: Path
    names: Sequence[str]
    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Opened:
        return open_file(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])

    def relative_name(self, index: int) -> str:
        return self.names[index]


class FolderImages(ImageFiles):
    """Images below a folder, in the sorted order of their paths.

    Every sub-folder that holds images, at any depth, is a class; classes are numbered in sorted order. A folder whose
    images lie directly in it has no classes, and its labels are -1. If there are both, the class folders count.
    ``left_out`` says in words what else was found: other endings, hidden files, links that lead back, ...

    Args:
        root: the folder.
        extensions: further endings of image files, such as ``.npy`` or ``npy``.
        cache: where a large folder's list is kept, for the next start and for the other processes.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = (), cache: IndexCache | None = None) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist")
        if not self.root.is_dir():
            raise UserError(f"{self.root} is a file; expected a folder of images")
        endings = EXTENSIONS | {f".{ending.lower().removeprefix('.')}" for ending in extensions}
        of = ["folder", os.path.abspath(self.root), *sorted(endings)]
        index = (cache or IndexCache()).find(of, lambda: _listed(self.root, endings), _is_current)
        self._index, self.names = index, index.names
        self.labels: np.ndarray = index.columns["labels"]
        self.classes: list[str] = index.meta["classes"]
        self.left_out = index.meta["left_out"]

    @property
    def list_digest(self) -> str:
        return self._index.list_digest


def _listed(root: Path, endings: Collection[str]) -> PackedIndex:
    """Looks through the folder."""
    with tqdm(desc=f"looking through {root}", unit=" images", disable=None, leave=False, delay=1) as bar:
        scan = _Scan(str(root), endings, bar)
        classes, packed, counts = scan.classes()
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{root} cannot be read: permission denied")
    if not len(packed):
        kinds = " ".join(sorted(endings))
        found = f"; left out: {'; '.join(scan.lines())}" if scan.skipped else ""
        raise UserError(f"no images in {root} (looked for {kinds} in it and in its sub-folders){found}")
    folders = PackedStrings.of(scan.times)
    return PackedIndex(
        packed,
        {
            "labels": np.repeat(np.arange(len(counts), dtype=np.int32), counts)
            if classes
            else np.full(len(packed), UNLABELLED, dtype=np.int32),
            "folders": folders.content,
            "folder_ends": folders.ends,
            "folder_times": np.array(list(scan.times.values()), dtype=np.int64),
        },
        {"classes": classes, "left_out": scan.lines()},
    )


def _is_current(index: PackedIndex) -> bool:
    """Whether no folder has got or lost an entry since: each one's time of change is what it was."""
    folders = PackedStrings(index.columns["folders"], index.columns["folder_ends"])
    with ThreadPoolExecutor(_PROCESSES) as pool:
        found = np.fromiter(pool.map(_changed, folders, chunksize=256), dtype=np.int64, count=len(folders))
    return bool(np.array_equal(found, index.columns["folder_times"]))


def _changed(folder: str) -> int:
    """When a folder was changed last, in ns; -1 for one that cannot be looked at."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def is_image(name: str, extensions: Collection[str] = EXTENSIONS) -> bool:
    return os.path.splitext(name)[1].lower() in extensions and not name.startswith(".")


class _Found(NamedTuple):
    """What one folder holds directly.

    Attributes:
        images: names below the root, as :func:`src.data.packed.joined` gives them.
        folders: names of the folders in it, sorted.
        left_out: reason and path of everything else, sorted by path.
        own: what tells the folder from others, whatever path leads there.
        changed: when it was changed last, in ns; from before it was looked at.
    """

    images: tuple[bytes, np.ndarray]
    folders: list[str]
    left_out: list[tuple[str, str]]
    own: tuple[int, int] = (-1, -1)
    changed: int = -1


# A folder to be looked at: the root, its path, and `own` of all folders above it
_Task = tuple[str, str, tuple[tuple[int, int], ...]]


@dataclass
class _Scan:
    """A look through folders, level by level, which notes what it leaves out, and why.

    Attributes:
        skipped: an example for each reason.
        times: when each folder was changed last, in ns.
        found: what each folder holds.
    """

    root: str
    extensions: Collection[str]
    bar: "tqdm[Never]"
    skipped: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, int] = field(default_factory=dict)
    found: dict[str, _Found] = field(default_factory=dict)

    def classes(self) -> tuple[list[str], PackedStrings, list[int]]:
        """The classes, the images in their order, and how many each class has; no classes for a flat folder."""
        with _Lookers(self.extensions) as lookers:
            level: list[_Task] = [(self.root, self.root, ())]
            while level:
                deeper: list[_Task] = []
                for (_, path, above), found in zip(level, lookers.look_at(level), strict=True):
                    self.found[path] = found
                    self.bar.update(len(found.images[1]))
                    inside = (*above, found.own)
                    deeper += [(self.root, os.path.join(path, name), inside) for name in found.folders]
                level = deeper
        packer, classes, counts = Packer(), [], []
        root = self._take(self.root)
        for name in root.folders:
            path = os.path.join(self.root, name)
            images = list(self._below(path))
            if count := sum(len(lengths) for _, lengths in images):
                classes.append(name)
                counts.append(count)
                for some in images:
                    packer.add_joined(*some)
            else:
                self._skip("class folders without images", path)
        if not classes:
            packer.add_joined(*root.images)
        elif len(root.images[1]):
            first = os.fsdecode(root.images[0][: root.images[1][0]])
            self._skip("images beside the class folders", os.path.join(self.root, first), len(root.images[1]))
        return classes, packer.packed(), counts

    def lines(self) -> list[str]:
        """``12 with the ending .heic (such as a/b.heic)``, ..., the most frequent first."""
        return [f"{count} {reason} (such as {self.skipped[reason]})" for reason, count in self.counts.most_common()]

    def _skip(self, reason: str, path: str, count: int = 1) -> None:
        self.counts[reason] += count
        self.skipped.setdefault(reason, path)

    def _take(self, path: str) -> _Found:
        """What was found in a folder; notes what was left out there."""
        found = self.found.pop(path)
        self.times[path] = found.changed
        for reason, one in found.left_out:
            self._skip(reason, one)
        return found

    def _below(self, path: str) -> Iterator[tuple[bytes, np.ndarray]]:
        """The images of a folder and of those in it, at any depth."""
        found = self._take(path)
        if len(found.images[1]):
            yield found.images
        for name in found.folders:
            yield from self._below(os.path.join(path, name))


class _Lookers:
    """Looks into folders: by itself at first, and by processes when that takes long. (Threads would get in each
    other's way: Python gives up its lock for every single entry of a folder.)"""

    def __init__(self, extensions: Collection[str]) -> None:
        self._look = partial(_look, extensions=extensions)
        self._deadline = time.monotonic() + _PATIENCE
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Lookers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody wants the rest

    def look_at(self, tasks: Sequence[_Task]) -> Iterator[_Found]:
        """What each folder holds, in order."""
        for number, task in enumerate(tasks):
            left = len(tasks) - number
            if time.monotonic() > self._deadline and left > _PROCESSES:
                if self._pool is None:
                    self._pool = ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("fork"))
                chunk = min(256, -(-left // (4 * _PROCESSES)))
                yield from self._pool.map(self._look, tasks[number:], chunksize=chunk)
                return
            yield self._look(task)


def _look(task: _Task, extensions: Collection[str]) -> _Found:
    """Looks into one folder. A link that leads back to a folder above it is not followed."""
    root, folder, above = task
    images: list[str] = []
    folders: list[str] = []
    left_out: list[tuple[str, str]] = []
    own, changed = (-1, -1), -1
    try:
        status = os.stat(folder)
        own, changed = (status.st_dev, status.st_ino), status.st_mtime_ns
        if own in above:
            return _Found(joined([]), [], [("links back to a folder above them", folder)], own, changed)
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                ending = name[name.rfind(".") :]
                if (ending in extensions or ending.lower() in extensions) and name[0] != "." and entry.is_file():
                    images.append(name)
                elif not entry.is_dir():
                    left_out.append((_reason_against(entry, extensions), entry.path))
                elif name[0] == ".":
                    left_out.append(("hidden folders", entry.path))
                else:
                    folders.append(name)
    except OSError as error:
        return _Found(joined([]), [], [(f"folders that cannot be read: {error.strerror}", folder)], own, changed)
    images.sort()
    folders.sort()
    left_out.sort(key=itemgetter(1))
    within = folder[len(root) :].lstrip(os.sep)
    if within:
        prefix = within + os.sep
        images = [prefix + name for name in images]
    return _Found(joined(images), folders, left_out, own, changed)


def _reason_against(entry: "os.DirEntry[str]", extensions: Collection[str]) -> str:
    """Why a file is not among the images."""
    ending = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return "hidden files"
    if ending not in extensions:
        return f"with the ending {ending}" if ending else "without an ending"
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "links to nothing"
    return "pipes, sockets or devices" if not stat.S_ISREG(mode) else "unreadable"
