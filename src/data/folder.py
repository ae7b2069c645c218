"""Images below a folder."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .decoding import Decoding, Opened, open_file
from .labels import UNLABELLED

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class ImageFiles:
    """Images by their paths."""

    paths: list[str]
    root: Path
    decoding = Decoding()
    left_out: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Opened:
        return open_file(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]

    def relative_name(self, index: int) -> str:
        return self.paths[index].removeprefix(f"{self.root}{os.sep}")


class FolderImages(ImageFiles):
    """Images below a folder, in the sorted order of their paths.

    Every sub-folder that holds images, at any depth, is a class; classes are numbered in sorted order. A folder whose
    images lie directly in it has no classes, and its labels are -1. If there are both, the class folders count.
    ``left_out`` says in words what else was found: other endings, hidden files, links that lead back, ...

    Args:
        root: the folder.
        extensions: further endings of image files, such as ``.npy`` or ``npy``.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = ()) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist")
        if not self.root.is_dir():
            raise UserError(f"{self.root} is a file; expected a folder of images")
        scan = _Scan(EXTENSIONS | {f".{ending.lower().removeprefix('.')}" for ending in extensions})
        flat, folders = scan.look(str(self.root))
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise UserError(f"{self.root} cannot be read: permission denied")
        by_class: dict[str, list[str]] = {}
        origin = [_key(os.stat(self.root))]
        for folder in folders:
            images = list(scan.below(folder, origin))
            if images:
                by_class[os.path.basename(folder)] = images
            else:
                scan.skip("class folders without images", folder)
        if not by_class and not flat:
            kinds = " ".join(sorted(scan.extensions))
            found = f"; left out: {'; '.join(scan.lines())}" if scan.skipped else ""
            raise UserError(f"no images in {self.root} (looked for {kinds} in it and in its sub-folders){found}")
        if by_class:
            for path in flat:
                scan.skip("images beside the class folders", path)
        self.left_out = scan.lines()
        self.classes = list(by_class)
        self.paths = [path for images in by_class.values() for path in images] if by_class else flat
        self.labels: list[int] = (
            [label for label, images in enumerate(by_class.values()) for _ in images]
            if by_class
            else [UNLABELLED] * len(flat)
        )


def is_image(name: str, extensions: Collection[str] = EXTENSIONS) -> bool:
    return os.path.splitext(name)[1].lower() in extensions and not name.startswith(".")


@dataclass
class _Scan:
    """A look through folders that notes what it leaves out, and why."""

    extensions: Collection[str]
    skipped: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, path: str) -> None:
        self.counts[reason] += 1
        self.skipped.setdefault(reason, path)

    def lines(self) -> list[str]:
        """``12 with the ending .heic (such as a/b.heic)``, ..., the most frequent first."""
        return [f"{count} {reason} (such as {self.skipped[reason]})" for reason, count in self.counts.most_common()]

    def look(self, folder: str) -> tuple[list[str], list[str]]:
        """Paths of the images directly in a folder, and of its sub-folders, sorted."""
        images, folders = [], []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.skip(f"folders that cannot be read: {error.strerror}", folder)
            return [], []
        for entry in entries:
            if entry.is_dir():
                if entry.name.startswith("."):
                    self.skip("hidden folders", entry.path)
                else:
                    folders.append(entry.path)
            elif self._is_image(entry):
                images.append(entry.path)
        return images, folders

    def _is_image(self, entry: "os.DirEntry[str]") -> bool:
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            self.skip("hidden files", entry.path)
        elif ending not in self.extensions:
            self.skip(f"with the ending {ending}" if ending else "without an ending", entry.path)
        elif entry.is_file():
            return True
        else:
            try:
                mode = entry.stat().st_mode
            except OSError:
                self.skip("links to nothing", entry.path)
                return False
            kind = "pipes, sockets or devices" if not stat.S_ISREG(mode) else "unreadable"
            self.skip(kind, entry.path)
        return False

    def below(self, folder: str, above: Sequence[tuple[int, int]]) -> Iterator[str]:
        """Paths of all images at any depth; a link that leads back to a folder above it is not followed."""
        try:
            own = _key(os.stat(folder))
        except OSError as error:
            self.skip(f"folders that cannot be read: {error.strerror}", folder)
            return
        if own in above:
            self.skip("links back to a folder above them", folder)
            return
        images, folders = self.look(folder)
        yield from images
        for inner in folders:
            yield from self.below(inner, [*above, own])


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
