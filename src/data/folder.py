"""Images below a folder."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Never

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .decoding import Decoding, Opened, open_file
from .index_cache import IndexCache
from .labels import UNLABELLED
from .packed import PackedIndex, Packer, PackedStrings, joined

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_THREADS = 16  # that read folders at a time; what they wait for is the disk, or the network


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
        self.names, self.list_digest = index.names, index.meta["list"]
        self.labels: np.ndarray = index.columns["labels"]
        self.classes: list[str] = index.meta["classes"]
        self.left_out = index.meta["left_out"]


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
    with ThreadPoolExecutor(_THREADS) as pool:
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


@dataclass
class _Found:
    """What one folder holds directly.

    Attributes:
        images: names below the root, as :func:`src.data.packed.joined` gives them.
        folders: looks into the folders in it, in sorted order.
        left_out: reason and path of everything else, in sorted order.
        changed: when the folder was changed last, in ns; before it was looked at.
    """

    path: str
    images: tuple[bytes, np.ndarray]
    folders: "list[tuple[str, Future[_Found]]]"
    left_out: list[tuple[str, str]]
    changed: int = -1


@dataclass
class _Scan:
    """A look through folders by several threads, which notes what it leaves out, and why.

    Attributes:
        skipped: an example for each reason.
        times: when each folder was changed last, in ns.
    """

    root: str
    extensions: Collection[str]
    bar: "tqdm[Never]"
    skipped: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, int] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS))

    def classes(self) -> tuple[list[str], PackedStrings, list[int]]:
        """The classes, the images in their order, and how many each class has; no classes for a flat folder."""
        packer, classes, counts = Packer(), [], []
        try:
            root = self._look(self.root, [])
            self._note(root)
            for name, looking in root.folders:
                images = list(self._below(looking))
                if count := sum(len(lengths) for _, lengths in images):
                    classes.append(name)
                    counts.append(count)
                    for some in images:
                        packer.add_joined(*some)
                else:
                    self._skip("class folders without images", looking.result().path)
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody wants the rest
        if not classes:
            packer.add_joined(*root.images)
        elif len(root.images[1]):
            self._skip("images beside the class folders", self._first(root), len(root.images[1]))
        return classes, packer.packed(), counts

    def lines(self) -> list[str]:
        """``12 with the ending .heic (such as a/b.heic)``, ..., the most frequent first."""
        return [f"{count} {reason} (such as {self.skipped[reason]})" for reason, count in self.counts.most_common()]

    def _skip(self, reason: str, path: str, count: int = 1) -> None:
        self.counts[reason] += count
        self.skipped.setdefault(reason, path)

    def _note(self, found: _Found) -> None:
        self.times[found.path] = found.changed
        self.bar.update(len(found.images[1]))
        for reason, path in found.left_out:
            self._skip(reason, path)

    def _below(self, looking: "Future[_Found]") -> Iterator[tuple[bytes, np.ndarray]]:
        """The images of a folder and of those in it, at any depth."""
        found = looking.result()
        self._note(found)
        if len(found.images[1]):
            yield found.images
        for _, inner in found.folders:
            yield from self._below(inner)

    def _first(self, found: _Found) -> str:
        content, lengths = found.images
        return os.path.join(self.root, os.fsdecode(content[: lengths[0]]))

    def _look(self, folder: str, above: Sequence[tuple[int, int]]) -> _Found:
        """Looks into a folder, and has the pool look into those in it. A link that leads back is not followed."""
        found = _Found(folder, joined([]), [], [])
        try:
            status = os.stat(folder)
            found.changed = status.st_mtime_ns
            own = status.st_dev, status.st_ino
            if own in above:
                found.left_out.append(("links back to a folder above them", folder))
                return found
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            found.left_out.append((f"folders that cannot be read: {error.strerror}", folder))
            return found
        within = folder[len(self.root) :].lstrip(os.sep)
        prefix = within + os.sep if within else ""
        images = []
        for entry in entries:
            if entry.is_dir():
                if entry.name.startswith("."):
                    found.left_out.append(("hidden folders", entry.path))
                else:
                    inner = self.pool.submit(self._look, entry.path, [*above, own])
                    found.folders.append((entry.name, inner))
            elif reason := self._reason_against(entry):
                found.left_out.append((reason, entry.path))
            else:
                images.append(prefix + entry.name)
        found.images = joined(images)
        return found

    def _reason_against(self, entry: "os.DirEntry[str]") -> str:
        """Why a file is not among the images; "" if it is."""
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            return "hidden files"
        if ending not in self.extensions:
            return f"with the ending {ending}" if ending else "without an ending"
        if entry.is_file():
            return ""
        try:
            mode = entry.stat().st_mode
        except OSError:
            return "links to nothing"
        return "pipes, sockets or devices" if not stat.S_ISREG(mode) else "unreadable"
