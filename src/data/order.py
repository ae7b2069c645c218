"""In which order an epoch shows the images."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

# From here on torch's permutation takes more memory in every process than is worth its history
MANY = 10_000_000


class Order(Protocol):
    """An order of draws, addressed by epoch and position, so that any process can start anywhere.

    Attributes:
        draws: positions of an epoch.
    """

    draws: int

    def images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The images at positions (n,) of an epoch: (n,) int64."""
        ...


class TorchOrder:
    """The permutation of torch's DistributedSampler, by a generator seeded with ``seed + epoch``: the published runs'.

    It holds 8 bytes an image.
    """

    def __init__(self, images: int, seed: int = 0) -> None:
        self.draws, self.seed = images, seed
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._permutation = torch.randperm(self.draws, generator=generator).numpy()
            self._epoch = epoch
        return self._permutation[positions]


class KeyedOrder:
    """A permutation that is evaluated position by position, and so needs no memory however many images there are.

    A Feistel network (Luby and Rackoff 1988) with the finaliser of MurmurHash3 as its round function permutes the
    numbers below the next power of two; what falls outside the images is permuted again until it does not ("cycle
    walking", Black and Rogaway 2002).
    """

    ROUNDS = 8

    def __init__(self, images: int, seed: int = 0) -> None:
        self.draws, self.seed = images, seed
        bits = max(2, (images - 1).bit_length())
        self._low = np.uint64(bits // 2)
        self._masks = np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << (bits // 2)) - 1)

    def images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        keys = np.random.default_rng([self.draws, self.seed, epoch]).integers(1 << 63, size=self.ROUNDS, dtype=np.uint64)
        found = self._permute(positions.astype(np.uint64), keys)
        while (outside := np.flatnonzero(found >= self.draws)).size:
            found[outside] = self._permute(found[outside], keys)
        return found.astype(np.int64)

    def _permute(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        # the halves differ by a bit where the number of bits is odd, so each is changed in place, and they do not swap
        high_mask, low_mask = self._masks
        high, low = numbers >> self._low, numbers & low_mask
        for round_, key in enumerate(keys):
            if round_ % 2:
                high = high ^ (_mixed(low ^ key) & high_mask)
            else:
                low = low ^ (_mixed(high ^ key) & low_mask)
        return (high << self._low) | low


def _mixed(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


class WeightedOrder:
    """Draws from groups of images in given shares, each group's images in turn.

    A group with few draws goes on in the next epoch where it stopped; one with many starts again, in another order.
    So over a run all images of a group are drawn equally often, give or take one.

    Args:
        images: all there are; an epoch has as many draws.
        groups: the images of each group; a range or an array.
        weights: of the groups, in proportion to one another.
        seed: of the orders.
    """

    def __init__(
        self, images: int, groups: Sequence[range | np.ndarray], weights: Sequence[float], seed: int = 0
    ) -> None:
        self.draws, self.seed, self._groups = images, seed, groups
        self._shares = np.cumsum(weights)[:-1] / np.sum(weights) * images
        self._epoch, self._before = 0, np.zeros(len(groups), dtype=np.int64)
        self._among = KeyedOrder(images, seed)
        self._within = [KeyedOrder(len(group), seed + 1 + number) for number, group in enumerate(groups)]

    def images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        slots = self._among.images(epoch, positions)  # the first ones are the first group's, and so on
        edges, before = self._edges(epoch), self._drawn_before(epoch)
        group_of = np.searchsorted(edges, slots, side="right") - 1
        found = np.empty_like(slots)
        for number in np.unique(group_of):
            mine, group = group_of == number, self._groups[number]
            drawn = before[number] + slots[mine] - edges[number]
            turns, places = np.divmod(drawn, len(group))
            chosen = np.empty_like(places)
            for turn in np.unique(turns):
                chosen[turns == turn] = self._within[number].images(int(turn), places[turns == turn])
            found[mine] = chosen + group.start if isinstance(group, range) else group[chosen]
        return found

    def _edges(self, epoch: int) -> np.ndarray:
        """Where the slots of each group begin, and the end. Shares of a draw are rounded otherwise in each epoch."""
        offset = epoch * 0.6180339887498949 % 1.0  # multiples of the golden ratio fill the unit interval evenly
        return np.array([0, *np.floor(self._shares + offset), self.draws], dtype=np.int64)

    def _drawn_before(self, epoch: int) -> np.ndarray:
        """How many draws each group had in the epochs before."""
        if epoch < self._epoch:
            self._epoch, self._before = 0, np.zeros_like(self._before)
        while self._epoch < epoch:
            self._before = self._before + np.diff(self._edges(self._epoch))
            self._epoch += 1
        return self._before


class ShardOrder:
    """The shards in random order, so many of them at a time, and the images of those in random order.

    Only some shards are needed at any time, so that they can be fetched whole. A pure function of seed, epoch and
    position, like the others.

    Args:
        ends: (shards,) where the images of each shard end.
        seed: of the order.
        window: shards that are mixed.
    """

    def __init__(self, ends: np.ndarray, seed: int = 0, window: int = 16) -> None:
        self.draws, self.seed, self.window = int(ends[-1]), seed, window
        ends = np.unique(ends[ends > 0])  # without empty shards
        self._sizes = np.diff(ends, prepend=0).astype(np.int64)
        self._starts = np.asarray(ends, dtype=np.int64) - self._sizes
        self._blocks = -(-len(ends) // window)
        self._epoch, self._shards, self._ends = -1, self._sizes, self._sizes

    def images(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        self._seek(epoch)
        edges = self._edges()
        block_of = np.searchsorted(edges, positions, side="right") - 1
        slots = np.empty_like(positions, dtype=np.int64)  # places in the epoch's sequence of shards
        for block in np.unique(block_of).tolist():
            mine, start = block_of == block, edges[block]
            within = KeyedOrder(int(edges[block + 1] - start), self.seed)
            slots[mine] = start + within.images(epoch * self._blocks + block, positions[mine] - start)
        turns = np.searchsorted(self._ends, slots, side="right")
        shards = self._shards[turns]
        return self._starts[shards] + slots - (self._ends[turns] - self._sizes[shards])

    def soon(self, epoch: int, image: int) -> list[int]:
        """The first image of each shard that is mixed with this image's, and of those that are mixed thereafter."""
        self._seek(epoch)
        shard = int(np.searchsorted(self._starts + self._sizes, image, side="right"))
        block = int(np.flatnonzero(self._shards == shard)[0]) // self.window
        now, then = (self._shards[start : start + self.window] for start in (block * self.window, (block + 1) * self.window))
        if block + 1 == self._blocks:
            then = self._sequence(epoch + 1)[: self.window]
        return self._starts[np.concatenate([now, then])].tolist()

    def _sequence(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([len(self._sizes), self.seed, epoch]).permutation(len(self._sizes))

    def _seek(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._shards = epoch, self._sequence(epoch)
            self._ends = np.cumsum(self._sizes[self._shards])

    def _edges(self) -> np.ndarray:
        """Where the positions of each block begin, and the end."""
        last = np.minimum(np.arange(1, self._blocks + 1) * self.window, len(self._ends)) - 1
        return np.concatenate([np.zeros(1, dtype=np.int64), self._ends[last]])
