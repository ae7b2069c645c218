"""From images to batches on the device: the resumable sampler, the loader, and what travels in a batch."""

import atexit
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..parallel import collectives
from .augment import PackedDraws, apply_to_batch, apply_to_image, pack
from .image_cache import ImageCache
from .order import Order, ShardOrder
from .source import ImageSource, read_ahead
from .draws import Draw, keyed_generator, without_colours
from .labels import UNLABELLED
from .sampling import Position, ResumableBatches, SequentialBatches
from .views import Picture, View, runs_of_equal_size
from ..errors import UserError, first_line

# Below this many broken files in a row, each is replaced by the next image; at it, something else is wrong.
MAX_UNREADABLE_IN_A_ROW = 20


class Unreadable(Exception):
    """An image that cannot be decoded: its name, and the reason."""


class Sample(NamedTuple):
    """One image's views; ``image`` is the one they show, after the replacement of ``unreadable`` ones. No views: it
    could not be read, and was not replaced.

    ``draws`` are given where the colours are still to be changed, on the device; one for each view. ``places`` are the
    crop of each random view (top, left, height, width) and whether it was flipped.
    """

    views: list[Tensor]
    label: int
    image: int
    unreadable: list[str]
    draws: list[Draw] | None = None
    places: list[tuple[int, int, int, int, bool]] | None = None


@dataclass
class Batch:
    """Views of B images.

    Attributes:
        crops: V tensors (B, 3, s, s): uint8 as they leave the workers, float32 once :class:`ToDevice` has run.
        labels, indices: (B,) int64; label -1 where there is none, index into the data set.
        unreadable: names of files that could not be read, and were replaced or left out.
        draws: what the device still has to do, for each run of equally large crops, in the order of
            :func:`src.data.views.runs_of_equal_size`; None when the workers have done it.
        boxes: (V, B, 4) int32, the crop of each random view: top, left, height and width in pixels of the image.
        flips: (V, B) bool, whether it was mirrored.
    """

    crops: list[Tensor]
    labels: Tensor
    indices: Tensor
    unreadable: list[str] = field(default_factory=list)
    draws: list[PackedDraws] | None = None
    boxes: Tensor | None = None
    flips: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        return self.each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with ``change`` applied to every tensor."""
        return replace(
            self,
            crops=[change(crop) for crop in self.crops],
            labels=change(self.labels),
            indices=change(self.indices),
            draws=None if self.draws is None else [draws.each(change) for draws in self.draws],
            boxes=None if self.boxes is None else change(self.boxes),
            flips=None if self.flips is None else change(self.flips),
        )


# The views of an image; or what they are in an epoch, as many in each
Views = Sequence[View] | Callable[[int], Sequence[View]]


class ViewDataset(Dataset[Sample]):
    """The views of every image of a source, addressed by epoch and index.

    An image that cannot be read is reported by name with its sample. In trainings it is replaced by the next readable
    one, so that batches keep their size on every rank; UserError is raised after MAX_UNREADABLE_IN_A_ROW of them. In
    evaluations it is left out.

    Args:
        source, views: every view of every image, by epoch where they change. With colours on the device either all
            are drawn or none is.
        seed: of the draws.
        colours_on_device: cut the views only, and send the draws along for :class:`ToDevice` to apply.
        replace: whether images that cannot be read are replaced.
    """

    def __init__(
        self,
        source: ImageSource,
        views: Views,
        seed: int = 0,
        colours_on_device: bool = False,
        replace: bool = True,
        order: Order | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.source, self.cache = source, cache
        self.order = order
        self.views_of = views if callable(views) else lambda epoch: views
        self.seed = seed
        self.colours_on_device = colours_on_device
        self.replace = replace

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, positions: list[Position]) -> list[Sample]:
        """A batch; what is far away is fetched for all of its images at once."""
        epoch, first = positions[0]
        soon = self.order.soon(epoch, first) if isinstance(self.order, ShardOrder) else ()
        read_ahead(self.source, [position.image for position in positions], soon)
        return [self[position] for position in positions]

    def __getitem__(self, position: Position) -> Sample:
        found, index, unreadable = self._next_readable(position)
        if found is None:
            return Sample([], UNLABELLED, index, unreadable)
        crops, draws = found
        drawn = [draw for draw in draws if draw is not None]
        if not self.colours_on_device:
            crops = [
                crop if draw is None else apply_to_image(crop, draw) for crop, draw in zip(crops, draws, strict=True)
            ]
        label = int(self.source.labels[index])
        places = [(*draw[:4], draw.flip) for draw in drawn]  # top, left, height, width
        return Sample(crops, label, index, unreadable, drawn if self.colours_on_device else None, places or None)

    def _cut(self, epoch: int, index: int) -> tuple[list[Tensor], list[Draw | None]]:
        views = self.views_of(epoch)
        picture, draws = self._decode(epoch, index, views)
        return [view.cut(picture, draw) for view, draw in zip(views, draws, strict=True)], draws

    def _decode(self, epoch: int, index: int, views: Sequence[View]) -> tuple[Picture, list[Draw | None]]:
        """The decoded image and what was drawn for its views; raises Unreadable whatever the decoder raises."""
        decoding = self.source.decoding
        kept = None if self.cache is None else self.cache.get(index)
        if kept is not None:
            picture = Picture.of_pixels(kept, decoding)
            draws = self._draw(epoch, index, views, picture)
            if _reduction(views, draws) == 1:
                return picture, draws
        try:
            with self.source.open(index) as opened:
                picture = Picture(opened, decoding)
                draws = self._draw(epoch, index, views, picture)
                picture.reduction = _reduction(views, draws)
                picture.load()
        except UserError as error:
            raise UserError(f"{self.source.name(index)}: {error}") from None
        except Exception as error:  # decoders and their plugins raise what they like
            raise Unreadable(f"{self.source.name(index)} ({first_line(error)})") from None
        if self.cache is not None and picture.reduction == 1:
            self.cache.put(index, picture.pixels)
        return picture, draws

    def _draw(self, epoch: int, index: int, views: Sequence[View], picture: Picture) -> list[Draw | None]:
        draws = [
            view.draw(keyed_generator(self.seed, epoch, index, number), picture.width, picture.height)
            for number, view in enumerate(views)
        ]
        if self.source.decoding.channels != 3:
            draws = [None if draw is None else without_colours(draw) for draw in draws]
        return draws

    def _next_readable(
        self, position: Position
    ) -> tuple[tuple[list[Tensor], list[Draw | None]] | None, int, list[str]]:
        epoch, index = position
        unreadable: list[str] = []
        for _ in range(min(MAX_UNREADABLE_IN_A_ROW, len(self))):
            try:
                return self._cut(epoch, index), index, unreadable
            except Unreadable as error:
                unreadable.append(str(error))
                if not self.replace:
                    return None, index, unreadable
                index = (index + 1) % len(self)
        raise UserError(f"{len(unreadable)} images in a row could not be read, the first: {unreadable[0]}")


def _reduction(views: Sequence[View], draws: Sequence[Draw | None]) -> int:
    """At which fraction of its scale an image may be decoded for all of its views."""
    return min(view.reduction(draw) for view, draw in zip(views, draws, strict=True))


def collate(samples: list[Sample]) -> Batch:
    """Stacks view by view: V tensors (B, 3, s, s); packs the draws of each run of equally large crops, crop-major.

    Samples without views are left out; a batch of such ones has no crops.
    """
    unreadable = [name for sample in samples for name in sample.unreadable]
    samples = [sample for sample in samples if sample.views]
    if not samples:
        none = torch.empty(0, dtype=torch.int64)
        return Batch(crops=[], labels=none, indices=none, unreadable=unreadable)
    # default_collate stacks into memory that is shared with the main process, without another copy
    crops = [default_collate(list(views)) for views in zip(*(sample.views for sample in samples), strict=True)]
    draws = None
    if samples[0].draws is not None:
        by_view = list(zip(*(sample.draws or [] for sample in samples), strict=True))
        draws = [pack([draw for view in by_view[run] for draw in view]) for run in runs_of_equal_size(crops)]
    boxes = flips = None
    if samples[0].places is not None:
        places_VB5 = torch.tensor([sample.places for sample in samples], dtype=torch.int32).transpose(0, 1)
        boxes, flips = places_VB5[..., :4].contiguous(), places_VB5[..., 4].bool()
    return Batch(
        crops=crops,
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.image for sample in samples]),
        unreadable=unreadable,
        draws=draws,
        boxes=boxes,
        flips=flips,
    )


def _prepare_worker(_: int) -> None:
    # The main process decides when to stop; a worker that died on the same signal would break the step under way.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    # multiprocessing ends leftover daemons (of a loader that failed, say) by SIGTERM, which ours ignore, and would
    # wait for them forever. torch would report each one's end as a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def make_loader(
    dataset: Dataset[Any],
    batches: ResumableBatches | SequentialBatches,
    *,
    workers: int,
    pin_memory: bool = False,
    persistent: bool = True,
) -> "DataLoader[Batch]":
    """A loader of :class:`Batch`; which sample is where does not depend on the number of workers."""
    if workers < 0:
        raise UserError(f"--workers {workers}: expected 0 (load in the training process) or more")
    if workers:
        # torch warns about more workers than cores; the log's share of time waiting for data is what tells
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=persistent and workers > 0,
        # its own generator: the default one is part of what a resume restores, and iterating would advance it
        generator=torch.Generator(),
        worker_init_fn=_prepare_worker,
    )


def loader_of(
    source: ImageSource, view: View | Sequence[View], batch_size: int, workers: int, device: torch.device
) -> "DataLoader[Batch]":
    """One deterministic view of every image, or several that are drawn alike each time, each rank its share: what
    evaluations read."""
    world, rank = collectives.world_size(), collectives.rank()
    views = list(view) if isinstance(view, Sequence) else [view]
    return make_loader(
        ViewDataset(source, views, replace=False),
        SequentialBatches(len(source), batch_size, rank=rank, world_size=world),
        workers=workers,
        pin_memory=device.type != "cpu",
        persistent=False,
    )
