"""Tiny-ImageNet in its published layout: ``train/<wnid>/images``, ``val/images`` and ``val/val_annotations.txt``."""

import os
from pathlib import Path

from .folder import FolderImages, ImageFiles
from .labels import Labels
from ..errors import UserError


class TinyImageNetImages(ImageFiles):
    """One split; classes are the sorted wnids of ``train``.

    Args:
        root: holds ``train`` and ``val``.
        split: ``pretrain``, ``train`` or ``test`` (which is ``val``: the set's own test images have no labels).
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        train = FolderImages(self.root / "train")
        self.classes = train.classes
        if split != "test":
            self.names = [os.path.join("train", name) for name in train.names]
            self.labels: Labels = train.labels
            return
        val = self.root / "val"
        annotations = val / "val_annotations.txt"
        if not annotations.exists():
            raise UserError(f"{annotations} is missing: --dataset tiny_in expects the published layout")
        number = {wnid: label for label, wnid in enumerate(self.classes)}
        self.names, labels = [], []
        for line in sorted(annotations.read_text().splitlines()):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            if wnid not in number:
                raise UserError(f"{annotations}: {name!r} has the class {wnid!r}, which train does not have")
            self.names.append(os.path.join("val", "images", name))
            labels.append(number[wnid])
        self.labels = labels
