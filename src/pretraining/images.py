"""What a pre-training is shown: which images, and in which order."""

import uuid
from pathlib import Path

import numpy as np

from ..data.datasets import How, TrainingDataSettings, open_images
from ..data.image_cache import SHARE, ImageCache, bytes_decoded, free_memory, memory_folder
from ..data.mixture import Mixture
from ..data.order import KeyedOrder, Order, ShardOrder, TorchOrder, WeightedOrder
from ..data.source import ImageSource, first_images, require_labels, storage_ends, storage_sizes
from ..data.splits import find_training
from ..errors import UserError, first_line
from ..parallel import collectives


def open_training(data: TrainingDataSettings, train_path: str | Path, how: How) -> ImageSource:
    """The images of all ``--data_path``; with several processes, all must call."""
    _check(data)
    source = open_images(data.dataset, train_path, "pretrain", how)
    if not data.more_data:
        return source
    paths = [find_training(data.dataset, path) for path in data.more_data]
    return Mixture([source, *(open_images(data.dataset, path, "pretrain", how) for path in paths)])


def _check(data: TrainingDataSettings) -> None:
    """Raises UserError for flags that do not go together."""
    if data.weights and data.balanced:
        raise UserError("--weights and --balanced both say how often images are drawn: choose one")
    if (data.weights or data.balanced) and data.shuffle in ("torch", "shards"):
        raise UserError(f"--shuffle {data.shuffle} draws every image once an epoch: leave out --weights and --balanced")
    if data.shuffle == "shards" and data.dataset != "webdataset":
        raise UserError(f"--shuffle shards needs --dataset webdataset, and this is {data.dataset}")
    count = 1 + len(data.more_data)
    if data.weights and len(data.weights) != count:
        raise UserError(f"--weights: {len(data.weights)} numbers for {count} --data_path")
    if data.more_data and data.size_dataset != -1:
        raise UserError("--size_dataset takes the first images, so it goes with one --data_path")


def used_of(data: TrainingDataSettings, source: ImageSource, train_path: str | Path) -> ImageSource:
    """The images that are used; raises UserError where they lack what a flag needs."""
    if data.balanced:
        require_labels(source, train_path)
    return first_images(source, data.size_dataset)


def _require_room(data: TrainingDataSettings, images: ImageSource) -> None:
    """Raises UserError where the copies of shards that are mixed, and of the next ones, do not fit."""
    at_hand = 2 * data.shuffle_window
    needed = float(np.sort(storage_sizes(images))[-at_hand:].sum()) / 1e9
    if data.shard_cache_gb is not None and needed > data.shard_cache_gb:
        raise UserError(
            f"--shard_cache_gb {data.shard_cache_gb:g}: {at_hand} shards must be at hand, which are up to {needed:.2g} "
            "GB; raise it or lower --shuffle_window"
        )


def cache_of(data: TrainingDataSettings, images: ImageSource) -> ImageCache | None:
    """The memory for decoded images, if they are to be kept; with several processes, all must call."""
    if data.cache_images == "none":
        return None
    # all processes decide alike, however much each of them finds free
    needed = max(collectives.gather_everywhere(bytes_decoded(images)))
    room = min(collectives.gather_everywhere(free_memory())) * SHARE
    if needed > room:
        raise UserError(
            f"--cache_images ram: the decoded images take about {needed / 1e9:.2g} GB, and {room / 1e9:.2g} GB "
            f"of memory can be had at {memory_folder()}"
        )
    name = collectives.broadcast_object(f"ssl-vision-{uuid.uuid4().hex}")
    try:
        # some more than was estimated, if there is as much
        cache = ImageCache(name, len(images), int(min(room, 1.1 * needed)))
        problem = ""
    except OSError as error:
        problem = first_line(error)
    problems = [one for one in collectives.gather_everywhere(problem) if one]  # when all are here, all have it
    if problems:
        raise UserError(f"--cache_images ram: no memory at {memory_folder()}: {problems[0]}")
    cache.forget_name()
    return cache


def order_of(data: TrainingDataSettings, images: ImageSource, seed: int) -> Order:
    """In which order, and how often, the images are drawn."""
    count = len(images)
    if data.weights:
        parts = images.parts if isinstance(images, Mixture) else [range(count)]
        return WeightedOrder(count, parts, data.weights, seed)
    if data.balanced:
        labels = np.asarray(images.labels)
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels + 1)))[:-1]
        groups = [group for group in by_class[1:] if len(group)]  # the first ones have no label
        return WeightedOrder(count, groups, [1.0] * len(groups), seed)
    if data.shuffle == "shards":
        ends = storage_ends(images)
        assert ends is not None, "of shards, or the first images of shards"
        _require_room(data, images)
        return ShardOrder(ends, seed, data.shuffle_window)
    return KeyedOrder(count, seed) if data.order(count) == "keyed" else TorchOrder(count)
