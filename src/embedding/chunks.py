"""Features of a whole list of images, chunk by chunk: each is a file, so that a start after a kill does the rest.

Shape suffixes: N = images, M = rows (readable images), F = features.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoints.files import read_file, read_json, write_atomically, write_json
from ..checkpoints.identity import differences
from ..data.loading import ViewDataset, make_loader
from ..data.sampling import Position, SequentialBatches
from ..engine.monitor import progress_bar
from ..errors import UserError
from ..evaluation.unlabelled import Looked
from ..parallel import collectives

LARGEST = 2048  # images of a chunk: seconds on a GPU, a minute or two on a CPU
SMALL = 16  # side in pixels of the grey versions that are kept to tell near-duplicates
ABOUT = "embedding.json"
FEATURES, TABLE, PIXELS, ROWS = "features.npy", "features.parquet", "pixels.npy", "rows.npy"
UNREADABLE, PAGE = "unreadable.txt", "index.html"
# What a folder of features of something else may hold, apart from the parts
OWN_FILES = (
    *(FEATURES, TABLE, PIXELS, ROWS, UNREADABLE, PAGE),
    *(f"{name}.png" for name in ("map", "queries", "clusters", "duplicates", "unusual", "inside")),
)


@dataclass(frozen=True)
class Chunk:
    """What was computed of consecutive images.

    Attributes:
        features: (m, F) of the readable ones, in order.
        small: (m, SMALL, SMALL) uint8, the same images in grey.
        indices: (m,) int64, which images of the list they are.
        unreadable: names of the others, with the reasons.
    """

    features: Tensor
    small: Tensor
    indices: Tensor
    unreadable: list[str]


class Chunks(SequentialBatches):
    """Batches of the images of some chunks; none crosses a chunk's end.

    Args:
        numbers: of the chunks, in order.
        size: images of a chunk.
        num_images: N.
        batch_size: largest.
    """

    def __init__(self, numbers: list[int], size: int, num_images: int, batch_size: int) -> None:
        super().__init__(num_images, batch_size)
        self.batches = [
            (number, range(first, min(first + batch_size, (number + 1) * size, num_images)))
            for number in numbers
            for first in range(number * size, min((number + 1) * size, num_images), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Position]]:
        for _, images in self.batches:
            yield [Position(0, image) for image in images]


class Parts:
    """The files of an embedding that is being made: ``parts/000000.pt`` and so on.

    Args:
        folder: of the embedding.
        num_images: N.
        size: images of a chunk.
    """

    def __init__(self, folder: Path, num_images: int, size: int) -> None:
        self.folder, self.num_images, self.size = folder / "parts", num_images, size
        self.count = -(-num_images // size)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.pt"

    def missing(self) -> list[int]:
        return [number for number in range(self.count) if not self.path(number).exists()]

    def write(self, number: int, chunk: Chunk) -> None:
        write_atomically(self.path(number), lambda file: torch.save(vars(chunk), file))

    def __iter__(self) -> Iterator[Chunk]:
        for number in range(self.count):
            try:
                content = read_file(self.path(number))
            except UserError as error:
                self.path(number).unlink(missing_ok=True)
                raise UserError(f"{error}; it is removed: the same command makes it again") from None
            yield Chunk(**content)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def open_parts(folder: Path, num_images: int, identity: Mapping[str, Any], overwrite: bool) -> Parts | None:
    """The parts of an embedding in this folder, begun before or now; None where it is finished. All ranks call.

    Raises UserError where the folder holds an embedding of something else and nobody said ``--overwrite``.
    """
    found: dict[str, Any] | str = {}
    if collectives.is_main():
        try:
            found = _begin(folder, num_images, identity, overwrite)
        except UserError as error:  # told on all ranks, which otherwise would wait
            found = str(error)
    found = collectives.broadcast_object(found)
    if isinstance(found, str):
        raise UserError(found)
    return None if "rows" in found else Parts(folder, num_images, found["chunk"])


def read_about(folder: Path) -> dict[str, Any]:
    """What ``embedding.json`` says; nothing where there is none. Raises UserError for a file that cannot be read."""
    path = folder / ABOUT
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except UserError:
        found = None
    whole = isinstance(found, dict) and isinstance(found.get("identity"), dict) and isinstance(found.get("chunk"), int)
    if not whole:
        raise UserError(f"{path} cannot be read: choose another --dump_path, or say --overwrite")
    return dict(found)


def _begin(folder: Path, num_images: int, identity: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    try:
        about = read_about(folder)
    except UserError:
        if not overwrite:
            raise
        about = {}
    changed = differences(about["identity"], identity) if about else []
    if overwrite and (changed or "rows" in about):
        about = {}  # what is begun and of the same goes on, so that a start after a kill may say it again
    if about:
        if changed:
            told = ", ".join(one.text for one in changed)
            raise UserError(f"{folder} holds other features: {told}; choose another --dump_path, or say --overwrite")
        return about
    Parts(folder, num_images, LARGEST).remove()
    for pattern in OWN_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    size = max(64, min(LARGEST, math.ceil(num_images / (8 * collectives.world_size()))))
    about = {"identity": dict(identity), "chunk": size}
    write_json(folder / ABOUT, about)
    return about


@torch.no_grad()
def extract(looked: Looked, parts: Parts, *, batch_size: int, workers: int, half: bool) -> None:
    """Computes what is missing, each rank its share of the chunks, and returns when all ranks are done.

    Args:
        looked: the backbone, which goes to eval mode, and its images.
        batch_size: images of each rank in a batch.
        half: keep features as float16.
    """
    missing = collectives.broadcast_object(parts.missing())
    mine = missing[collectives.rank() :: collectives.world_size()]
    batches = Chunks(mine, parts.size, parts.num_images, batch_size)
    loader = make_loader(
        ViewDataset(looked.images, [looked.view], replace=False),
        batches,
        workers=workers,
        pin_memory=looked.prepare.device.type != "cpu",
        persistent=False,
    )
    looked.backbone.eval()
    if collectives.is_main() and len(missing) < parts.count:
        print(f"{parts.count - len(missing)} of {parts.count} chunks were made before")
    begun: list[Chunk] = []
    for at, batch in enumerate(progress_bar(loader, "images") if mine else ()):
        number = batches.batches[at][0]
        if len(batch):
            small = _small(batch.crops[0])
            shown = looked.prepare(batch)
            features = looked.backbone(shown.crops[0]).float().cpu()
            begun.append(Chunk(_kept(features, half), small, batch.indices.cpu(), batch.unreadable))
        else:
            begun.append(Chunk(torch.empty(0, 0), torch.empty(0, 0, 0), batch.indices, batch.unreadable))
        if at + 1 == len(batches) or batches.batches[at + 1][0] != number:
            parts.write(number, _joined(begun))
            begun = []
    collectives.barrier()


def _kept(features: Tensor, half: bool) -> Tensor:
    """As they are written; raises UserError for what is infinite or no number, or would be with 16 bits."""
    if not bool(torch.isfinite(features).all()):
        raise UserError("the network gives features that are not finite")
    kept = features.half() if half else features
    if not bool(torch.isfinite(kept).all()):
        raise UserError(
            f"features of up to {float(features.abs().max()):.3g} do not fit into 16 bits: go without --half"
        )
    return kept


def _small(crops: Tensor) -> Tensor:
    """(n, C, s, s) uint8 -> (n, SMALL, SMALL) uint8, in grey."""
    grey = crops.float().mean(dim=1, keepdim=True)
    return F.interpolate(grey, size=(SMALL, SMALL), mode="bilinear", antialias=True)[:, 0].round().clamp(0, 255).byte()


def _joined(chunks: list[Chunk]) -> Chunk:
    unreadable = [name for chunk in chunks for name in chunk.unreadable]
    some = [chunk for chunk in chunks if len(chunk.indices)] or chunks[:1]
    cat = partial(torch.cat, dim=0)
    return Chunk(
        cat([chunk.features for chunk in some]),
        cat([chunk.small for chunk in some]),
        cat([chunk.indices for chunk in some]),
        unreadable,
    )
