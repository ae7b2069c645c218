"""Images below a folder."""

import os
from pathlib import Path

from PIL import Image

from .labels import UNLABELLED
from ..errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class ImageFiles:
    """Images by their paths."""

    paths: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index]

    def relative_name(self, index: int) -> str:
        return self.paths[index].removeprefix(f"{self.root}{os.sep}")


class FolderImages(ImageFiles):
    """Images below a folder, in the sorted order of their paths.

    Every sub-folder that holds images, at any depth, is a class; classes are numbered in sorted order. A folder whose
    images lie directly in it has no classes, and its labels are -1. If there are both, the class folders count.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist")
        if not self.root.is_dir():
            raise UserError(f"{self.root} is a file; expected a folder of images")
        by_class: dict[str, list[str]] = {}
        flat: list[str] = []
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except PermissionError:
            raise UserError(f"{self.root} cannot be read: permission denied") from None
        for entry in entries:
            if entry.is_dir():
                images = _images_below(entry.path)
                if images:
                    by_class[entry.name] = images
            elif is_image(entry.name):
                flat.append(entry.path)
        if not by_class and not flat:
            kinds = " ".join(sorted(EXTENSIONS))
            raise UserError(f"no images in {self.root} (looked for {kinds} in it and in its sub-folders)")
        self.classes = list(by_class)
        self.paths = [path for images in by_class.values() for path in images] if by_class else flat
        self.labels: list[int] = (
            [label for label, images in enumerate(by_class.values()) for _ in images]
            if by_class
            else [UNLABELLED] * len(flat)
        )


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def _images_below(folder: str) -> list[str]:
    found: list[str] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        found.extend(os.path.join(parent, name) for name in sorted(files) if is_image(name))
    return found
