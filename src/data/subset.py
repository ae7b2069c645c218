"""Parts of a labelled training set, for learning from few labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .labels import Labels
from .source import ImageSource
from ..errors import UserError


def read_list(path: str | Path) -> list[str]:
    """Names of images, one a line: ``FILE`` as in SimCLR's ``1percent.txt``, or ``CLASS/FILE``."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path}: {getattr(error, 'strerror', None) or error}") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"the list {path} is empty")
    return names


def listed(source: ImageSource, names: Sequence[str], path: object) -> list[int]:
    """Indices of the listed images, in the order of the source.

    A name stands for the image whose path ends in it. Raises UserError when any is not there, is there several times,
    or is listed twice.
    """
    index_of: dict[str, int] = {}
    ambiguous: set[str] = set()
    depths = {name.count("/") + 1 for name in names}
    for index in range(len(source)):
        parts = source.name(index).replace(os.sep, "/").split("/")
        for depth in depths:
            name = "/".join(parts[-depth:])
            if index_of.setdefault(name, index) != index:
                ambiguous.add(name)
    missing = [name for name in names if name not in index_of]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} images in {path} are not among the training images (such as "
            f"{missing[0]})"
        )
    unclear = [name for name in names if name in ambiguous]
    if unclear:
        raise UserError(f"{path}: several training images are called {unclear[0]}; list them as CLASS/FILE")
    if len(set(names)) != len(names):
        raise UserError(f"{path} names {len(names) - len(set(names))} images twice")
    return sorted(index_of[name] for name in names)


def is_share(chosen: int, images: int, percent: float) -> bool:
    """Whether so many of the images are that many percent of them, give or take a tenth."""
    return abs(100 * chosen / images - percent) <= percent / 10


def class_balanced(labels: Labels, percent: float, seed: int) -> list[int]:
    """Indices of a share of the images, with equally many of every class, or all of a class that is smaller.

    Classes that get one image more than others, and the images themselves, are drawn with ``seed``; the SimCLR lists
    (1 %: 12 or 13 images of each ImageNet class) are made alike, by draws of their own.

    Args:
        labels: of all images; -1 where there is none, which is never chosen.
        percent: of the labelled images, above 0 and up to 100. Every class keeps at least one.
    """
    all_labels = np.asarray(labels)
    order = np.argsort(all_labels, kind="stable")
    order = order[all_labels[order] != -1]
    by_class = np.split(order, np.flatnonzero(np.diff(all_labels[order])) + 1)
    rng = np.random.default_rng(seed)
    wanted = round(sum(map(len, by_class)) * percent / 100)
    quota = np.zeros(len(by_class), dtype=int)
    room = np.array([len(images) for images in by_class])
    turns = rng.permutation(len(by_class))
    while quota.sum() < wanted:  # deals one image a class at a time; few rounds, since they are dealt in bulk
        open_classes = turns[quota[turns] < room[turns]]
        each = max(1, min((wanted - quota.sum()) // len(open_classes), (room - quota)[open_classes].min()))
        quota[open_classes[: wanted - quota.sum()]] += each
    chosen = [rng.permutation(images)[: max(1, n)] for images, n in zip(by_class, quota, strict=True)]
    return sorted(int(index) for index in np.concatenate(chosen))
