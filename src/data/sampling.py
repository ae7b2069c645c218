"""Which images are in which batch: pure functions of seed and epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .order import Order, TorchOrder


class Position(NamedTuple):
    """One image in one epoch: what the sampler asks a data set for."""

    epoch: int
    image: int


class ResumableBatches:
    """Batches of positions for one rank: a pure function of (seed, epoch), which can start at any batch.

    Sharding is that of torch's DistributedSampler: the order of all images, padded to a multiple of the ranks by
    repeating its start, every W-th image from the rank's own on.

    Args:
        num_images: of the whole data set.
        batch_size: of this rank.
        seed: of torch's order; 0 gives that of the published runs, which do not pass their seed on to the sampler.
        order: another order than torch's, of so many images.
        drop_last: leave out an incomplete last batch.
        drop_single: leave out a last batch of one image, over which batch norm has no statistics.
        virtual_ranks: how many ranks, from ``rank`` on, get their batches here: batch by batch, one after another.

    Raises UserError when no batch is left.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        order: Order | None = None,
        drop_last: bool = True,
        drop_single: bool = False,
        virtual_ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: expected at least one image per process")
        self.num_images, self.batch_size = num_images, batch_size
        self.rank, self.world_size, self.virtual_ranks = rank, world_size, virtual_ranks
        self.order = order or TorchOrder(num_images, seed)
        self.drop_last, self.drop_single = drop_last, drop_single
        self.per_rank = -(-num_images // world_size)
        self.seek(0)
        if len(self) == 0:
            raise UserError(
                f"{num_images} images do not fill one batch of {batch_size} on each of {world_size} ranks; "
                "lower --batch_size"
            )

    def __len__(self) -> int:
        """Batches of a rank."""
        full, rest = divmod(self.per_rank, self.batch_size)
        return full + (not self.drop_last and rest > int(self.drop_single))

    def seek(self, epoch: int, first_batch: int = 0, *, epochs: int = 1, per_epoch: int | None = None) -> None:
        """The next iteration runs through ``epoch`` from its batch ``first_batch`` on.

        Args:
            epoch, first_batch: where it starts.
            epochs: how many it runs through.
            per_epoch: batches of each epoch, if not all.
        """
        self.epoch, self.first_batch, self.epochs, self.per_epoch = epoch, first_batch, epochs, per_epoch

    def __iter__(self) -> Iterator[list[Position]]:
        first_epoch, first_batch, per_epoch = self.epoch, self.first_batch, self.per_epoch or len(self)
        for epoch in range(first_epoch, first_epoch + self.epochs):
            yield from self._batches(epoch, range(first_batch if epoch == first_epoch else 0, per_epoch))

    def _batches(self, epoch: int, batches: range) -> Iterator[list[Position]]:
        for batch in batches:
            mine = np.arange(batch * self.batch_size, min((batch + 1) * self.batch_size, self.per_rank))
            for rank in range(self.rank, self.rank + self.virtual_ranks):
                chosen = self.order.images(epoch, (rank + self.world_size * mine) % self.num_images)
                yield [Position(epoch, index) for index in chosen.tolist()]


class SequentialBatches:
    """Every image once over all ranks, in order, without padding: for evaluation."""

    def __init__(self, num_images: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: expected at least one image per process")
        self._indices = range(rank, num_images, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Position]]:
        for first in range(0, len(self._indices), self.batch_size):
            yield [Position(0, index) for index in self._indices[first : first + self.batch_size]]
